// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import SSH
import Testing

/// Our client's transport against OpenSSH's server, which runs as a child on a socket pair. `none` is not
/// good enough for it: what is checked is everything up to its refusal, under the keys of a real exchange.
@Suite(.serialized, .enabled(if: OpenSSHServer.isUsable, "no OpenSSH server"))
struct OpenSSHServerTests {
    @Test(arguments: CipherName.allCases) func keysAndRefusal(cipher: CipherName) throws {
        let server = try OpenSSHServer()
        var random = SystemRandomNumberGenerator()
        var client = SSHConnection(
            clientNamed: "nobody", ciphers: [cipher], seed: EntropySeed(using: &random))
        var events: [SSHEvent] = []
        var refusal: SSHError?
        let deadline = Clock.monotonicNanoseconds() + 10_000_000_000
        while refusal == nil, Clock.monotonicNanoseconds() < deadline {
            try client.outgoing.withMemoryRebound(to: UInt8.self) {
                try Descriptor.writeAll(server.socket.number, UnsafeRawBufferPointer($0))
            }
            client.consumeOutgoing(client.outgoingCount)
            var wait = pollfd(fd: server.socket.number, events: Int16(POLLIN), revents: 0)
            _ = poll(&wait, 1, 200)
            let count = client.receive(upTo: 4096) { space in
                if case .moved(let count) = Descriptor.read(server.socket.number, into: space) {
                    count
                } else {
                    0
                }
            }
            if count == 0, wait.revents & Int16(POLLHUP) != 0 { break }
            do {
                while let event = try client.nextEvent() { events.append(event) }
            } catch {
                refusal = error
            }
        }
        guard case .authenticationRefused(let methods)? = refusal else {
            Issue.record("\(String(describing: refusal)) after \(events)")
            return
        }
        #expect(methods.contains("publickey"))
        #expect(events.contains { if case .hostKey = $0 { true } else { false } })
        expect(client.peerVersion?.hasPrefix("SSH-2.0-OpenSSH") == true)
        expect(client.counters.keyExchanges == 1)
    }
}

/// `sshd -i` with a key of its own.
final class OpenSSHServer {
    let socket: OwnedDescriptor
    private let child: ChildProcess

    static var isUsable: Bool {
        access("/usr/sbin/sshd", X_OK) == 0 && access("/usr/bin/ssh-keygen", X_OK) == 0
            && (getuid() != 0 || access("/run/sshd", F_OK) == 0)
    }

    init() throws {
        var template = Array("/tmp/sshd-test.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw SystemError(call: "mkdtemp") }
        let directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let key = "\(directory)/key", configuration = "\(directory)/config"
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        defer { close(null) }
        func start(_ words: [String], _ streams: ChildProcess.Streams) throws(SystemError) -> ChildProcess {
            try ChildProcess(
                path: Array(words[0].utf8), arguments: words.map { Array($0.utf8) },
                environment: [Array("PATH=/usr/bin:/bin".utf8)], directory: nil, streams: streams)
        }
        let maker = try start(
            ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key],
            .descriptors(null, null, null))
        while maker.reap() == nil { usleep(2_000) }
        let text = "HostKey \(key)\nUsePAM no\nPidFile none\n"
        let file = open(configuration, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
        try Array(text.utf8).withUnsafeBytes { try Descriptor.writeAll(file, $0) }
        close(file)
        let (own, other) = try Descriptor.socketPair().release()
        child = try start(
            ["/usr/sbin/sshd", "-i", "-e", "-f", configuration], .descriptors(other, other, null))
        close(other)
        try Descriptor.setNonBlocking(own)
        socket = OwnedDescriptor(taking: own)
        self.directory = directory
    }

    private let directory: String

    deinit {
        child.signal(SIGKILL)
        while child.reap() == nil { usleep(2_000) }
        for name in ["key", "key.pub", "config"] { unlink("\(directory)/\(name)") }
        rmdir(directory)
    }
}
