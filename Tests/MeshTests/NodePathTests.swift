// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

/// What a node does when its surroundings misbehave: refused ports, paths that carry no data, changing networks.
@Suite(.serialized, .timeLimit(.minutes(3))) struct NodePathTests {
    @Test func aRefusedPortIsRefusedBeforeTheHandshake() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listenAny()
        let task = Task {
            for await stream in incoming where stream.local.port != 90 { stream.reject() }
        }
        await #expect(throws: NodeError.refused) {
            _ = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 89))
        }
        task.cancel()
        await pair.close()
    }

    @Test func anAcceptedStreamOfAnyPortCarriesEarlyBytes() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listenAny()
        let task = Task { () -> [UInt8] in
            for await stream in incoming {
                // The owner takes its time, as a dial to a local service may.
                try? await Task.sleep(for: .milliseconds(100))
                guard let descriptor = try? stream.descriptor() else { return [] }
                let number = descriptor.number
                Blocking.write(number, Array("banner".utf8))
                let received = await Blocking.run { Blocking.readAll(number) }
                descriptor.close()
                return received
            }
            return []
        }
        let descriptor = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 91))
        let number = descriptor.number
        Blocking.write(number, Array("hello".utf8))
        Descriptor.finishWriting(number)
        #expect(await Blocking.run { Blocking.readAll(number) } == Array("banner".utf8))
        #expect(await task.value == Array("hello".utf8))
        descriptor.close()
        await pair.close()
    }

    @Test func aPathThatCarriesOnlySmallTalkIsLeft() async throws {
        let pair = try await NodePair()
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let isDirect = try await pair.waitForPath(seconds: 5) { if case .direct = $0 { true } else { false } }
        #expect(isDirect)
        let number = descriptor.number
        let isOver = Flag()
        async let result = NodePair.echoes(number, count: 1 << 20, seed: 3, until: isOver)
        try await Task.sleep(for: .milliseconds(200))
        pair.client.dropUDP(.data)
        pair.server.dropUDP(.data)
        let isRelayed = try await pair.waitForPath(seconds: 8) { $0 == .relay(1) }
        isOver.set()
        #expect(isRelayed)
        #expect(await result)
        let counters = try await pair.client.status().counters
        #expect(counters.stalls > 0)
        descriptor.close()
        task.cancel()
        await pair.close()
    }

    /// Discovery is answered, handshakes are not: what a filter that knows WireGuard does.
    @Test func aPathThatDropsTheTunnelIsLeftAtFirstContact() async throws {
        let pair = try await NodePair()
        pair.client.dropUDP(.tunnel)
        pair.server.dropUDP(.tunnel)
        for _ in 0..<100 {
            if case .direct = try await pair.client.ping(NodePair.serverID).path { break }
            try await Task.sleep(for: .milliseconds(20))
        }
        try await pair.client.reachable(NodePair.serverAddress, within: .seconds(20))
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        #expect(await NodePair.echoes(descriptor.number, count: 1 << 18, seed: 4))
        descriptor.close()
        task.cancel()
        await pair.close()
    }

    /// Somebody asks about a connection once it is broken.
    @Test func theRecordOfAPeerOutlivesIt() async throws {
        let pair = try await NodePair()
        try await pair.client.reachable(NodePair.serverAddress, within: .seconds(20))
        pair.client.removePeer(NodePair.serverID)
        let recordings = try await pair.client.recordings()
        #expect(recordings.map(\.peer) == [NodePair.serverID])
        #expect(recordings.map(\.isDeparted) == [true])
        #expect(recordings.first?.addresses == [NodePair.serverAddress])
        #expect(recordings.first?.recording.replay().isFaithful == true)
        await pair.close()
    }

    /// Two STUN servers in one region, as older deployments have them.
    @Test func everyStunServerOfARegionIsAsked() async throws {
        let ports = try [LoopbackUDP(), LoopbackUDP()]
        let pair = try await NodePair {
            $0.derpMap.regions[1]?.nodes += ports.enumerated().map { place, socket in
                var node = DERPMap.Node(name: "1stun\(place)", regionID: 1, hostName: "127.0.0.1")
                node.isSTUNOnly = true
                node.stunPort = Int(socket.port)
                return node
            }
        }
        for socket in ports { #expect(await Blocking.run { socket.hasDatagram(withinSeconds: 10) }) }
        await pair.close()
    }

    @Test func aTakenPortIsReplaced() async throws {
        let taken = try LoopbackUDP()
        let pair = try await NodePair { $0.listenPort = taken.port }
        let ports = try await [pair.client.status().ports.v4, pair.server.status().ports.v4]
        #expect(ports.allSatisfy { $0 != 0 && $0 != taken.port })
        await pair.close()
    }

    @Test func socketsAreOpenedAnewAndKeepTheirPorts() async throws {
        let pair = try await NodePair()
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let isDirect = try await pair.waitForPath(seconds: 5) { if case .direct = $0 { true } else { false } }
        #expect(isDirect)
        let before = try await pair.client.status()
        let number = descriptor.number
        let isOver = Flag()
        async let result = NodePair.echoes(number, count: 1 << 20, seed: 6, until: isOver)
        for _ in 0..<5 {
            try await Task.sleep(for: .milliseconds(20))
            pair.client.linkChanged()
            pair.server.linkChanged()
        }
        isOver.set()
        #expect(await result)
        let after = try await pair.client.status()
        #expect(before.ports == after.ports)
        #expect(after.counters.sentDatagrams >= before.counters.sentDatagrams)
        descriptor.close()
        task.cancel()
        await pair.close()
    }
}

/// A UDP port of the loopback interface that only listens.
final class LoopbackUDP: Sendable {
    let port: UInt16
    private let number: Int32

    init() throws {
        number = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let number = number
        let isBound = withUnsafeMutableBytes(of: &address) { bytes in
            let pointer = bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self)
            return bind(number, pointer, length) == 0 && getsockname(number, pointer, &length) == 0
        }
        guard isBound else { throw SystemError(call: "bind") }
        port = UInt16(bigEndian: address.sin_port)
    }

    deinit { close(number) }

    func hasDatagram(withinSeconds seconds: Int32) -> Bool {
        var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
        return poll(&wait, 1, seconds * 1_000) == 1
    }
}
