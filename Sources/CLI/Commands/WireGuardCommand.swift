// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

/// `coder wireguard`: an interface for `wg` and `wg-quick`, in the place of the kernel's module or `wireguard-go`.
enum WireGuardCommand {
    /// The program's other name, under which it takes the interface's name as its only word: what
    /// `WG_QUICK_USERSPACE_IMPLEMENTATION` wants.
    static let programName = "coder-wireguard"
    /// Set for the child that goes on in the background: it says on standard output when it is ready.
    private static let childVariable = "CODER_WIREGUARD_CHILD"

    static let command = Command(
        name: "wireguard", usage: "<interface>",
        summary: "Run a WireGuard interface in user space, configured with wg and wg-quick.",
        details: """
            Creates the interface and /var/run/wireguard/<interface>.sock, then goes to the background. \
            It ends when the interface or the socket is removed, or by a signal. \
            SIGUSR1 writes what was counted to the log.

            With wg-quick: WG_QUICK_USERSPACE_IMPLEMENTATION=coder-wireguard wg-quick up <interface>
            """,
        arguments: .between(0, 1),
        options: [
            CommandOption("foreground", short: "f", .bool, help: "Stay in the foreground."),
            // Any other word counts as error, as in wireguard-go: LOG_LEVEL may be meant for something else.
            CommandOption(
                "log-level", env: "LOG_LEVEL", default: "error",
                help:
                    "verbose (or debug), error, or silent. Error names missing features of the kernel, too."
            ),
            CommandOption(
                "log-file", env: "CODER_WIREGUARD_LOG_FILE",
                help:
                    "File for the log, appended. Default: standard error while in the foreground, else syslog."
            ),
            CommandOption(
                "aead", env: "CODER_WIREGUARD_AEAD", hidden: true,
                help: "Who encrypts packets: avx512, boringssl or sodium. Default: the fastest."),
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        guard let name = invocation.words.first else {
            throw CommandError("wanted the name of an interface, see \"coder wireguard --help\"")
        }
        guard isInterfaceName(name) else {
            throw CommandError(
                "\"\(name)\" is not a name for an interface: 1 to 15 bytes without blanks and slashes")
        }
        if invocation.values.bool("foreground") || invocation.environment["WG_PROCESS_FOREGROUND"] == "1" {
            return try await serve(name, invocation)
        }
        return try await detach(name, invocation)
    }

    /// What the kernel takes (`dev_valid_name`).
    private static func isInterfaceName(_ name: String) -> Bool {
        (1...15).contains(name.utf8.count) && name != "." && name != ".."
            && name.utf8.allSatisfy { $0 > 0x20 && $0 != 0x2f && $0 != 0x3a && $0 != 0x7f }
    }

    // MARK: In the foreground

    private static func serve(_ name: String, _ invocation: Invocation) async throws -> Int32 {
        let isChild = invocation.environment[childVariable] == "1"
        let log = try TunnelLog(invocation)
        let (ends, end) = AsyncStream.makeStream(of: String.self, bufferingPolicy: .bufferingOldest(1))
        var options = WireGuardTunnel.Options()
        let backEnd = invocation.values.string("aead")
        if !backEnd.isEmpty, !options.choose(backEnd: backEnd) {
            throw CommandError("\"\(backEnd)\" does not encrypt on this machine")
        }
        options.log = { log.write($0, $1) }
        options.ended = { end.yield("the interface was deleted") }
        let tunnel: WireGuardTunnel
        do {
            tunnel = try WireGuardTunnel(name: name, options: options)
        } catch {
            throw CommandError("the interface \(name) could not be created: \(reason(error))")
        }
        let server: ConfigurationServer
        do {
            server = try ConfigurationServer(
                name: tunnel.name, tunnel: tunnel, adopting: givenSocket(invocation)
            ) { end.yield("the socket was removed") }
        } catch {
            tunnel.close()
            throw CommandError("the socket of \(name) could not be made: \(reason(error))")
        }
        log.write(.detail, "\(tunnel.name) is ready")
        if isChild {
            announce(keepsErrors: log.usesStandardError)
            log.detach()
        }
        // Most of the code that was touched so far is not needed again.
        ProgramMemory.releaseFree()
        let tell: @Sendable () -> Void = { log.write(.notice, tunnel.describeCounters() ?? "has ended") }
        let signal = try await untilStopped(noticing: [SIGUSR1: tell]) {
            for await why in ends {
                log.write(.detail, why)
                break
            }
        }
        if let signal { log.write(.detail, "signal \(signal)") }
        if let counters = tunnel.describeCounters() { log.write(.detail, counters) }
        server.close()
        tunnel.close()
        log.write(.detail, "stopped")
        return 0
    }

    /// Number of a listening socket that the parent opened and named by `WG_UAPI_FD`.
    private static func givenNumber(_ invocation: Invocation) -> Int32? {
        // In the background it comes in the place of standard input.
        let least: Int32 = invocation.environment[childVariable] == "1" ? 0 : 3
        guard let text = invocation.environment["WG_UAPI_FD"], let number = Int32(text), number >= least,
            Descriptor.kind(number) == .streamSocket
        else { return nil }
        return number
    }

    private static func givenSocket(_ invocation: Invocation) -> OwnedDescriptor? {
        guard let number = givenNumber(invocation) else { return nil }
        return OwnedDescriptor(taking: number)
    }

    /// The usual causes in words.
    private static func reason(_ error: SystemError) -> String {
        switch error.code {
        case EPERM, EACCES: "\(error) (are you root?)"
        case EBUSY: "it exists already"
        case EADDRINUSE: "another program serves it"
        case ENOENT where error.call.hasPrefix("ioctl"): "there is no /dev/net/tun"
        default: error.description
        }
    }

    // MARK: In the background

    /// Tells the parent, and lets go of its output.
    private static func announce(keepsErrors: Bool) {
        let word: StaticString = "ready\n"
        _ = write(1, word.utf8Start, word.utf8CodeUnitCount)
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        guard null >= 0 else { return }
        dup2(null, 1)
        if !keepsErrors { dup2(null, 2) }
        close(null)
    }

    /// Starts this program again in a session of its own, and waits until it is ready or has failed.
    private static func detach(_ name: String, _ invocation: Invocation) async throws -> Int32 {
        var environment = invocation.environment
        environment[childVariable] = "1"
        // Of descriptors only three reach the child; it has no other use for the first.
        let listener = givenNumber(invocation)
        environment["WG_UAPI_FD"] = listener == nil ? nil : "0"
        environment["LOG_LEVEL"] = invocation.values.string("log-level")
        environment["CODER_WIREGUARD_LOG_FILE"] = invocation.values.string("log-file")
        environment["CODER_WIREGUARD_AEAD"] = invocation.values.string("aead")
        let variables = environment.map { Array("\($0.key)=\($0.value)".utf8) }
        let (reading, writing) = try Descriptor.pipe().release()
        let input = OwnedDescriptor(taking: reading)
        let output = OwnedDescriptor(taking: writing)
        let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
        guard null >= 0 else { throw SystemError(call: "open") }
        let nullInput = OwnedDescriptor(taking: null)
        let child = try LinuxIO.ChildProcess(
            path: Array("/proc/self/exe".utf8),
            arguments: [programName, "-f", name].map { Array($0.utf8) }, environment: variables,
            directory: Array("/".utf8),
            streams: .descriptors(listener ?? nullInput.number, output.number, 2))
        output.close()
        let isReady = await isReady(input)
        guard isReady else {
            // It has said why on standard error.
            _ = child.reap()
            throw SilentFailure()
        }
        return 0
    }

    /// Waits for the word of the child; false: it ended without one.
    private static func isReady(_ input: consuming OwnedDescriptor) async -> Bool {
        let number = input.release()
        return await withCheckedContinuation { continuation in
            let thread = try? DedicatedThread(name: "wg-ready") {
                var byte: UInt8 = 0
                var count = read(number, &byte, 1)
                while count < 0, errno == EINTR { count = read(number, &byte, 1) }
                close(number)
                continuation.resume(returning: count == 1)
            }
            guard let thread else { return continuation.resume(returning: false) }
            thread.detach()
        }
    }
}

/// Where the interface's log goes: a file, or standard error, or the system's log once that is given up.
private final class TunnelLog: Sendable {
    private let console: Console
    private let file: Int32?
    private let isVerbose: Bool
    private let isSilent: Bool
    private let isDetached = Atomic(false)

