// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

// How streams and flows end or begin when something goes wrong with their descriptors.
extension NodeDataTests {
    /// A server that answers and closes although more was being sent to it: the answer arrives, then the reset.
    @Test(arguments: [false, true]) func anAnswerOutlivesTheResetBehindIt(isTCP: Bool) async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listen(port: 5_020)
        let near = try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 5_020))
        var iterator = incoming.makeAsyncIterator()
        let taken = try #require(await iterator.next())
        let (inner, outer): (Int32, Int32)
        if isTCP {
            let sockets = try TCPPair()
            (inner, outer) = (sockets.inner, sockets.outer)
        } else {
            let (a, b) = try Descriptor.socketPair().release()
            (inner, outer) = (a, b)
            try Descriptor.setNonBlocking(outer, false)
        }
        let stream = try taken.bridge(reading: OwnedDescriptor(taking: inner))
        let number = near.number
        Blocking.write(number, [UInt8](repeating: 1, count: 100_000))
        // Some of it lies unread before the program; then it answers and is gone.
        #expect(await Blocking.run { Blocking.exactly(1_000, from: outer).count } == 1_000)
        Blocking.write(outer, [UInt8](repeating: 2, count: 30_000))
        _ = close(outer)
        let answer = await Blocking.run { Blocking.readAll(number) }
        #expect(answer == [UInt8](repeating: 2, count: 30_000))
        #expect(await stream.ended() == .reset)
        near.close()
        await pair.close()
    }

    /// Silent streams, more than the node's memory has blocks for, and then one that speaks.
    @Test func silentStreamsLeaveMemoryToOthers() async throws {
        let pair = try await NodePair { $0.limits.bufferMemory = 1 << 20 }
        let incoming = try await pair.server.listen(port: 5_021)
        var iterator = incoming.makeAsyncIterator()
        var held: [Int32] = []
        for _ in 0..<40 {
            held.append(
                try await pair.client.dial(SocketAddress(NodePair.serverAddress, port: 5_021)).release())
            held.append(try #require(await iterator.next()).descriptor().release())
        }
        #expect(try await pair.client.status().bufferBytes < 1 << 19)
        let near = held[78]
        let far = held[79]
        let result = await Transfer.run(from: near, to: far, seed: 6, atLeast: 4 << 20)
        #expect(result.isExact)
        for number in held { _ = close(number) }
        await pair.close()
    }

    /// More connections at once than may wait: none is refused, some come a second later.
    @Test func aBurstOfConnectionsIsNotRefused() async throws {
        let pair = try await NodePair { $0.limits.acceptQueue = 32 }
        let incoming = try await pair.server.listenAny()
        let client = pair.client
        let dials = Task {
            await withTaskGroup(of: Bool.self) { group in
                for port in UInt16(6_000)..<6_060 {
                    group.addTask {
                        (try? await client.dial(SocketAddress(NodePair.serverAddress, port: port))) != nil
                    }
                }
                return await group.reduce(into: 0) { $0 += $1 ? 1 : 0 }
            }
        }
        try await Task.sleep(for: .milliseconds(300))
        let taker = Task {
            for await stream in incoming { try? stream.descriptor().close() }
        }
        #expect(await dials.value == 60)
        #expect(try await pair.server.status().stack.named.first { $0.name == "syn_dropped" }?.value ?? 0 > 0)
        taker.cancel()
        await pair.close()
    }

    /// Two connected UDP sockets.
    private static func udpPair() throws -> (inner: Int32, outer: Int32) {
        func make() throws -> (Int32, sockaddr_in) {
            let number = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            try #require(number >= 0 && call(bind, number, address) == 0)
            var length = socklen_t(MemoryLayout<sockaddr_in>.size)
            withUnsafeMutableBytes(of: &address) {
                $0.withMemoryRebound(to: sockaddr.self) { _ = getsockname(number, $0.baseAddress!, &length) }
            }
            return (number, address)
        }
        let (a, b) = (try make(), try make())
        try #require(call(connect, a.0, b.1) == 0 && call(connect, b.0, a.1) == 0)
        return (a.0, b.0)
    }

    private static func call(
        _ body: (Int32, UnsafePointer<sockaddr>?, socklen_t) -> Int32, _ number: Int32, _ address: sockaddr_in
    ) -> Int32 {
        withUnsafeBytes(of: address) {
            $0.withMemoryRebound(to: sockaddr.self) {
                body(number, $0.baseAddress, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
    }

    @Test func emptyDatagramsPassBetweenUDPSockets() async throws {
        let pair = try await NodePair()
        let incoming = try await pair.server.listenUDP(port: 54)
        let (near, far) = (try Self.udpPair(), try Self.udpPair())
        _ = try await pair.client.dialUDP(
            SocketAddress(NodePair.serverAddress, port: 54), bridging: OwnedDescriptor(taking: near.inner))
        for text in ["one", "", "two"] { _ = send(near.outer, text, text.utf8.count, 0) }
        var iterator = incoming.makeAsyncIterator()
        try #require(await iterator.next()).bridge(OwnedDescriptor(taking: far.inner))
        let outer = far.outer
        let sizes = await Blocking.run { () -> [Int] in
            var limit = timeval(tv_sec: 10, tv_usec: 0)
            setsockopt(outer, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
            var buffer = [UInt8](repeating: 0, count: 100)
            return (0..<3).map { _ in recv(outer, &buffer, buffer.count, 0) }
        }
        #expect(sizes == [3, 0, 3])
        _ = close(near.outer)
        _ = close(far.outer)
        await pair.close()
    }

    @Test func aFlowThatNobodyTakesIsReset() async throws {
        let pair = try await NodePair()
        let target = SocketAddress(NodePair.serverAddress, port: 55)
        let near = try Descriptor.packetPair().release()
        let refused = try await pair.client.dialUDP(target, bridging: OwnedDescriptor(taking: near.1))
        _ = send(near.0, "x", 1, 0)
        #expect(await refused.ended() == .reset)
        _ = close(near.0)
        await pair.close()
    }
}
