// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Synchronization
import Testing

/// Bytes through two nodes, exact to the last, whatever carries them.
@Suite(.serialized, .timeLimit(.minutes(5))) struct NodeDataTests {
    #if DEBUG
        static let size = 12 << 20
    #else
        static let size = 64 << 20
    #endif

    @Test(arguments: [false, true]) func bothDirectionsAreExact(isRelayed: Bool) async throws {
        let pair = try await NodePair(isDirectBlocked: isRelayed)
        let stream = try await pair.stream(port: 5_000)
        if !isRelayed {
            #expect(try await pair.waitForPath(seconds: 20) { if case .direct = $0 { true } else { false } })
        }
        async let up = Transfer.run(from: stream.near, to: stream.far, seed: 1, atLeast: Self.size)
        async let down = Transfer.run(from: stream.far, to: stream.near, seed: 2, atLeast: Self.size)
        let (a, b) = await (up, down)
        #expect(a.isExact && a.count >= Self.size)
        #expect(b.isExact && b.count >= Self.size)
        let counters = try await pair.client.status().counters
        if isRelayed { #expect(counters.sentDatagrams == 0) }
        stream.close()
        await pair.close()
    }

    /// From the relay to the direct path and back, ten times each, under streams both ways as fast as they can.
    @Test func tenChangesOfThePathEachWayLoseNothing() async throws {
        let pair = try await NodePair()
        let stream = try await pair.stream(port: 5_001)
        let isOver = Flag()
        async let up = Transfer.run(
            from: stream.near, to: stream.far, seed: 3, atLeast: 1 << 20, until: isOver)
        async let down = Transfer.run(
            from: stream.far, to: stream.near, seed: 4, atLeast: 1 << 20, until: isOver)
        var changes = (toDirect: 0, toRelay: 0)
        for round in 0..<20 {
            // In turn by command, which both ends know of, and by loss, which they have to notice.
            let isDirect = round % 2 == 0
            if isDirect {
                pair.client.setDirectBlocked(false)
                pair.client.dropUDP(.none)
                pair.server.dropUDP(.none)
            } else if round % 4 == 1 {
                pair.client.setDirectBlocked(true)
            } else {
                pair.client.dropUDP(.all)
                pair.server.dropUDP(.all)
            }
            let isChanged = try await pair.waitForPath(seconds: 30) { path in
                if case .direct = path { isDirect } else { !isDirect }
            }
            if isChanged, isDirect { changes.toDirect += 1 }
            if isChanged, !isDirect { changes.toRelay += 1 }
            try await Task.sleep(for: .milliseconds(100))
        }
        isOver.set()
        let (a, b) = await (up, down)
        #expect(changes.toDirect == 10 && changes.toRelay == 10)
        #expect(a.isExact && b.isExact)
        #expect(a.count > 1 << 20 && b.count > 1 << 20)
        stream.close()
        await pair.close()
    }

    @Test func aStuckReaderStallsOnlyItself() async throws {
        let pair = try await NodePair()
        let stuck = try await pair.stream(port: 5_002)
        let moving = try await pair.stream(port: 5_003)
        let near = stuck.near
        // More than all buffers in the way hold: this write waits for ever.
        let writer = Flag()
        let thread = try DedicatedThread(name: "test-stuck") {
            Blocking.write(near, [UInt8](repeating: 1, count: 64 << 20))
            writer.set()
        }
        let result = await Transfer.run(from: moving.near, to: moving.far, seed: 5, atLeast: 4 << 20)
        #expect(result.isExact)
        #expect(!writer.isSet)
        _ = shutdown(near, Int32(SHUT_RDWR))
        thread.join()
        stuck.close()
        moving.close()
        await pair.close()
    }

    @Test func aResetReachesATCPSocketAsAReset() async throws {
        let pair = try await NodePair()
        let sockets = try TCPPair()
        let incoming = try await pair.server.listen(port: 5_004)
        let stream = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: 5_004),
            bridging: OwnedDescriptor(taking: sockets.inner))
        var iterator = incoming.makeAsyncIterator()
        let taken = try #require(await iterator.next())
        let far = try taken.descriptor()
        Blocking.write(sockets.outer, Array("hello".utf8))
        let (outer, number) = (sockets.outer, far.number)
        #expect(await Blocking.run { Blocking.exactly(5, from: number) } == Array("hello".utf8))
        // The peer's program goes away with bytes unread: a reset, as from a kernel.
        Blocking.write(outer, Array("unread".utf8))
        for _ in 0..<1_000 where Self.waiting(number) < 6 { try await Task.sleep(for: .milliseconds(10)) }
        far.close()
        let code = await Blocking.run { () -> Int32 in
            var byte: UInt8 = 0
            return read(outer, &byte, 1) < 0 ? errno : 0
        }
        #expect(code == ECONNRESET)
        #expect(await stream.ended() == .reset)
        _ = close(outer)
        await pair.close()
    }

    /// Bytes that could be read.
    private static func waiting(_ number: Int32) -> Int {
        var count: Int32 = 0
        return ioctl(number, UInt(FIONREAD), &count) == 0 ? Int(count) : 0
    }

    @Test func aClosedPipeIsToldToThePeer() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listen(port: 5_005)
        let (readEnd, feed) = try Descriptor.pipe().release()
        let (result, writeEnd) = try Descriptor.pipe().release()
        let stream = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: 5_005), bridging: OwnedDescriptor(taking: readEnd),
            writing: OwnedDescriptor(taking: writeEnd))
        var iterator = incoming.makeAsyncIterator()
        let far = try #require(await iterator.next()).descriptor()
        // Nobody reads the output any more, as with `| head`.
        _ = close(result)
        let number = far.number
        let isRefused = await Blocking.run { () -> Bool in
            var bytes = [UInt8](repeating: 7, count: 65_536)
            for _ in 0..<1_000 where send(number, &bytes, bytes.count, Int32(MSG_NOSIGNAL)) < 0 {
                return errno == EPIPE || errno == ECONNRESET
            }
            return false
        }
        #expect(isRefused)
        #expect(await stream.ended() == .reset)
        _ = close(feed)
        far.close()
        await pair.close()
    }

    @Test func halfClosesPassThroughPipesInBothOrders() async throws {
        for localFirst in [true, false] {
            let pair = try await NodePair()
            let incoming = try await pair.server.listen(port: 5_006)
            let (readEnd, feed) = try Descriptor.pipe().release()
            let (result, writeEnd) = try Descriptor.pipe().release()
            let stream = try await pair.client.dial(
                SocketAddress(NodePair.serverAddress, port: 5_006),
                bridging: OwnedDescriptor(taking: readEnd), writing: OwnedDescriptor(taking: writeEnd))
            var iterator = incoming.makeAsyncIterator()
            let far = try #require(await iterator.next()).descriptor()
            let number = far.number
            let closeLocal = { () -> [UInt8] in
                Blocking.write(feed, Array("up".utf8))
                _ = close(feed)
                return await Blocking.run { Blocking.readAll(number) }
            }
            let closeRemote = { () -> [UInt8] in
                Blocking.write(number, Array("down".utf8))
                Descriptor.finishWriting(number)
                return await Blocking.run { Blocking.readAll(result) }
            }
            if localFirst {
                #expect(await closeLocal() == Array("up".utf8))
                #expect(await closeRemote() == Array("down".utf8))
            } else {
                #expect(await closeRemote() == Array("down".utf8))
                #expect(await closeLocal() == Array("up".utf8))
            }
            #expect(await stream.ended() == .finished)
            _ = close(result)
            far.close()
            await pair.close()
        }
    }
}

