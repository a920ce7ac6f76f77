// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// What was moved and what was lost, for whoever asks the running program.
extension TunnelLoop {
    /// Of all sockets so far.
    mutating func socketCounters() -> UDPSocket.Counters {
        var sum = formerSockets
        if let counters = v4?.counters { sum.add(counters) }
        if let counters = v6?.counters { sum.add(counters) }
        return sum
    }

    /// Everything that is not zero, by name: what the device, the sockets and the sessions counted.
    mutating func counts() -> [(name: String, count: UInt64)] {
        let (sockets, sessions) = (socketCounters(), device.counters)
        var list: [(name: String, count: UInt64)] = [
            ("device-reads", counters.deviceReads), ("device-packets", counters.devicePackets),
            ("device-writes", counters.deviceWrites),
            ("device-written-packets", counters.deviceWrittenPackets),
            ("udp-receives", counters.receives), ("udp-messages", counters.receivedMessages),
            ("udp-datagrams", counters.receivedDatagrams), ("udp-sent", sockets.sent),
            ("udp-calls", sockets.calls), ("udp-waits", sockets.waits),
            ("initiations-sent", sessions.initiationsSent),
            ("initiations-accepted", sessions.initiationsAccepted),
            ("responses-sent", sessions.responsesSent), ("responses-accepted", sessions.responsesAccepted),
            ("cookies-sent", sessions.cookieRepliesSent),
            ("cookies-accepted", sessions.cookieRepliesAccepted),
            ("glares", sessions.glares), ("handshakes-abandoned", sessions.handshakesAbandoned),
            ("lost-device-refused", counters.deviceRefused), ("lost-malformed", counters.malformed),
            ("lost-unroutable", counters.unroutable), ("lost-without-endpoint", counters.withoutEndpoint),
            ("lost-without-socket", counters.withoutSocket), ("lost-udp-refused", sockets.lost),
        ]
        list += WireGuard.DropReason.allCases.map { ("dropped-\($0)", sessions[$0]) }
        return list.filter { $0.count > 0 }
    }
}

extension UDPSocket.Counters {
    fileprivate mutating func add(_ other: Self) {
        sent += other.sent
        lost += other.lost
        calls += other.calls
        waits += other.waits
    }
}

extension WireGuardTunnel {
    /// One line with every counter that is not zero; nil when the tunnel has ended.
    public func describeCounters() -> String? {
        perform { loop in
            let counts = loop.counts().map { "\($0.name) \($0.count)" }
            return "counters: " + (counts.isEmpty ? "all zero" : counts.joined(separator: ", "))
        }
    }
}
