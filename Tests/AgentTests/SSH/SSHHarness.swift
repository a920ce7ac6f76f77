// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import SSH
import Synchronization
import Testing

/// A service on a loopback port, and OpenSSH's programs to use it.
final class SSHHarness: Sendable {
    let service: SSHService
    let port: UInt16
    /// Scratch files; the home of the clients.
    let directory: String
    let reports = Mutex<[SSHSessionReport]>([])
    private let listener: OwnedDescriptor
    private let log: Log

    final class Log: Sendable {
        let lines = Mutex<[String]>([])
        let reports = Mutex<[SSHSessionReport]>([])
    }

    var sessionReports: [SSHSessionReport] { log.reports.withLock { $0 } }
    var logLines: [String] { log.lines.withLock { $0 } }

    init(limits: SSHLimits = SSHLimits(), _ change: (inout SSHEnvironment) -> Void = { _ in }) throws {
        var template = Array("/tmp/ssh-test.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw SystemError(call: "mkdtemp") }
        let directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        self.directory = directory
        let account = UserAccount.current(environment: [:])
        var environment = SSHEnvironment(account: account)
        environment.directory = directory
        environment.processVariables = [
            ("PATH", "/usr/bin:/bin"), ("HOME", directory), ("FROM_AGENT", "agent"),
        ]
        environment.agentBinary = "/opt/coder"
        change(&environment)
        let values = environment
        var configuration = SSHService.Configuration(
            hostKey: HostKey(owner: "alice", workspace: "dev", agent: "main")
        ) { values }
        configuration.limits = limits
        let log = Log()
        self.log = log
        configuration.log = { line in log.lines.withLock { $0.append(line) } }
        configuration.report = { report in log.reports.withLock { $0.append(report) } }
        let service = SSHService(configuration)
        self.service = service
        listener = try StreamSocket.listen(on: .loopback(v4: true, port: 0), bothFamilies: false)
        port = try StreamSocket.localAddress(listener.number).port
        let number = try listener.duplicate().release()
        try DedicatedThread(name: "accept") {
            let listener = OwnedDescriptor(taking: number)
            while true {
                var wait = pollfd(fd: listener.number, events: Int16(POLLIN), revents: 0)
                _ = poll(&wait, 1, -1)
                if let accepted = StreamSocket.accept(listener.number) {
                    service.serve(accepted.take(), remoteAddress: "127.0.0.1")
                } else if errno != EAGAIN {
                    return
                }
            }
        }.detach()
    }

    deinit {
        shutdown(listener.number, Int32(SHUT_RDWR))
        service.stop()
        _ = try? Program.run(["/bin/rm", "-rf", directory])
    }

    var options: [String] {
        [
            "-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o",
            "LogLevel=ERROR", "-o", "ControlPath=none",
        ]
    }

    /// Runs `ssh` with a command.
    func ssh(_ arguments: [String], input: [UInt8] = [], extra: [String] = []) throws -> Program.Outcome {
        try Program.run(
            ["/usr/bin/ssh"] + options + extra + ["-p", "\(port)", "user@127.0.0.1"] + arguments, input: input
        )
    }

    func path(_ name: String) -> String { "\(directory)/\(name)" }

    func write(_ bytes: [UInt8], to name: String) throws {
        let file = open(path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard file >= 0 else { throw SystemError(call: "open") }
        defer { close(file) }
        try bytes.withUnsafeBytes { try Descriptor.writeAll(file, $0) }
    }

    func read(_ name: String) throws -> [UInt8] {
        try Program.run(["/bin/cat", path(name)]).output
    }

    /// Waits until `condition` holds, up to five seconds.
    static func eventually(_ condition: () -> Bool) -> Bool {
        for _ in 0..<250 {
            if condition() { return true }
            usleep(20_000)
        }
        return false
    }
}

/// Children of the tests.
enum Program {
    struct Outcome {
        var status: Int32
        var output: [UInt8]
        var error: [UInt8]
        var text: String { String(decoding: output, as: UTF8.self) }
        var errorText: String { String(decoding: error, as: UTF8.self) }
    }

    static let environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "TERM=xterm"].map {
        Array($0.utf8)
    }

    static func start(
        _ arguments: [String], _ streams: ChildProcess.Streams, environment: [String] = []
    ) throws -> ChildProcess {
        try ChildProcess(
            path: Array(arguments[0].utf8), arguments: arguments.map { Array($0.utf8) },
            environment: Self.environment + environment.map { Array($0.utf8) }, directory: nil,
            streams: streams)
    }

    /// Runs to the end, at most 60 seconds.
    static func run(
        _ arguments: [String], input: [UInt8] = [], environment: [String] = [], seconds: UInt64 = 60
    ) throws -> Outcome {
        let stdin = try Descriptor.pipe().release()
        let stdout = try Descriptor.pipe().release()
        let stderr = try Descriptor.pipe().release()
        let child = try start(
            arguments, .descriptors(stdin.0, stdout.1, stderr.1), environment: environment)
        for number in [stdin.0, stdout.1, stderr.1] { close(number) }
        for number in [stdin.1, stdout.0, stderr.0] { try Descriptor.setNonBlocking(number) }
        ChildProcess.blockBrokenPipeSignal()
        var outcome = Outcome(status: -1, output: [], error: [])
        var rest = input[...]
        var input = stdin.1, output = stdout.0, error = stderr.0
        if rest.isEmpty { close(input); input = -1 }
        let deadline = Clock.monotonicNanoseconds() + seconds * 1_000_000_000
        var buffer = [UInt8](repeating: 0, count: 1 << 17)
        while output >= 0 || error >= 0 {
            guard Clock.monotonicNanoseconds() < deadline else {
                child.signal(SIGKILL)
                break
            }
            var list = [
                pollfd(fd: output, events: Int16(POLLIN), revents: 0),
                pollfd(fd: error, events: Int16(POLLIN), revents: 0),
                pollfd(fd: input, events: Int16(POLLOUT), revents: 0),
            ]
            _ = poll(&list, 3, 500)
            for (index, number) in [output, error].enumerated() where list[index].revents != 0 {
                let result = buffer.withUnsafeMutableBytes { Descriptor.read(number, into: $0) }
                if case .moved(let count) = result {
                    if index == 0 {
                        outcome.output += buffer[..<count]
                    } else {
                        outcome.error += buffer[..<count]
                    }
                } else if result != .wouldBlock {
                    close(number)
                    if index == 0 { output = -1 } else { error = -1 }
                }
            }
            guard input >= 0, list[2].revents != 0 else { continue }
            switch rest.withUnsafeBytes({ Descriptor.write(input, $0, isSocket: false) }) {
            case .moved(let count): rest = rest.dropFirst(count)
            case .failed: rest = []
            default: break
            }
            if rest.isEmpty { close(input); input = -1 }
        }
        for number in [input, output, error] where number >= 0 { close(number) }
        outcome.status = wait(child, until: deadline)
        return outcome
    }

    static func wait(_ child: borrowing ChildProcess, until deadline: UInt64) -> Int32 {
        while true {
            switch child.reap() {
            case .code(let code): return code
            case .signal(let number, _): return 1000 + number
            case nil: break
            }
            if Clock.monotonicNanoseconds() > deadline { child.signal(SIGKILL) }
            usleep(5_000)
        }
    }
}

/// A program in a terminal, driven by what it shows.
final class TerminalProgram {
    let terminal: PseudoTerminal
    let child: ChildProcess
    var shown: [UInt8] = []

