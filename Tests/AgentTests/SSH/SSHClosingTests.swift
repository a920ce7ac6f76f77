// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import SSH
import Synchronization
import Testing

/// Ends of channels and connections: nothing that was sent before is lost, nothing that is over stays.
@Suite(.serialized) struct SSHClosingTests {
    /// 1.75 MiB: more than a pipe holds, less than a channel's window.
    private static let data = SSHSessionTests.noise(7 << 18)

    /// A client that sends everything and closes at once, or whose connection ends: a slow reader gets it all.
    @Test(arguments: ["close", "vanish"]) func aSlowReaderGetsWhatWasSent(end: String) throws {
        let harness = try SSHHarness()
        let client = try RawClient(harness.service)
        let channel = try client.open(.session)
        let file = harness.path("file")
        #expect(
            try client.request(channel, .exec(ByteString("sleep 1; cat > \(file); mv \(file) \(file).done"))))
        try client.write(channel, Self.data)
        if end == "close" {
            client.ssh.sendEOF(channel)
            client.ssh.close(channel)
            try client.pump { $0 == .closed(channel) }
        } else {
            try client.flushAll()
            client.vanish()
        }
        #expect(SSHHarness.eventually { access("\(file).done", F_OK) == 0 })
        #expect(try harness.read("file.done") == Self.data)
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 || end == "close" })
    }

    /// A target that answers and hangs up while the client still sends (HTTP 413): the answer comes whole.
    @Test func anAnswerBeforeTheCloseArrives() throws {
        let harness = try SSHHarness()
        let path = harness.path("target")
        let listener = try StreamSocket.listen(onPath: Array(path.utf8)).release()
        let answer = Self.data.prefix(180_000)
        let thread = try DedicatedThread(name: "target") {
            let listener = OwnedDescriptor(taking: listener)
            guard Descriptor.waitReadable(listener.number, nanoseconds: 20_000_000_000),
                let accepted = StreamSocket.accept(listener.number)?.take()
            else { return }
            _ = Descriptor.waitReadable(accepted.number, nanoseconds: 20_000_000_000)
            try? Descriptor.setNonBlocking(accepted.number, false)
            answer.withUnsafeBytes { try? Descriptor.writeAll(accepted.number, $0) }
        }
        let client = try RawClient(harness.service)
        let channel = try client.open(.directStreamLocal(path: ByteString(path)))
        try client.write(channel, [1, 2, 3])
        try client.flushAll()
        // The connection's thread is kept busy with what nobody reads, until the target is gone.
        try client.write(channel, [UInt8](repeating: 7, count: 1 << 20))
        try client.pump {
            switch $0 {
            case .endOfData(channel), .closed(channel): true
            default: false
            }
        }
        thread.join()
        #expect(client.received == answer.count)
    }

    /// `ssh host yes | head -1` ends, because the client tells that it reads no more and the program is told.
    @Test func aProgramWhoseOutputNobodyReadsEnds() throws {
        let harness = try SSHHarness()
        let words = harness.options + ["-p", "\(harness.port)", "u@127.0.0.1"]
        let outcome = try Program.run([
            "/bin/sh", "-c",
            "/usr/bin/ssh \(words.joined(separator: " ")) 'yes; echo over > \(harness.path("over"))' | head -1",
        ])
        #expect(outcome.text == "y\n", "\(outcome.errorText)")
        #expect(SSHHarness.eventually { access(harness.path("over"), F_OK) == 0 })
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 })
    }

    @Test func aSessionForAContainerIsRefused() throws {
        let harness = try SSHHarness()
        let outcome = try harness.ssh(["echo here"], extra: ["-o", "SetEnv=CODER_CONTAINER=web"])
        #expect(outcome.status == 229)
        #expect(outcome.text.isEmpty && outcome.errorText.contains("CODER_CONTAINER"), "\(outcome)")
        #expect(try harness.ssh(["echo here"], extra: ["-o", "SetEnv=CODER_CONTAINER="]).text == "here\n")
    }

    // MARK: Remote forwards

    private func freePort() throws -> UInt32 {
        let listener = try StreamSocket.listen(on: .loopback(v4: true, port: 0), bothFamilies: false)
        return UInt32(try StreamSocket.localAddress(listener.number).port)
    }

    /// The connection of a client that was killed lives on: its successor gets the port all the same. A client that
    /// can be reached keeps it.
    @Test func aSuccessorGetsThePort() throws {
        let harness = try SSHHarness()
        let port = try freePort()
        let isReachable = Mutex(true)
        let first = try RawClient(harness.service, isReachable: { isReachable.withLock { $0 } })
        #expect(try first.requestGlobal(.tcpipForward(host: "localhost", port: port)))
        let second = try RawClient(harness.service)
        #expect(try !second.requestGlobal(.tcpipForward(host: "localhost", port: port)))
        isReachable.withLock { $0 = false }
        #expect(try second.requestGlobal(.tcpipForward(host: "localhost", port: port)))
        let connection = try StreamSocket.connect(to: .loopback(v4: true, port: UInt16(port)))
        let event = try second.pump { if case .channelRequested = $0 { true } else { false } }
        guard case .channelRequested(_, .forwardedTCPIP(_, port, _, _)) = event else {
            Issue.record("\(event)")
            return
        }
        withExtendedLifetime(connection) {}
        withExtendedLifetime(first) {}
    }

    /// The old connection of the same forward ends later: the socket of the new one stays.
    @Test func aSuccessorKeepsItsSocket() throws {
        let harness = try SSHHarness()
        let path = harness.path("deep/er/socket")
        let first = try RawClient(harness.service)
        #expect(try first.requestGlobal(.streamLocalForward(path: ByteString(path))))
        let second = try RawClient(harness.service)
        #expect(try second.requestGlobal(.streamLocalForward(path: ByteString(path))))
        first.vanish()
        #expect(SSHHarness.eventually { harness.service.connectionCount == 1 })
        let connection = try StreamSocket.connect(toPath: Array(path.utf8))
        try second.pump { if case .channelRequested = $0 { true } else { false } }
        second.vanish()
        #expect(SSHHarness.eventually { access(path, F_OK) != 0 })
        withExtendedLifetime(connection) {}
    }

    // MARK: Limits

    @Test func onePeerDoesNotTakeAllPlaces() throws {
        let harness = try SSHHarness { _ in }
        var configuration = SSHService.Configuration(
            hostKey: HostKey(owner: "alice", workspace: "dev", agent: "main")
        ) { SSHEnvironment(account: UserAccount.current(environment: [:])) }
        configuration.connectionLimit = 4
        let service = SSHService(configuration)
        let clients = try (0..<3).map { _ in try RawClient(service) }
        #expect(service.connectionCount == 2)
        let other = try RawClient(service, remoteAddress: "10.0.0.2")
        #expect(service.connectionCount == 3)
        #expect(service.counters.refused == 1)
        service.stop()
        withExtendedLifetime((clients, other, harness)) {}
    }
}
