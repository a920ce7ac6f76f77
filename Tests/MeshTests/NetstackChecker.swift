// SPDX-License-Identifier: Apache-2.0

import Mesh

/// Faults that a simulated link put in.
struct FaultCounts: CustomStringConvertible {
    var lost = 0
    var duplicated = 0
    var corrupted = 0
    var reordered = 0
    var overrun = 0
    var tooBig = 0
    var jumps = 0

    var total: Int { lost + duplicated + corrupted + reordered + overrun + tooBig + jumps }

    var description: String {
        "\(lost) lost, \(duplicated) duplicated, \(corrupted) corrupted, \(reordered) delayed, "
            + "\(overrun) overrun, \(tooBig) too big, \(jumps) clock jumps"
    }

    static func += (a: inout FaultCounts, b: FaultCounts) {
        a.lost += b.lost
        a.duplicated += b.duplicated
        a.corrupted += b.corrupted
        a.reordered += b.reordered
        a.overrun += b.overrun
        a.tooBig += b.tooBig
        a.jumps += b.jumps
    }
}

/// What every TCP segment that a stack sends must obey, whatever happens to it afterwards, kept per flow and
/// direction and read from the bytes alone.
struct SegmentChecker {
    struct Key: Hashable {
        var source: [UInt8]
        var target: [UInt8]
        var reversed: Key { Key(source: target, target: source) }
    }

    struct Lane {
        var isn: UInt32?
        var shift = 0
        var hasShift = false
        var ack: UInt32?
        var rightEdge: UInt32?
        var timestamp: UInt32?
    }

    private(set) var violations: [String] = []
    private(set) var checked = 0
    private var lanes: [Key: Lane] = [:]

    private static func at16(_ bytes: [UInt8], _ at: Int) -> Int { Int(bytes[at]) << 8 | Int(bytes[at + 1]) }
    private static func at32(_ bytes: [UInt8], _ at: Int) -> UInt32 {
        UInt32(at16(bytes, at)) << 16 | UInt32(at16(bytes, at + 2))
    }
    private static func isBefore(_ a: UInt32, _ b: UInt32) -> Bool { Int32(bitPattern: a &- b) < 0 }

    mutating func check(_ packet: [UInt8], now: Instant) {
        let isV4 = packet[0] >> 4 == 4
        let ip = isV4 ? 20 : 40
        guard packet[isV4 ? 9 : 6] == 6 else { return }
        checked += 1
        if checked % 16 == 0 { checkSum(packet, isV4: isV4) }
        let addresses = Array(packet[(isV4 ? 12 : 8)..<ip])
        let half = addresses.count / 2
        let key = Key(
            source: Array(addresses[..<half] + packet[ip..<ip + 2]),
            target: Array(addresses[half...] + packet[ip + 2..<ip + 4]))
        let tcp = Array(packet[ip..<min(packet.count, ip + 60)])
        let header = Int(tcp[12] >> 4) * 4
        guard header >= 20, header <= packet.count - ip else { return fail("header length", now) }
        let flags = tcp[13]
        guard flags & 4 == 0 else { return }
        let sequence = Self.at32(tcp, 4)
        let payload = packet.count - ip - header
        var lane = lanes[key] ?? Lane()
        if flags & 2 != 0 {
            if lane.isn != sequence { lane = Lane(isn: sequence) }
            readOptions(Array(tcp[20..<header]), &lane, isSYN: true, now)
            lanes[key] = lane
            return
        }
        readOptions(Array(tcp[20..<header]), &lane, isSYN: false, now)
        let peer = lanes[key.reversed]
        checkAcknowledgement(tcp, &lane, peer, now)
        if payload > 0, let edge = peer?.rightEdge {
            let end = sequence &+ UInt32(payload)
            if Self.isBefore(edge, end) { fail("\(end &- edge) bytes beyond the window", now) }
        }
        lanes[key] = lane
    }

    private mutating func checkAcknowledgement(
        _ tcp: [UInt8], _ lane: inout Lane, _ peer: Lane?, _ now: Instant
    ) {
        guard tcp[13] & 16 != 0 else { return fail("no ACK bit", now) }
        let ack = Self.at32(tcp, 8)
        if let last = lane.ack, Self.isBefore(ack, last) { fail("acknowledgement moved back", now) }
        lane.ack = ack
        let shift = lane.hasShift && peer?.hasShift == true ? lane.shift : 0
        let edge = ack &+ UInt32(Self.at16(tcp, 14) << shift)
        if let last = lane.rightEdge, Self.isBefore(edge, last) {
            // RFC 7323 §2.4: the scaled field may round down, no more.
            if last &- edge >= 1 << UInt32(shift) { fail("window shrank by \(last &- edge)", now) }
        } else {
            lane.rightEdge = edge
        }
    }

    private mutating func readOptions(_ options: [UInt8], _ lane: inout Lane, isSYN: Bool, _ now: Instant) {
        var at = 0
        while at < options.count, options[at] != 0 {
            if options[at] == 1 {
                at += 1
                continue
            }
            guard at + 1 < options.count, options[at + 1] >= 2, at + Int(options[at + 1]) <= options.count
            else {
                return fail("options", now)
            }
            if options[at] == 3, isSYN {
                lane.hasShift = true
                lane.shift = Int(options[at + 2])
            } else if options[at] == 8 {
                let stamp = Self.at32(options, at + 2)
                if let last = lane.timestamp, Self.isBefore(stamp, last) { fail("timestamp moved back", now) }
                lane.timestamp = stamp
            }
            at += Int(options[at + 1])
        }
    }

    private mutating func checkSum(_ packet: [UInt8], isV4: Bool) {
        var isRight = true
        if isV4 {
            let length = packet.count - 20
            let pseudo = Array(packet[12..<20]) + [0, 6, UInt8(length >> 8), UInt8(length & 255)]
            isRight =
                WirePacket.sum(pseudo + packet[20...]) == 0xffff
                && WirePacket.sum(Array(packet[..<20])) == 0xffff
        } else {
            isRight = WirePacket.isChecksumRight(packet)
        }
        if !isRight { violations.append("bad checksum of \(packet.count) bytes") }
    }

    private mutating func fail(_ text: String, _ now: Instant) {
        if violations.count < 10 { violations.append("\(text) at \(now.nanoseconds)") }
    }
}