    init(_ invocation: Invocation) throws {
        console = invocation.console
        let level = invocation.values.string("log-level")
        isVerbose = level == "verbose" || level == "debug"
        isSilent = level == "silent"
        let path = invocation.values.string("log-file")
        guard !path.isEmpty else {
            file = nil
            return
        }
        // Open for as long as the program runs.
        let number = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o600)
        guard number >= 0 else { throw CommandError("\(path): \(SystemError(call: "open"))") }
        file = number
    }

    /// Whether standard error is needed for as long as the program runs.
    var usesStandardError: Bool { file == nil && isVerbose }

    /// Standard error may be gone from now on.
    func detach() {
        if !usesStandardError { isDetached.store(true, ordering: .relaxed) }
    }

    /// A line: details only for those who asked for more, the rest for all who did not ask for silence.
    func write(_ importance: WireGuardTunnel.Importance, _ text: String) {
        guard !isSilent, isVerbose || importance != .detail else { return }
        let line = "\(Timestamp.now.text()) \(text)\n"
        if let file {
            Array(line.utf8).withUnsafeBytes { _ = Glibc.write(file, $0.baseAddress, $0.count) }
        } else if isDetached.load(ordering: .relaxed) {
            SystemLog.write(text, isError: importance == .error)
        } else {
            console.error(line)
        }
    }
}
