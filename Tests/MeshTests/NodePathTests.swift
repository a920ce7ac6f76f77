// SPDX-License-Identifier: Apache-2.0

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
