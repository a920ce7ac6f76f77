// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Testing

/// Binding requests to a relay's STUN port.
@Suite struct STUNResponderTests {
    // stun-netcheck.md N10
    @Test func answersNodesOnly() throws {
        let local = SocketAddress("127.0.0.1:0")!
        let responder = try STUNResponder(v4: local, v6: nil, isStrict: true)
        defer { responder.close() }
        var socket = try UDPSocket(bindingTo: .loopback(v4: true))
        let server = try #require(responder.localV4)
        let target = KernelAddress(high: server.ip.high, low: server.ip.low, port: server.port, isV4: true)
        var burst = SendBurst()
        let id = TransactionID(high: 7, low: 9)
        STUN.writeRequest(id, into: UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...]))
        burst.append(STUN.requestBytes, to: target)
        for length in [1, 19, 20, 40, 1400] {
            for index in 0..<length { burst.memory[burst.used + index] = 0x33 }
            burst.append(length, to: target)
        }
        var v4: UDPSocket? = consume socket
        var v6: UDPSocket?
        _ = burst.flush(v4: &v4, v6: &v6)
        socket = v4.take()!
        #expect(RelayTests.isReadable(socket.number, 2000))
        var received = ReceiveBurst()
        _ = socket.receive(into: &received)
        #expect(received.count == 1)
        let message = received[0]
        let bytes = UnsafeRawBufferPointer(
            rebasing: received.memory[message.offset..<message.offset + message.length])
        let answer = try STUN.parseResponse(bytes.bytes)
        #expect(answer.id == id)
        #expect(answer.mapped.port == socket.localAddress.port && answer.mapped.ip == server.ip)
        for _ in 0..<100 where responder.counters.ignored < 5 { usleep(10_000) }
        #expect(responder.counters.answered == 1 && responder.counters.ignored == 5)
    }

    /// Every address of 127/8 is this machine's: whichever is asked must answer, though the route to the asker would
    /// choose 127.0.0.1.
    @Test(arguments: ["127.0.0.1", "127.9.8.7", "127.0.0.77"])
    func answersFromTheAddressThatWasAsked(_ asked: String) throws {
        let responder = try STUNResponder(v4: SocketAddress("0.0.0.0:0")!, v6: nil)
        defer { responder.close() }
        let port = try #require(responder.localV4).port
        let ip = try #require(IPAddress(asked))
        let target = KernelAddress(high: ip.high, low: ip.low, port: port, isV4: true)
        var v4: UDPSocket? = try UDPSocket(bindingTo: .loopback(v4: true))
        var v6: UDPSocket?
        var burst = SendBurst()
        for number in 1...80 as ClosedRange<UInt32> {
            let room = UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...])
            STUN.writeRequest(TransactionID(high: 1, low: number), into: room)
            burst.append(STUN.requestBytes, to: target)
        }
        _ = burst.flush(v4: &v4, v6: &v6)
        var socket = v4.take()!
        var received = ReceiveBurst()
        var count = 0
        while count < 80, RelayTests.isReadable(socket.number, 2_000) {
            _ = socket.receive(into: &received)
            for index in 0..<received.count {
                let message = received[index]
                #expect(message.source == target)
                count += max(1, message.length / max(1, message.segment))
            }
        }
        #expect(count == 80)
    }

    @Test func answersOnIPv6() throws {
        let responder = try STUNResponder(v4: nil, v6: SocketAddress("[::]:0")!)
        defer { responder.close() }
        let target = KernelAddress.loopback(v4: false, port: try #require(responder.localV6).port)
        var v4: UDPSocket?
        var v6: UDPSocket? = try UDPSocket(bindingTo: .loopback(v4: false))
        var burst = SendBurst()
        STUN.writeRequest(TransactionID(high: 3, low: 4), into: burst.memory)
        burst.append(STUN.requestBytes, to: target)
        _ = burst.flush(v4: &v4, v6: &v6)
        var socket = v6.take()!
        #expect(RelayTests.isReadable(socket.number, 2_000))
        var received = ReceiveBurst()
        let count = socket.receive(into: &received)
        #expect(count == 1)
        #expect(received[0].source == target)
    }
}
