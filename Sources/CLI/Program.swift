// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport

/// What the executable adds to the commands of this module.
public struct Hooks: Sendable {
    /// `v2.30.0+…`: of this build.
    public var version: String
    /// The server, where the executable contains it.
    public var server: ServerHook?
    /// The relay, where the executable contains it.
    public var relay: ServerHook?

    /// A program without server and relay unless they are given.
    public init(version: String, server: ServerHook? = nil, relay: ServerHook? = nil) {
        self.version = version
        self.server = server
        self.relay = relay
    }
}

/// `coder server` or `coder relay`: its options join the table, its action runs it.
public struct ServerHook: Sendable {
    /// Rows of the option table.
    public var options: [CommandOption]
    /// Runs it until it is told to stop, and returns the exit status. A thrown error is shown in one line.
    public var run: @Sendable (ServerInvocation) async throws -> Int32

    /// A program with its options.
    public init(
        options: [CommandOption], run: @escaping @Sendable (ServerInvocation) async throws -> Int32
    ) {
        self.options = options
        self.run = run
    }
}

/// What the server's action gets to know.
public struct ServerInvocation: Sendable {
    /// Values of the server's and the global options.
    public let values: OptionValues
    /// The process's environment.
    public let environment: [String: String]
    /// Directory for `url`, `postgres/` and the rest.
    public let configDirectory: String
    /// Where to print the URL and errors.
    public let console: Console
    /// Version of this build.
    public let version: String

    /// Writes the deployment's URL where `coder login` and the other commands find it.
    public func storeURL(_ url: String) throws {
        try ConfigDirectory(path: configDirectory, environment: environment).write(.url, url)
    }
}

/// The `coder` program: everything between `main` and the modules below.
public enum Program {
    /// Runs one command line and returns the exit status.
    ///
    /// - Parameters:
    ///   - arguments: without the program's name.
    ///   - environment: the process's variables.
    public static func run(
        arguments: [String], environment: [String: String], hooks: Hooks, console: Console = .standard()
    ) async -> Int32 {
        // A peer or a pipe that goes away is an error of one write, not the end of the program.
        signal(SIGPIPE, SIG_IGN)
        let isQuestion = GitAskpassCommand.isQuestion(arguments, environment)
        let arguments = isQuestion ? [GitAskpassCommand.command.name] + arguments : arguments
        let root = Commands.root(hooks: hooks)
        if environment["COMPLETION_MODE"] == "1" {
            console.out(Completion(root).candidates(arguments).map { $0 + "\n" }.joined())
            return 0
        }
        let line: ParsedCommandLine
        do {
            line = try CommandLineParser(root: root, environment: environment).parse(arguments)
        } catch {
            console.fail("error: \(error)")
            return 1
        }
        if line.wantsHelp || line.command.run == nil && !line.values.bool("version") {
            let size = console.isOutputTerminal ? TerminalSize(descriptor: 1) : nil
            let width = size.map { min(Int($0.columns), 100) } ?? 80
            console.out(Help.text(for: line.path, version: hooks.version, width: width))
            return 0
        }
        for warning in line.warnings { console.note(warning) }
        return await run(line, environment, hooks, console)
    }

    /// The command line of this process, without the program's name. A program called `coder-wireguard` is
    /// `coder wireguard`: wg-quick gives nothing but the interface.
    public static func arguments(_ all: [String]) -> [String] {
        let name = all.first?.split(separator: "/").last.map(String.init)
        let rest = Array(all.dropFirst())
        return name == WireGuardCommand.programName ? [WireGuardCommand.command.name] + rest : rest
    }

    /// The process's variables. For the composition root; nothing else reads them.
    public static func environment() -> [String: String] {
        var environment: [String: String] = [:]
        var next = environ
        while let entry = next.pointee {
            let text = String(cString: entry)
            if let equals = text.firstIndex(of: "=") {
                environment[String(text[..<equals])] = String(text[text.index(after: equals)...])
            }
            next += 1
        }
        return environment
    }

    private static func run(
        _ line: ParsedCommandLine, _ environment: [String: String], _ hooks: Hooks, _ console: Console
    ) async -> Int32 {
        var console = console
        if line.values.bool("force-tty") {
            console.isInputTerminal = true
            console.isOutputTerminal = true
            console.isErrorTerminal = true
        }
        let invocation = Invocation(line: line, environment: environment, console: console, hooks: hooks)
        if line.values.bool("debug-options") {
            console.out(debugOptions(line.values))
            return 0
        }
        let action =
            line.values.bool("version") || line.command.run == nil ? VersionCommand.run : line.command.run!
        do {
            return try await action(invocation)
        } catch is SilentFailure {
            return 1
        } catch let error as HTTPError where error.kind == .cancelled {
            return 1
        } catch is CancellationError {
            return 1
        } catch {
            if line.values.bool("verbose") {
                console.fail(
                    "Encountered an error running \"\(line.fullName)\", see \"\(line.fullName) --help\""
                        + " for more information")
            }
            console.fail("error: \(error)")
            return 1
        }
    }

    private static func debugOptions(_ values: OptionValues) -> String {
        let rows = values.entries.keys.sorted().map { [$0, values.source($0).rawValue] }
        return Table.text(
            names: ["Option", "Value Source"], columns: ["Option", "Value Source"], rows: rows)
    }
}
