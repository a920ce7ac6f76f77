// SPDX-License-Identifier: Apache-2.0

/// The connection of the last segment and what the headers of its segments look like, so that the segments of a
/// burst find it by comparing a few words and are put one behind the other before TCP thinks about any of them.
struct ExpectedFlow {
    var isValid = false
    var isV4 = false
    var usesTimestamps = false
    var slot: UInt32 = 0
    var source = IPAddress(v4: 0)
    var destination = IPAddress(v4: 0)
    /// Source port, then destination port, as on the wire.
    var ports: UInt32 = 0
}

extension Stack {
    /// Notes the connection that the next segments probably belong to.
    @inline(__always)
    mutating func expect(_ slot: UInt32) {
        guard !(expected.isValid && expected.slot == slot) else { return }
        let (local, remote) = (connections[slot].local, connections[slot].remote)
        expected = ExpectedFlow(
            isValid: connections[slot].state == .established, isV4: local.ip.isV4,
            usesTimestamps: connections[slot].usesTimestamps, slot: slot, source: remote.ip,
            destination: local.ip, ports: UInt32(remote.port) << 16 | UInt32(local.port))
    }

    /// The next bytes in order of the connection that sent last, and nothing else to think about. False, with
    /// nothing changed, when it is anything else.
    @inline(__always)
    mutating func receiveExpected(_ packet: PacketBytes, isAuthentic: Bool, _ now: Instant) -> Bool {
        guard expected.isValid else { return false }
        let ipSize = IPHeader.size(isV4: expected.isV4)
        let headerSize = expected.usesTimestamps ? 32 : 20
        guard packet.count > ipSize + headerSize, hasExpectedAddresses(packet) else { return false }
        let end = expected.isV4 ? Int(packet.u16(2)) : IPHeader.v6Size + Int(packet.u16(4))
        let at = ipSize
        // No option but the timestamp, no flag but ACK and PSH.
        guard end <= packet.count, end > ipSize + headerSize, packet.u32(at) == expected.ports,
            packet.u16(at + 12) & 0xf037 == UInt16(truncatingIfNeeded: headerSize << 10 | 0x10),
            !expected.usesTimestamps || packet.u32(at + 20) == 0x0101_080a
        else { return false }
        let slot = expected.slot
        if !isAuthentic, !isChecksumRight(packet, slot, at, end) { return false }
        let segment = ExpectedSegment(
            sequence: SequenceNumber(packet.u32(at + 4)), acknowledgement: SequenceNumber(packet.u32(at + 8)),
            window: packet.u16(at + 14), timestamp: expected.usesTimestamps ? packet.u32(at + 24) : 0,
            echo: expected.usesTimestamps ? packet.u32(at + 28) : 0)
        let start = ipSize + headerSize
        guard connections[slot].receiveExpected(segment, packet.slice(start, end - start), now, &context)
        else {
            return false
        }
        context.timers.schedule(slot, connections[slot].deadline)
        return true
    }

    @inline(__always)
    private func hasExpectedAddresses(_ packet: PacketBytes) -> Bool {
        if expected.isV4 {
            // No options, no fragment.
            return packet.u8(0) == 0x45 && packet.u16(6) & 0x3fff == 0 && packet.u8(9) == IPProtocol.tcp
                && packet.u32(12) == expected.source.v4 && packet.u32(16) == expected.destination.v4
        }
        return packet.u8(0) >> 4 == 6 && packet.u8(6) == IPProtocol.tcp
            && packet.u64(8) == expected.source.high && packet.u64(16) == expected.source.low
            && packet.u64(24) == expected.destination.high && packet.u64(32) == expected.destination.low
    }

    private func isChecksumRight(_ packet: PacketBytes, _ slot: UInt32, _ start: Int, _ end: Int) -> Bool {
        if expected.isV4, !Checksum.isValid(Checksum.sum(packet.slice(0, IPHeader.v4Size))) { return false }
        let length = end - start
        let pseudo = connections[slot].pseudoHeader &+ Checksum.length(length)
        return Checksum.isValid(Checksum.sum(packet.slice(start, length), pseudo))
    }
}

/// What differs between the segments of a stream.
struct ExpectedSegment {
    var sequence: SequenceNumber
    var acknowledgement: SequenceNumber
    var window: UInt16
    var timestamp: UInt32
    var echo: UInt32
}