/// What streams cost a process. Runs by itself (see `scripts/run-tests`): other tests would be measured too.
@Suite(.serialized, .timeLimit(.minutes(5))) struct NodeMemoryAloneTests {
    @Test func idleStreamsAreCheap() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listen(port: 5_007)
        let count = min(1_000, (Self.descriptorLimit() - 100) / 4)
        try #require(count >= 100, "too few descriptors are allowed")
        var held: [Int32] = []
        // The first ones pay for tables and buffers.
        var before = 0
        var iterator = incoming.makeAsyncIterator()
        for index in 0..<count {
            if index == count / 10 { before = Self.residentBytes() }
            held.append(
                try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 5_007)).release())
            held.append(try #require(await iterator.next()).descriptor().release())
        }
        let used = (Self.residentBytes() - before) / (count - count / 10)
        // Both ends are in this process.
        #expect(used < 8 << 10, "bytes of both ends of an idle stream")
        #expect(try await pair.client.status().streams == count)
        for number in held { _ = close(number) }
        await pair.close()
    }

    private static func residentBytes() -> Int {
        let number = open("/proc/self/statm", O_RDONLY | O_CLOEXEC)
        var text = [UInt8](repeating: 0, count: 200)
        let length = read(number, &text, text.count)
        _ = close(number)
        let fields = String(decoding: text.prefix(max(0, length)), as: UTF8.self).split(separator: " ")
        return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4_096
    }

    /// Descriptors that this process may have, raised as far as it goes.
    private static func descriptorLimit() -> Int {
        DescriptorLimit.raise()
        return DescriptorLimit.current
    }
}