    init(_ arguments: [String], rows: UInt32 = 24, columns: UInt32 = 80) throws {
        terminal = try PseudoTerminal()
        terminal.resize(rows: rows, columns: columns, pixelWidth: 0, pixelHeight: 0)
        child = try Program.start(arguments, .terminal(path: terminal.path))
    }

    func type(_ text: String) throws {
        try Array(text.utf8).withUnsafeBytes { try Descriptor.writeAll(terminal.master.number, $0) }
    }

    /// Reads until `text` is shown, up to ten seconds.
    func expect(_ text: String) -> Bool {
        let wanted = Array(text.utf8)
        let deadline = Clock.monotonicNanoseconds() + 10_000_000_000
        var buffer = [UInt8](repeating: 0, count: 65536)
        while Clock.monotonicNanoseconds() < deadline {
            if let range = shown.firstRange(of: wanted) {
                shown.removeFirst(range.upperBound)
                return true
            }
            var wait = pollfd(fd: terminal.master.number, events: Int16(POLLIN), revents: 0)
            _ = poll(&wait, 1, 100)
            let result = buffer.withUnsafeMutableBytes { Descriptor.read(terminal.master.number, into: $0) }
            if case .moved(let count) = result { shown += buffer[..<count] }
        }
        return false
    }

    func end() -> Int32 { Program.wait(child, until: Clock.monotonicNanoseconds() + 10_000_000_000) }
}
