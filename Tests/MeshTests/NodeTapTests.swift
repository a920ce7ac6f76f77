// SPDX-License-Identifier: Apache-2.0

import LinuxIO
import Mesh
import Synchronization
import Testing

/// What a node shows of its packets.
@Suite(.serialized, .timeLimit(.minutes(3))) struct NodeTapTests {
    private final class Seen: Sendable {
        private let packets = Mutex<[[UInt8]]>([])
        var all: [[UInt8]] { packets.withLock { $0 } }
        func add(_ packet: RawSpan) {
            let bytes = packet.withUnsafeBytes { Array($0) }
            packets.withLock { $0.append(bytes) }
        }
    }

    @Test(arguments: [false, true]) func everyPacketOfTheStackIsShown(isRelayed: Bool) async throws {
        let seen = Seen()
        let pair = try await NodePair(isDirectBlocked: isRelayed) {
            if $0.addresses == [NodePair.clientAddress] { $0.packetTap = { seen.add($0) } }
        }
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        #expect(await NodePair.echoes(descriptor.number, count: 1 << 20, seed: 8))
        descriptor.close()
        task.cancel()
        await pair.close()
        let packets = seen.all
        let client = packets.filter { source($0) == NodePair.clientAddress }
        let server = packets.filter { source($0) == NodePair.serverAddress }
        // A megabyte each way, in packets of at most 1,280 bytes.
        #expect(client.count > 800 && server.count > 800 && client.count + server.count == packets.count)
        for packet in packets {
            #expect(packet[0] >> 4 == 6 && packet.count >= 40 + Int(packet[4]) << 8 | Int(packet[5]))
        }
        #expect(packets.map(\.count).max() ?? 0 <= 1_280)
    }

    private func source(_ packet: [UInt8]) -> IPAddress {
        let half = { (at: Int) in packet[at..<at + 8].reduce(UInt64(0)) { $0 << 8 | UInt64($1) } }
        return IPAddress(high: half(8), low: half(16))
    }
}
