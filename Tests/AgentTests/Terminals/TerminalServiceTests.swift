// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import Synchronization
import Testing

/// Reconnecting terminals with a real shell, as the web terminal uses them.
@Suite(.timeLimit(.minutes(1))) struct TerminalServiceTests {
    private static let id = "11111111-2222-4333-8444-555555555555"

    /// One viewer's end.
    private final class Viewer {
        let socket: OwnedDescriptor
        private(set) var seen: [UInt8] = []

        init(
            _ service: TerminalService, greeting: String? = nil, command: String = "",
            id: String = TerminalServiceTests.id
        ) throws {
            let (mine, theirs) = try Descriptor.socketPair().release()
            socket = OwnedDescriptor(taking: mine)
            service.serve(OwnedDescriptor(taking: theirs), remoteAddress: "fd7a::1")
            let json =
                greeting
                ?? #"{"ID":"\#(id)","Height":30,"Width":90,"Command":"\#(command)","Container":"","#
                + #""ContainerUser":"","BackendType":""}"#
            let bytes = Array(json.utf8)
            try send([UInt8(bytes.count & 0xff), UInt8(bytes.count >> 8)] + bytes)
        }

        func send(_ bytes: [UInt8]) throws {
            try bytes.withUnsafeBytes { try Descriptor.writeAll(socket.number, $0) }
        }

        func type(_ text: String) throws { try send(Array(#"{"data":"\#(text)"}"#.utf8)) }

        /// Reads until `text` is there, up to 15 seconds.
        func sees(_ text: String) -> Bool {
            let deadline = Clock.monotonicNanoseconds() + 15_000_000_000
            let wanted = Array(text.utf8)
            // Each byte is looked at once, also when megabytes come before the text.
            var start = 0
            while Clock.monotonicNanoseconds() < deadline {
                if let range = seen[start...].firstRange(of: wanted) {
                    seen.removeFirst(range.upperBound)
                    return true
                }
                start = max(0, seen.count - wanted.count + 1)
                guard readOnce() else { return false }
            }
            return false
        }

        /// Whether the other side hangs up within 15 seconds.
        func isHungUpOn() -> Bool {
            let deadline = Clock.monotonicNanoseconds() + 15_000_000_000
            while Clock.monotonicNanoseconds() < deadline {
                if !readOnce() { return true }
            }
            return false
        }

        private func readOnce() -> Bool {
            guard Descriptor.waitReadable(socket.number, nanoseconds: 200_000_000) else { return true }
            var piece = [UInt8](repeating: 0, count: 65_536)
            let count = read(socket.number, &piece, piece.count)
            guard count > 0 else { return false }
            seen += piece[..<count]
            return true
        }
    }

    private final class Reports: Sendable {
        let all = Mutex<[SSHSessionReport]>([])
    }

    private func service(
        reports: Reports = Reports(), _ change: (inout TerminalService.Configuration) -> Void = { _ in }
    ) -> TerminalService {
        var environment = SSHEnvironment(account: UserAccount(name: "u", home: "/tmp", shell: "/bin/sh"))
        environment.processVariables = [("PATH", "/usr/bin:/bin"), ("PS1", "prompt> ")]
        let values = environment
        var configuration = TerminalService.Configuration { values }
        configuration.report = { report in reports.all.withLock { $0.append(report) } }
        change(&configuration)
        return TerminalService(configuration)
    }

    private func eventually(_ condition: () -> Bool) -> Bool {
        for _ in 0..<500 {
            if condition() { return true }
            usleep(20_000)
        }
        return false
    }

    @Test func aShellOutlivesItsViewer() async throws {
        try await DedicatedThread.run {
            let reports = Reports()
            let service = self.service(reports: reports)
            defer { service.stop() }
            do {
                let first = try Viewer(service)
                try first.type(#"stty size; X=kept; echo \"$TERM/$X\"\r"#)
                #expect(first.sees("30 90"))
                #expect(first.sees("xterm-256color/kept"))
            }
            #expect(self.eventually { reports.all.withLock { $0.count } == 2 })
            let second = try Viewer(service)
            #expect(second.sees("xterm-256color/kept"), "nothing is played back")
            try second.type(#"echo \"<$X>\"\r"#)
            #expect(second.sees("<kept>"))
            try second.send(Array(#"{"data":"stty size\r","height":44,"width":123}"#.utf8))
            try second.type(#"stty size\r"#)
            #expect(second.sees("44 123"))
            try second.type(#"exit 3\r"#)
            #expect(second.isHungUpOn())
            #expect(self.eventually { service.count == 0 })
            let all = reports.all.withLock { $0 }
            #expect(all.map(\.exitStatus) == [nil, 0, nil, 3])
            #expect(all.allSatisfy { $0.kind == .reconnectingTerminal && $0.remoteAddress == "fd7a::1" })
            #expect(
                all[0].number == all[1].number && all[2].number == all[3].number
                    && all[1].number != all[2].number)
        }
    }

    @Test func allViewersSeeTheSame() async throws {
        try await DedicatedThread.run {
            let service = self.service()
            defer { service.stop() }
            let first = try Viewer(service), second = try Viewer(service)
            let stranger = try Viewer(service, id: "99999999-2222-4333-8444-555555555555")
            try first.type(#"echo from-$((40+2))\r"#)
            #expect(first.sees("from-42"))
            #expect(second.sees("from-42"))
            try second.type(#"echo back-$((40+3))\r"#)
            #expect(first.sees("back-43"))
            try stranger.type(#"echo alone-$((40+4))\r"#)
            #expect(stranger.sees("alone-44"))
            #expect(service.count == 2)
            #expect(!String(decoding: stranger.seen, as: UTF8.self).contains("back"))
        }
    }

    @Test func aMebibyteIsPastedWhole() async throws {
        try await DedicatedThread.run {
            let service = self.service()
            defer { service.stop() }
            let viewer = try Viewer(
                service, command: "stty raw -echo; echo go; head -c 1048576 | cksum; sleep 0.2")
            #expect(viewer.sees("go"))
            let text = String(repeating: "0123456789abcdef", count: 65_536)
            try viewer.type(text)
            let sum = try Program.run(["/usr/bin/cksum"], input: Array(text.utf8)).text
            #expect(viewer.sees(String(sum.prefix { $0 != "\n" })))
            #expect(viewer.isHungUpOn())
        }
    }

    /// More than any buffer holds while a second viewer does not read: it is let go, the first sees all.
    @Test func aSlowViewerHoldsNobodyUpForEver() async throws {
        try await DedicatedThread.run {
            let service = self.service { $0.stallNanoseconds = 1_000_000_000 }
            defer { service.stop() }
            let reader = try Viewer(service, command: "sleep 0.3; seq 1 400000; echo the-end; sleep 1")
            let sleeper = try Viewer(service)
            #expect(reader.sees("the-end"))
            #expect(sleeper.isHungUpOn())
        }
    }

    @Test func whatIsNoGreetingIsHungUpOn() async throws {
        try await DedicatedThread.run {
            let service = self.service { $0.greetingNanoseconds = 500_000_000 }
            for greeting in ["", "{", "{}", #"{"ID":"x"}"#, #"{"ID":"\#(Self.id)","BackendType":"tmux"}"#] {
                #expect(try Viewer(service, greeting: greeting).isHungUpOn(), "\(greeting)")
            }
            let container = try Viewer(service, greeting: #"{"ID":"\#(Self.id)","Container":"c"}"#)
            #expect(container.sees("not available"))
            // Half a greeting runs into the time limit.
            let (mine, theirs) = try Descriptor.socketPair().release()
            let half = OwnedDescriptor(taking: mine)
            service.serve(OwnedDescriptor(taking: theirs), remoteAddress: "")
            try [UInt8](arrayLiteral: 9, 0, 123).withUnsafeBytes { try Descriptor.writeAll(half.number, $0) }
            #expect(Descriptor.waitReadable(half.number, nanoseconds: 10_000_000_000))
            #expect(service.count == 0)
        }
    }

    @Test func aDesertedTerminalIsHungUp() async throws {
        try await DedicatedThread.run {
            let service = self.service { $0.idleNanoseconds = 400_000_000 }
            let mark = "/tmp/terminal-test-\(getpid())"
            defer { unlink(mark) }
            do {
                let viewer = try Viewer(
                    service,
                    command: "trap 'echo hup > \(mark); exit' HUP; echo up; while :; do sleep 0.1; done")
                #expect(viewer.sees("up"))
                try viewer.send(Array("nonsense".utf8))
                #expect(viewer.isHungUpOn())
            }
            #expect(service.count == 1)
            #expect(self.eventually { service.count == 0 && access(mark, F_OK) == 0 })
        }
    }

    @Test func thereIsALimit() async throws {
        try await DedicatedThread.run {
            let service = self.service {
                $0.terminalLimit = 1
                $0.viewerLimit = 1
            }
            let first = try Viewer(service)
            try first.type(#"echo here-$((1+1))\r"#)
            #expect(first.sees("here-2"))
            #expect(try Viewer(service).isHungUpOn())
            #expect(try Viewer(service, id: "99999999-2222-4333-8444-555555555555").sees("no room"))
            service.stop()
            #expect(first.isHungUpOn())
            #expect(self.eventually { service.count == 0 })
            // The greeting may not even be taken.
            #expect((try? Viewer(service))?.isHungUpOn() ?? true)
        }
    }
}
