// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import Logging
internal import Synchronization

/// One run of one command: its values and words, the environment, and what commands share. Made by `Program`.
struct Invocation: Sendable {
    let values: OptionValues
    let words: [String]
    /// `coder ssh`: for messages and the user agent.
    let fullName: String
    let environment: [String: String]
    let console: Console
    let hooks: Hooks
    let command: [Command]
    private let clients = Clients()

    var prompt: Prompt { Prompt(console: console) }

    init(
        line: ParsedCommandLine, environment: [String: String], console: Console, hooks: Hooks
    ) {
        values = line.values
        words = line.words
        fullName = line.fullName
        command = line.path
        self.environment = environment
        self.console = console
        self.hooks = hooks
    }

    /// Directory of url, session and the rest.
    var config: ConfigDirectory {
        ConfigDirectory(path: values.string("global-config"), environment: environment)
    }

    /// The name people type to run this program, for hints.
    var programName: String {
        let path = Swift.CommandLine.arguments.first ?? "coder"
        return path.split(separator: "/").last.map(String.init) ?? "coder"
    }

    /// The deployment's address, by flag, variable or file.
    func deploymentURL() throws -> HTTPURL {
        let given = values.string("url")
        let text = given.isEmpty ? try config.read(.url) ?? "" : given
        guard !text.isEmpty else {
            throw CommandError("You are not logged in. Try logging in using '\(programName) login <url>'.")
        }
        guard let url = HTTPURL(text) else { throw CommandError("\"\(text)\" is not an http or https URL") }
        return url
    }

    /// A client that is logged in.
    func client() throws -> APIClient {
        let url = try deploymentURL()
        let given = values.string("token")
        let token = given.isEmpty ? try config.read(.session) ?? "" : given
        guard !token.isEmpty else {
            throw CommandError(
                "You are not logged in. Try logging in using '\(programName) login \(url.origin)'.")
        }
        return try client(url: url, token: token)
    }

    /// What an agent has for its workspace: git's questions are answered with it. nil outside of workspaces.
    func agentClient() throws -> APIClient? {
        var token = values.string("agent-token")
        let file = values.string("agent-token-file")
        if token.isEmpty, !file.isEmpty { token = try TextFile.read(file).trimmed }
        let address = values.string("agent-url")
        guard !token.isEmpty, let url = HTTPURL(address.isEmpty ? values.string("url") : address) else {
            return nil
        }
        return try client(url: url, token: token)
    }

    /// A client for a server that is not in the configuration yet.
    func client(url: HTTPURL, token: String?) throws -> APIClient {
        APIClient(
            http: try clients.http { try configuration(url) }, base: url, token: token, console: console,
            version: hooks.version,
            warnsAboutVersion: !values.bool("no-version-warning"), showsRequests: values.bool("debug-http"),
            isVerbose: values.bool("verbose"))
    }

    /// HTTP without a deployment: for relays that a file names.
    func http() throws -> HTTPClient { try clients.http { try configuration(nil) } }

    /// Headers, proxies and certificates for all HTTP of this process.
    private func configuration(_ url: HTTPURL?) throws -> HTTPClient.Configuration {
        var configuration = HTTPClient.Configuration(environment: environment)
        configuration.headers = try headers(url)
        return configuration
    }

    /// What `--header` and `--header-command` ask for, and the user agent.
    private func headers(_ url: HTTPURL?) throws -> HeaderFields {
        var fields: HeaderFields = [
            "User-Agent": "coder-cli/\(hooks.version) (linux/\(goArchitecture); \(fullName))"
        ]
        for text in values.list("header") + (try commandHeaders(url)) {
            guard let equals = text.firstIndex(of: "=") else { continue }
            fields.add(String(text[..<equals]), String(text[text.index(after: equals)...]))
        }
        return fields
    }

    /// The command knows for which deployment the headers are.
    private func commandHeaders(_ url: HTTPURL?) throws -> [String] {
        let command = values.string("header-command")
        guard !command.isEmpty else { return [] }
        var environment = environment
        if let url { environment["CODER_URL"] = url.short }
        guard let text = ChildProcess.output(of: ["/bin/sh", "-c", command], environment: environment) else {
            throw CommandError("the --header-command failed: \(Table.clean(command))")
        }
        return text.split(separator: "\n").map(String.init)
    }

    /// Says on standard error what the mesh does, when the user asked for it; silent otherwise.
    var logger: Logger {
        let console = console
        let isVerbose = values.bool("verbose")
        return Logger(label: "coder") { _ in
            isVerbose ? ConsoleLog(console: console) : SwiftLogNoOpLogHandler() as any LogHandler
        }
    }

    /// Ends the HTTP thread; idle connections close.
    func shutDown() async { await clients.shutDown() }

    private final class Clients: Sendable {
        private let client = Mutex<HTTPClient?>(nil)

        /// The client, made at the first call.
        func http(_ configuration: () throws -> HTTPClient.Configuration) throws -> HTTPClient {
            try client.withLock { client in
                if let client { return client }
                let made = HTTPClient(configuration: try configuration())
                client = made
                return made
            }
        }

        func shutDown() async { await client.withLock { $0.take() }?.shutDown() }
    }
}

extension HTTPURL {
    /// As people and files write it: no slash behind a bare host.
    var short: String { path == "/" ? origin : "\(origin)\(path)" }
}

/// The machine's architecture as Go names it.
var goArchitecture: String {
    #if arch(arm64)
        "arm64"
    #else
        "amd64"
    #endif
}

/// Log lines for people, on standard error.
private struct ConsoleLog: LogHandler {
    let console: Console
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.debug

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let fields = metadata.merging(event.metadata ?? [:]) { _, new in new }
        let details = fields.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        console.note("\(Timestamp.now.text()) [\(event.level)] \(event.message)\(details)")
    }
}
