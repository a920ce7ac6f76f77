// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Synchronization
import Testing

/// Each byte is changed by its place in the stream, so that one that is lost, repeated or out of order spoils all that
/// follows.
final class TestCipher: RelayCipher, @unchecked Sendable {  // each side is used by one thread
    /// Sent at the end of a connection.
    static let end = [UInt8](repeating: 0xee, count: 11)

    private var received = 0
    private var sent = 0
    private let isEnded = Atomic<Bool>(false)
    /// What it answers to each piece that it gets.
    private let answer: Int

    init(answer: Int = 0) { self.answer = answer }

    var isOver: Bool { isEnded.load(ordering: .relaxed) }

    private static func key(_ place: Int) -> UInt8 { UInt8(truncatingIfNeeded: place &* 31 &+ place >> 8) }

    func open(_ bytes: UnsafeMutableRawBufferPointer) {
        for index in bytes.indices { bytes[index] ^= Self.key(received + index) }
        received += bytes.count
    }

    func sealed(_ bytes: [UInt8]) -> [UInt8] {
        defer { sent += bytes.count }
        return bytes.enumerated().map { $1 ^ Self.key(sent + $0) }
    }

    func receive(
        _ sealed: UnsafeRawBufferPointer, into plain: UnsafeMutableRawBufferPointer, output: inout [UInt8]
    ) -> Int {
        plain.copyMemory(from: sealed)
        open(UnsafeMutableRawBufferPointer(rebasing: plain[..<sealed.count]))
        output += self.sealed([UInt8](repeating: 0, count: answer))
        // A client says that it is done by a byte that begins no frame.
        if sealed.count == 1, plain[0] == 0xff { isEnded.store(true, ordering: .relaxed) }
        return isOver ? 0 : sealed.count
    }

    func seal(_ plain: UnsafeRawBufferPointer, output: inout [UInt8]) -> Bool {
        output += sealed(Array(plain))
        return !isOver
    }

    func end(output: inout [UInt8]) { output += Self.end }
}

/// Connections whose bytes are not those of their sockets.
@Suite(.serialized) struct RelayCipherTests {
    private func frame(to client: TestClient, _ bytes: Int) -> [UInt8] {
        DERP.frame(.sendPacket, client.publicKey.bytes, [UInt8](repeating: 3, count: bytes))
    }

    /// Packets of all sizes between sealed and plain clients, and to oneself.
    @Test(arguments: [false, true]) func packetsPass(_ usesTCP: Bool) throws {
        let harness = try RelayHarness(usesTCP: usesTCP)
        let clients = [
            try harness.client(isSealed: true), try harness.client(), try harness.client(isSealed: true),
        ]
        for sender in clients {
            for receiver in clients {
                for size in [0, 1, 1_400, 16_384, 65_536] {
                    let payload = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 7) }
                    try sender.send(payload, to: receiver)
                    #expect(try receiver.waitForPacket() == (sender.publicKey, payload))
                }
            }
        }
    }

    /// What a client left behind is bounded when it reads nothing: sealed bytes count, and go with it.
    @Test func whatIsSealedIsBounded() throws {
        let harness = try RelayHarness(adjust: {
            $0.totalQueueBytes = 1 << 20
            $0.pauseNanoseconds = 0
            $0.stallNanoseconds = 2_000_000_000
        })
        let sender = try harness.client()
        let deaf = try (0..<30).map { _ in try harness.client(isSealed: true) }
        for client in deaf {
            for _ in 0..<10 { try sender.write(frame(to: client, 60_000)) }
            #expect(harness.relay.counters.queuedBytes < (1 << 20) + 30 * (128 << 10))
        }
        try sender.send([1], to: sender)
        while try sender.waitForPacket().bytes != [1] {}
        #expect(harness.relay.counters.droppedQueueHead > 0)
        let isOver = harness.eventually { $0.stalls == 30 && $0.queuedBytes == 0 && $0.connections == 1 }
        #expect(isOver, "\(harness.relay.counters)")
        withExtendedLifetime(deaf) {}
    }

    /// Whoever makes a cipher answer and does not read the answers is closed.
    @Test func answersAreBounded() throws {
        let harness = try RelayHarness(adjust: { $0.kernelUnsentBytes = 16 << 10 })
        let other = try harness.client()
        let descriptor = try harness.connect(cipher: TestCipher(answer: 10_000))
        // A login that is begun and goes on.
        let login: [UInt8] = [DERPFrameType.clientInfo.rawValue, 0, 3, 0, 0]
        var sent = 0
        for byte in TestCipher().sealed(login + [UInt8](repeating: 0, count: 2_000)) {
            guard Glibc.send(descriptor, [byte], 1, Int32(MSG_NOSIGNAL)) == 1 else { break }
            sent += 1
            usleep(500)
        }
        #expect(sent > login.count && sent < login.count + 2_000)
        #expect(harness.eventually { $0.connections == 1 && $0.queuedBytes == 0 })
        try other.send([1], to: other)
        #expect(try other.waitForPacket().bytes == [1])
        Glibc.close(descriptor)
    }

    /// The client says that it is done; so does the relay, whoever ends the connection.
    @Test(arguments: [false, true]) func endsAreSaid(_ byRelay: Bool) throws {
        let harness = try RelayHarness()
        let client = try harness.client(isSealed: true)
        if byRelay { harness.relay.close() } else { try client.write([0xff]) }
        var buffer = [UInt8](repeating: 0, count: 1_000)
        var read: [UInt8] = []
        while client.isReadable(5_000) {
            let count = Glibc.read(client.descriptor, &buffer, buffer.count)
            guard count > 0 else { break }
            read += buffer[..<count]
        }
        #expect(Array(read.suffix(TestCipher.end.count)) == TestCipher.end)
        #expect(harness.eventually { $0.connections == 0 })
    }
}
