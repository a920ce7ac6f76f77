// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Testing

@Suite struct UDPSocketTests {
    @Test(arguments: [true, false])
    func aRunOfDatagramsArrivesCutAsItWasSent(v4: Bool) throws {
        var sender = try UDPSocket(bindingTo: .loopback(v4: v4))
        var receiver = try UDPSocket(bindingTo: .loopback(v4: v4))
        try exchange(from: &sender, to: &receiver)
        #expect(sender.counters.lost == 0)
    }

    @Test func withoutSegmentationTheSameDatagramsArrive() throws {
        var sender = try UDPSocket(bindingTo: .loopback(v4: true))
        var receiver = try UDPSocket(bindingTo: .loopback(v4: true))
        sender.disableSegmentation()
        try exchange(from: &sender, to: &receiver)
        #expect(!sender.features.segmentation)
    }

    @Test func buffersAreRaisedAndReadBack() throws {
        let socket = try UDPSocket(bindingTo: .loopback(v4: true))
        #expect(socket.features.bufferBytes >= 100_000)
        #expect(socket.features.dontFragment)
        #expect(socket.localAddress.port != 0)
    }

    @Test func aTakenPortIsRefused() throws {
        let first = try UDPSocket(bindingTo: .loopback(v4: true))
        let port = first.localAddress.port
        #expect(throws: SystemError(call: "bind", code: EADDRINUSE)) {
            _ = try UDPSocket(bindingTo: .loopback(v4: true, port: port))
        }
    }

    @Test func aDatagramThatFitsNoPathIsLostNotFatal() throws {
        let sender = try UDPSocket(bindingTo: .any(v4: true))
        // RFC 5737 documentation address: no host; the size exceeds every Ethernet MTU with don't-fragment, or
        // there is no route at all. Either way the send is refused.
        let nowhere = KernelAddress(high: 0, low: 0xffff_0000_0000 | 0xcb00_7101, port: 9, isV4: true)
        var burst = SendBurst()
        burst.append(65_000, to: nowhere)
        var v4: UDPSocket? = consume sender
        var v6: UDPSocket?
        _ = burst.flush(v4: &v4, v6: &v6)
        let found = v4?.counters
        let counters = try #require(found)
        #expect(counters.sent + counters.lost == 1)
    }

    /// A device that is stuck holds up one call for a few milliseconds, not for so many per destination.
    @Test(.enabled(if: geteuid() == 0, "needs a network namespace"), arguments: [true, false])
    func patienceWithAStuckDeviceIsBounded(segmenting: Bool) async throws {
        let counters = try await DedicatedThread.run { () throws -> UDPSocket.Counters in
            try NetworkNamespace.enterNew()
            // Sends eight kilobits a second: what is not sent stays charged to the socket.
            for command in [
                "ip link set lo up mtu 1500",
                "tc qdisc add dev lo root tbf rate 8kbit burst 1600 limit 900mb",
            ] {
                #expect(system(command) == 0, "\(command)")
            }
            // What waits there holds the namespace, and the sockets by which the kernel itself sends ICMP: for an hour.
            defer { #expect(system("tc qdisc del dev lo root") == 0) }
            var v4: UDPSocket? = try UDPSocket(bindingTo: .loopback(v4: true))
            var v6: UDPSocket?
            if !segmenting { v4?.disableSegmentation() }
            var burst = SendBurst()
            var before = UDPSocket.Counters()
            // Until the socket's buffer is full, and a few calls more.
            for round in 0..<400 {
                for number in 0..<128 {
                    burst.append(1_400, to: .loopback(v4: true, port: UInt16(1_000 + number)))
                }
                let waits = v4?.counters.waits ?? 0
                _ = burst.flush(v4: &v4, v6: &v6)
                let now = v4?.counters ?? before
                #expect(now.waits - waits <= UInt64(UDPSocket.patience), "call \(round)")
                defer { before = now }
                if now.lost > before.lost, before.lost > 0 { break }
            }
            return v4?.counters ?? before
        }
        #expect(counters.waits > 0 && counters.lost > 100, "\(counters)")
    }

    @Test func runsGrowOnlyWithEqualDatagrams() {
        let to = KernelAddress.loopback(v4: true, port: 1)
        let other = KernelAddress.loopback(v4: true, port: 2)
        var run = DatagramRun(destination: to, offset: 0, length: 1312, segment: 1312)
        #expect(run.canTake(1312, for: to))
        #expect(run.canTake(40, for: to))
        #expect(!run.canTake(1313, for: to))
        #expect(!run.canTake(1312, for: other))
        run.length += 40
        #expect(!run.canTake(40, for: to))
        run = DatagramRun(destination: to, offset: 0, length: 1312 * 49, segment: 1312)
        #expect(!run.canTake(1312, for: to))
        run = DatagramRun(destination: to, offset: 0, length: 64 * 64, segment: 64)
        #expect(!run.canTake(64, for: to))
        #expect(run.datagramCount == 64)
    }

    /// Sends 100 datagrams of 1000 bytes and a shorter one, and expects them in order with their content.
    private func exchange(from sender: inout UDPSocket, to receiver: inout UDPSocket) throws {
        var burst = SendBurst()
        let sizes = Array(repeating: 1000, count: 100) + [333]
        for (index, size) in sizes.enumerated() {
            let place = UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used..<burst.used + size])
            for offset in 0..<size { place[offset] = UInt8(truncatingIfNeeded: index &* 7 &+ offset) }
            burst.append(size, to: receiver.localAddress)
        }
        let v4 = receiver.localAddress.isV4
        var none: UDPSocket?
        var some: UDPSocket? = try UDPSocket(bindingTo: .loopback(v4: v4))
        if !sender.features.segmentation { some?.disableSegmentation() }
        let source = some?.localAddress
        let homeless = v4 ? burst.flush(v4: &some, v6: &none) : burst.flush(v4: &none, v6: &some)
        #expect(homeless == 0)
        let sent = some?.counters.sent
        #expect(sent == 101)

        var received = ReceiveBurst()
        var index = 0
        while index < sizes.count, receiver.receive(into: &received) > 0 {
            for slot in 0..<received.count {
                let message = received[slot]
                #expect(message.source == source)
                var offset = message.offset
                while offset < message.offset + message.length {
                    let size = min(message.segment, message.offset + message.length - offset)
                    try #require(index < sizes.count)
                    #expect(size == sizes[index])
                    let bytes = received.memory[offset..<offset + size]
                    #expect(bytes.first == UInt8(truncatingIfNeeded: index &* 7))
                    #expect(bytes.last == UInt8(truncatingIfNeeded: index &* 7 &+ size &- 1))
                    index += 1
                    offset += size
                }
            }
        }
        #expect(index == sizes.count)
    }
}

