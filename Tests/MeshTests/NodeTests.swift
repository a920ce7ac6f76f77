// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

@Suite(.serialized, .timeLimit(.minutes(3))) struct NodeTests {
    @Test func bytesFlowThroughTheRelayAtOnce() async throws {
        let pair = try await NodePair(isDirectBlocked: true)
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let number = descriptor.number
        #expect(await NodePair.echoes(number, count: 1 << 20, seed: 1))
        let status = try await pair.client.status()
        #expect(status.peers.first?.path == .relay(1))
        #expect(status.counters.relaySent > 500)
        #expect(status.ownNode.endpoints.isEmpty)
        descriptor.close()
        task.cancel()
        await pair.close()
    }

    @Test func aDirectPathIsFoundAndCarriesTheBytes() async throws {
        let pair = try await NodePair()
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let isDirect = try await pair.waitForPath(seconds: 5) { if case .direct = $0 { true } else { false } }
        #expect(isDirect)
        let before = try await pair.client.status().counters
        let number = descriptor.number
        #expect(await NodePair.echoes(number, count: 8 << 20, seed: 2))
        let after = try await pair.client.status().counters
        #expect(after.sentBytes - before.sentBytes > 8 << 20)
        // Heartbeats and the like may still be relayed, data not.
        #expect(after.relaySent - before.relaySent < 200)
        descriptor.close()
        task.cancel()
        await pair.close()
    }

    @Test func whenTheDirectPathDiesTheStreamGoesOnThroughTheRelay() async throws {
        let pair = try await NodePair()
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let isDirect = try await pair.waitForPath(seconds: 5) { if case .direct = $0 { true } else { false } }
        #expect(isDirect)
        let number = descriptor.number
        let isOver = Flag()
        async let result = NodePair.echoes(number, count: 1 << 20, seed: 3, until: isOver)
        try await Task.sleep(for: .milliseconds(300))
        pair.client.dropUDP(.all)
        pair.server.dropUDP(.all)
        let isRelayed = try await pair.waitForPath(seconds: 5) { $0 == .relay(1) }
        isOver.set()
        #expect(isRelayed)
        #expect(await result)
        descriptor.close()
        task.cancel()
        await pair.close()
    }

    @Test func streamsOutliveARelayThatGoesAway() async throws {
        let pair = try await NodePair(isDirectBlocked: true)
        let task = try await pair.serveEcho()
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let number = descriptor.number
        let isOver = Flag()
        async let result = NodePair.echoes(number, count: 1 << 20, seed: 4, until: isOver)
        try await Task.sleep(for: .milliseconds(50))
        pair.relay.cut(refusing: false)
        for _ in 0..<1_000 where pair.relay.connects < 4 { try await Task.sleep(for: .milliseconds(10)) }
        isOver.set()
        #expect(await result)
        #expect(pair.relay.connects >= 4)
        descriptor.close()
        task.cancel()
        await pair.close()
    }

    @Test func manyStreamsAtOnce() async throws {
        let pair = try await NodePair()
        let task = try await pair.serveEcho()
        let results = await withTaskGroup(of: Bool.self) { group in
            for seed in 0..<24 {
                group.addTask {
                    guard
                        let descriptor = try? await pair.client.dial(
                            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
                    else { return false }
                    return await NodePair.echoes(descriptor.number, count: 1 << 20, seed: UInt64(seed))
                }
            }
            var results: [Bool] = []
            for await result in group { results.append(result) }
            return results
        }
        #expect(results.filter { $0 }.count == 24)
        task.cancel()
        await pair.close()
    }

    @Test func aClosedPortRefuses() async throws {
        let pair = try await NodePair()
        await #expect(throws: NodeError.refused) {
            _ = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 9))
        }
        let stranger = IPAddress("fd7a:115c:a1e0::99")!
        await #expect(throws: NodeError.noRoute(stranger)) {
            _ = try await pair.client.dial(SocketAddress(stranger, port: 9))
        }
        await pair.close()
    }

    @Test func pingsFindThePeer() async throws {
        let pair = try await NodePair()
        let roundTrip = try await pair.client.reachable(NodePair.serverAddress, within: .seconds(10))
        #expect(roundTrip < .seconds(5))
        let first = try await pair.client.ping(NodePair.serverID)
        #expect(first.latency < .seconds(5))
        let isDirect = try await pair.waitForPath(seconds: 5) { if case .direct = $0 { true } else { false } }
        #expect(isDirect)
        let second = try await pair.client.ping(NodePair.serverID)
        guard case .direct = second.path else {
            Issue.record("ping went \(second.path)")
            return
        }
        await pair.close()
    }

    @Test func halfCloseReachesTheOtherSide() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listen(port: 80)
        let descriptor = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 80))
        var iterator = incoming.makeAsyncIterator()
        let stream = try #require(await iterator.next())
        #expect(stream.local.port == 80)
        #expect(stream.remote.ip == NodePair.clientAddress)
        let answering = try stream.descriptor()
        let (near, far) = (descriptor.number, answering.number)
        let request = await Blocking.run { () -> [UInt8] in
            Blocking.write(near, Array("request".utf8))
            Descriptor.finishWriting(near)
            return Blocking.readAll(far)
        }
        #expect(request == Array("request".utf8))
        // The other direction is still open.
        let response = await Blocking.run { () -> [UInt8] in
            Blocking.write(far, Array("response".utf8))
            OwnedDescriptor(taking: fcntl(far, F_DUPFD_CLOEXEC, 3)).close()
            Descriptor.finishWriting(far)
            return Blocking.readAll(near)
        }
        #expect(response == Array("response".utf8))
        descriptor.close()
        answering.close()
        for _ in 0..<100 where try await pair.client.status().streams > 0 {
            try await Task.sleep(for: .milliseconds(20))
        }
        #expect(try await pair.client.status().streams == 0)
        await pair.close()
    }

    @Test func aRejectedStreamIsReset() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listen(port: 81)
        let descriptor = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 81))
        var iterator = incoming.makeAsyncIterator()
        try #require(await iterator.next()).reject()
        let number = descriptor.number
        let rest = await Blocking.run { Blocking.readAll(number) }
        #expect(rest.isEmpty)
        descriptor.close()
        await pair.close()
    }

    @Test func pipesAndFilesAreBridged() async throws {
        let pair = try await NodePair()
        let task = try await pair.serveEcho()
        let toNode = try Descriptor.pipe()
        let fromNode = try Descriptor.pipe()
        let (readEnd, feed) = toNode.release()
        let (result, writeEnd) = fromNode.release()
        let stream = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort),
            bridging: OwnedDescriptor(taking: readEnd),
            writing: OwnedDescriptor(taking: writeEnd))
        let text = Array(repeating: UInt8(97), count: 300_000)
        async let fed = Blocking.run { () -> Bool in
            let isWritten = Blocking.write(feed, text)
            OwnedDescriptor(taking: feed).close()
            return isWritten
        }
        let back = await Blocking.run { () -> [UInt8] in
            let all = Blocking.readAll(result)
            OwnedDescriptor(taking: result).close()
            return all
        }
        #expect(await fed)
        #expect(back.count == text.count)
        let isEqual = back == text
        #expect(isEqual)
        #expect(await stream.ended() == .finished)

        // epoll refuses /dev/null: it is at its end at once, and takes everything.
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        let quiet = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort),
            bridging: OwnedDescriptor(taking: null),
            writing: OwnedDescriptor(taking: open("/dev/null", O_WRONLY | O_CLOEXEC)))
        #expect(await quiet.ended() == .finished)
        task.cancel()
        await pair.close()
    }

    @Test func aSlowReaderClosesTheWindowAndLosesNothing() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listen(port: 82)
        let descriptor = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 82))
        var iterator = incoming.makeAsyncIterator()
        let taken = try #require(await iterator.next()).descriptor()
        let (near, far) = (descriptor.number, taken.number)
        let total = 24 << 20
        async let sent = Blocking.run { () -> UInt64 in
            var digest = Digest()
            for index in 0..<24 {
                let chunk = [UInt8](repeating: UInt8(index), count: 1 << 20)
                guard Blocking.write(near, chunk) else { break }
                digest.take(chunk)
            }
            Descriptor.finishWriting(near)
            return digest.value
        }
        try await Task.sleep(for: .milliseconds(700))
        let received = await Blocking.run { Blocking.digest(far) }
        #expect(await sent == received.0)
        #expect(received.1 == total)
        descriptor.close()
        taken.close()
        await pair.close()
    }

    @Test func datagramsFlowBothWays() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listenUDP(port: 53)
        let descriptor = try await pair.client.dialUDP(SocketAddress(NodePair.serverAddress, port: 53))
        let near = descriptor.number
        Blocking.write(near, Array("question".utf8))
        var iterator = incoming.makeAsyncIterator()
        let flow = try #require(await iterator.next())
        let answering = try flow.descriptor()
        let far = answering.number
        let question = await Blocking.run { () -> [UInt8] in
            var buffer = [UInt8](repeating: 0, count: 2_000)
            let count = read(far, &buffer, buffer.count)
            return Array(buffer.prefix(max(0, count)))
        }
        #expect(question == Array("question".utf8))
        Blocking.write(far, Array("answer".utf8))
        let answer = await Blocking.run { () -> [UInt8] in
            var buffer = [UInt8](repeating: 0, count: 2_000)
            let count = read(near, &buffer, buffer.count)
            return Array(buffer.prefix(max(0, count)))
        }
        #expect(answer == Array("answer".utf8))
        descriptor.close()
        answering.close()
        await pair.close()
    }

    @Test func garbageIsCountedAndHarmless() async throws {
        let pair = try await NodePair()
        let task = try await pair.serveEcho()
        let port = try await pair.server.status().ports.v4
        var sockets: UDPSocket? = try UDPSocket(bindingTo: .loopback(v4: true))
        var none: UDPSocket?
        var generator = SeededGenerator(seed: 9)
        var burst = SendBurst()
        let target = KernelAddress.loopback(v4: true, port: port)
        for round in 0..<2_000 {
            let size = 1 + Int(generator.next() % 200)
            if burst.isFull(for: size) { _ = burst.flush(v4: &sockets, v6: &none) }
            for offset in 0..<size {
                burst.memory[burst.used + offset] = UInt8(truncatingIfNeeded: generator.next() >> 11)
            }
            // A third looks like WireGuard, a third like discovery, up to the first bytes.
            let head: [UInt8] =
                round % 3 == 0
                ? [UInt8(1 + round % 4), 0, 0, 0]
                : round % 3 == 1 ? [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac] : []
            for (offset, byte) in head.prefix(size).enumerated() { burst.memory[burst.used + offset] = byte }
            burst.append(size, to: target)
        }
        _ = burst.flush(v4: &sockets, v6: &none)
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        #expect(await NodePair.echoes(descriptor.number, count: 100_000, seed: 5))
        let counters = try await pair.server.status().counters
        #expect(counters.garbage + counters.wireGuardDropped + counters.discoDropped > 1_000)
        descriptor.close()
        task.cancel()
        await pair.close()
    }

    @Test func closingEndsEverythingThatWaits() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listen(port: 83)
        let waiting = Task { try await pair.client.reachable(IPAddress("fd7a:115c:a1e0::99")!) }
        let descriptor = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 83))
        await pair.client.close()
        await #expect(throws: NodeError.closed) { _ = try await waiting.value }
        await #expect(throws: NodeError.closed) {
            _ = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 83))
        }
        let number = descriptor.number
        #expect(await Blocking.run { Blocking.readAll(number) }.isEmpty)
        await pair.server.close()
        var iterator = incoming.makeAsyncIterator()
        while await iterator.next() != nil {}
        descriptor.close()
    }
}