@Suite struct NetworkTests {
    @Test func loopbackIsAmongTheInterfaces() throws {
        let all = try InterfaceAddress.all()
        #expect(all.contains { $0.isLoopback && $0.address == .loopback(v4: true) })
    }

    @Test func aQuietLinkMonitorHasNothing() throws {
        let monitor = try LinkMonitor()
        let changed = monitor.drain()
        #expect(!changed)
    }

    @Test func aThreadRunsAndIsJoined() throws {
        let pair = try Descriptor.pipe()
        let writing = pair.second.number
        let thread = try DedicatedThread(name: "test") {
            var byte: UInt8 = 7
            _ = write(writing, &byte, 1)
        }
        thread.join()
        var byte: UInt8 = 0
        #expect(read(pair.first.number, &byte, 1) == 1)
        #expect(byte == 7)
    }

    @Test func epollWaitsShorterThanAMillisecond() throws {
        let epoll = try Epoll()
        let events = EpollEvents()
        let start = Clock.monotonicNanoseconds()
        let count = try epoll.wait(timeoutNanoseconds: 200_000, into: events)
        #expect(count == 0)
        #expect(Clock.monotonicNanoseconds() - start >= 200_000)
    }

    @Test func epollTellsWhoIsReady() throws {
        let epoll = try Epoll()
        let events = EpollEvents()
        let wake = try WakeUp()
        try epoll.add(wake.number, .read, token: 42)
        wake.signal()
        let count = try epoll.wait(timeoutNanoseconds: nil, into: events)
        #expect(count == 1)
        #expect(events[0].token == 42)
        #expect(events[0].interest.contains(.read))
    }
}
