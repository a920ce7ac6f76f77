// SPDX-License-Identifier: Apache-2.0

/// Joins the decrypted packets of one burst into super-packets that the TUN device takes in one write, as
/// the kernel's GRO would: segments of one TCP stream that follow each other, and UDP datagrams of equal
/// size. Pure; holds pointers into the burst's memory between `add` and `removeAll`, within one turn of its
/// owner. No allocation.
///
/// Packets are joined across others in between. Order within a flow is kept: a packet joins only the latest
/// group that its flow's place in the table names, and every packet that does not join takes that place.
@safe package struct Coalescer: ~Copyable {
    /// Packets of one burst; when full, write them out first.
    package static let capacity = 2_304
    /// Packets of one super-packet. The kernel takes 64 UDP segments everywhere.
    package static let segmentLimit = 64
    private static let flowPlaces = 256

    @safe private struct Entry {
        let start: UnsafeMutableRawPointer
        let length: Int32
        var next: Int32 = -1
    }

    private struct Group {
        /// What the packets are joined as; `plain` is never joined.
        let kind: VirtioHeader.Kind
        let transport: Int32
        let header: Int32
        let first: Int32
        var last: Int32
        var count: Int32 = 1
        /// Whole super-packet in bytes.
        var length: Int32
        let segmentSize: Int32
        var nextSequence: UInt32
        var isOpen: Bool
        var isVerified = false
    }

    private let entries: UnsafeMutablePointer<Entry>
    private let groups: UnsafeMutablePointer<Group>
    private let places: UnsafeMutablePointer<Int32>
    private var entryCount: Int32 = 0
    private var groupCount: Int32 = 0
    private let joinsTCP: Bool
    private let joinsUDP: Bool

    /// Joins only what the device takes.
    package init(joinsTCP: Bool, joinsUDP: Bool) {
        unsafe entries = .allocate(capacity: Self.capacity)
        unsafe groups = .allocate(capacity: Self.capacity)
        unsafe places = .allocate(capacity: Self.flowPlaces)
        unsafe places.initialize(repeating: -1, count: Self.flowPlaces)
        self.joinsTCP = joinsTCP
        self.joinsUDP = joinsUDP
    }

    deinit {
        unsafe entries.deallocate()
        unsafe groups.deallocate()
        unsafe places.deallocate()
    }

    package var isFull: Bool { entryCount == Self.capacity }
    /// Super-packets and packets to write.
    package var count: Int { Int(groupCount) }

    /// Takes an IP packet: version and length are right, which the tunnel checked. It stays where it is.
    package mutating func add(_ packet: UnsafeMutableRawPointer, length: Int) {
        precondition(entryCount < Self.capacity, "the owner writes before there are too many")
        let shape = unsafe Shape(packet, length: length)
        let isUsed = shape.kind == .udp ? joinsUDP : joinsTCP
        let entry = entryCount
        unsafe (entries + Int(entry)).initialize(to: Entry(start: packet, length: Int32(length)))
        entryCount += 1
        guard shape.kind != .plain, isUsed else {
            if shape.place >= 0 {
                unsafe places[Int(shape.place)] = -1
            } else if shape.isFragment {
                // Of a flow that it does not tell: nothing may pass it.
                unsafe places.update(repeating: -1, count: Self.flowPlaces)
            }
            return open(shape, entry: entry, length: length, isOpen: false)
        }
        let place = Int(shape.place)
        let group = unsafe places[place]
        if group >= 0, unsafe join(Int(group), entry: entry, packet, shape, length: length) { return }
        unsafe places[place] = groupCount
        open(shape, entry: entry, length: length, isOpen: !shape.endsGroup)
    }

    private mutating func open(_ shape: Shape, entry: Int32, length: Int, isOpen: Bool) {
        let group = Group(
            kind: shape.kind, transport: shape.transport, header: shape.header, first: entry, last: entry,
            length: Int32(length), segmentSize: shape.payload,
            nextSequence: shape.sequence &+ UInt32(bitPattern: shape.payload), isOpen: isOpen)
        unsafe (groups + Int(groupCount)).initialize(to: group)
        groupCount += 1
    }

    /// Appends the packet to the group if it follows there.
    @inline(__always)
    private mutating func join(
        _ index: Int, entry: Int32, _ packet: UnsafeMutableRawPointer, _ shape: Shape, length: Int
    ) -> Bool {
        let group = unsafe groups[index]
        guard group.isOpen, group.kind == shape.kind, group.header == shape.header,
            shape.payload <= group.segmentSize, group.count < Self.segmentLimit,
            group.length + shape.payload <= 65_535,
            shape.kind == .udp || shape.sequence == group.nextSequence
        else { return false }
        let first = unsafe entries[Int(group.first)]
        guard unsafe Shape.isSameFlow(first.start, packet, shape) else { return false }
        // RFC 6864: the identifier means something only where fragmenting is allowed; then it must count up.
        if group.transport == 20, unsafe packet.loadByte(6) & 0x40 == 0 {
            let expected = unsafe first.start.loadBig16(4) &+ UInt16(truncatingIfNeeded: group.count)
            guard unsafe packet.loadBig16(4) == expected else { return false }
        }
        guard unsafe shape.hasRightChecksums(packet, length: length) else { return false }
        if !group.isVerified {
            guard unsafe shape.hasRightChecksums(first.start, length: Int(first.length)) else { return false }
            unsafe groups[index].isVerified = true
        }
        unsafe entries[Int(group.last)].next = entry
        unsafe groups[index].last = entry
        unsafe groups[index].count += 1
        unsafe groups[index].length += shape.payload
        unsafe groups[index].nextSequence = shape.sequence &+ UInt32(bitPattern: shape.payload)
        if shape.endsGroup || shape.payload < group.segmentSize { unsafe groups[index].isOpen = false }
        return true
    }

    /// Finishes group `index`: its header is made that of the super-packet, `virtio` (10 bytes) is filled,
    /// and `part` is called for each piece of memory in order, the virtio header not included. Call once
    /// for each group.
    @inline(__always)
    package func finish(
        _ index: Int, virtio: UnsafeMutableRawPointer, part: (UnsafeMutableRawPointer, Int) -> Void
    ) {
        precondition(index < groupCount, "no such group")
        let group = unsafe groups[index]
        let first = unsafe entries[Int(group.first)]
        var description = VirtioHeader()
        if group.count > 1 {
            let last = unsafe entries[Int(group.last)]
            unsafe Self.writeHeader(of: group, first.start, last: last.start)
            description.needsChecksum = true
            description.kind = group.kind
            description.headerLength = UInt16(truncatingIfNeeded: group.header)
            description.segmentSize = UInt16(truncatingIfNeeded: group.segmentSize)
            description.checksumStart = UInt16(truncatingIfNeeded: group.transport)
            description.checksumOffset = group.kind == .udp ? 6 : 16
        }
        unsafe description.write(to: virtio)
        unsafe part(first.start, Int(first.length))
        var next = first.next
        while next >= 0 {
            let entry = unsafe entries[Int(next)]
            unsafe part(entry.start + Int(group.header), Int(entry.length - group.header))
            next = entry.next
        }
    }

    /// Lengths, checksum of the IPv4 header, and the pseudo header's part of the other checksum.
    private static func writeHeader(
        of group: Group, _ packet: UnsafeMutableRawPointer, last: UnsafeMutableRawPointer
    ) {
        let isV4 = unsafe packet.loadByte(0) >> 4 == 4
        let transport = Int(group.transport)
        if isV4 {
            unsafe packet.storeBig16(UInt16(truncatingIfNeeded: group.length), at: 2)
            unsafe packet.storeBig16(0, at: 10)
            let sum = unsafe packet.checksum(0, transport)
            unsafe packet.storeBytes(of: Checksum.finish(sum), toByteOffset: 10, as: UInt16.self)
        } else {
            unsafe packet.storeBig16(UInt16(truncatingIfNeeded: group.length - 40), at: 4)
        }
        let behind = Int(group.length) - transport
        let kind: UInt8 = group.kind == .udp ? 17 : 6
        let sum = unsafe packet.pseudoHeaderSum(isV4: isV4, kind: kind) &+ Checksum.length(behind)
        let partial = ~Checksum.finish(sum)
        if group.kind == .udp {
            unsafe packet.storeBig16(UInt16(truncatingIfNeeded: behind), at: transport + 4)
            unsafe packet.storeBytes(of: partial, toByteOffset: transport + 6, as: UInt16.self)
        } else {
            let flags = unsafe packet.loadByte(transport + 13) | last.loadByte(transport + 13)
            unsafe packet.storeBytes(of: flags, toByteOffset: transport + 13, as: UInt8.self)
            unsafe packet.storeBytes(of: partial, toByteOffset: transport + 16, as: UInt16.self)
        }
    }

    /// Forgets everything: the memory may be used again.
    package mutating func removeAll() {
        entryCount = 0
        groupCount = 0
        unsafe places.update(repeating: -1, count: Self.flowPlaces)
    }

    /// What matters of a packet for joining.
    private struct Shape {
        var kind = VirtioHeader.Kind.plain
        /// Of its flow in the table of groups; -1 when it has no ports.
        var place: Int32 = -1
        var transport: Int32 = 0
        var header: Int32 = 0
        var payload: Int32 = 0
        var sequence: UInt32 = 0
        var isFragment = false
        /// Nothing may follow it in a super-packet (PSH).
        var endsGroup = false

        @inline(__always)
        init(_ packet: UnsafeMutableRawPointer, length: Int) {
            let number: UInt8
            var hash: UInt64
            if length >= 28, unsafe packet.loadByte(0) == 0x45 {
                number = unsafe packet.loadByte(9)
                transport = 20
                // A fragment has no ports, or is not whole.
                isFragment = unsafe packet.loadBig16(6) & 0x3fff != 0
                guard !isFragment else { return }
                hash = unsafe packet.loadBig64(12)
            } else if length >= 48, unsafe packet.loadByte(0) >> 4 == 6 {
                number = unsafe packet.loadByte(6)
                transport = 40
                isFragment = number == 44
                hash = unsafe packet.loadBig64(8) ^ packet.loadBig64(16)
                hash ^= unsafe packet.loadBig64(24) ^ packet.loadBig64(32)
            } else {
                return
            }
            guard number == 6 || number == 17 else { return }
            let start = Int(transport)
            hash ^= unsafe UInt64(packet.loadBig32(start)) &<< 13 ^ UInt64(number)
            hash = hash &* 0x9e37_79b9_7f4a_7c15
            place = Int32(truncatingIfNeeded: hash &>> 56)
            if number == 17 {
                guard unsafe Int(packet.loadBig16(start + 4)) == length - start,
                    unsafe packet.loadBig16(start + 6) != 0
                else { return }
                header = transport + 8
                payload = Int32(truncatingIfNeeded: length) - header
                if payload > 0 { kind = .udp }
                return
            }
            guard length >= start + 20 else { return }
            header = unsafe transport + Int32(packet.loadByte(start + 12) >> 4) * 4
            payload = Int32(truncatingIfNeeded: length) - header
            let flags = unsafe packet.loadByte(start + 13)
            // Only ACK with or without PSH; and something to join.
            guard header >= transport + 20, payload > 0, flags & ~0x08 == 0x10 else { return }
            endsGroup = flags & 0x08 != 0
            sequence = unsafe packet.loadBig32(start + 4)
            kind = transport == 20 ? .tcp4 : .tcp6
        }

        /// Whether two packets of equal header length differ only in what a super-packet may leave out.
        @inline(__always)
        static func isSameFlow(
            _ a: UnsafeMutableRawPointer, _ b: UnsafeMutableRawPointer, _ shape: Shape
        ) -> Bool {
            let start = Int(shape.transport)
            if start == 20 {
                // Version, length of header, service; flags and fragment; time to live, protocol; addresses.
                guard unsafe a.loadBig16(0) == b.loadBig16(0), unsafe a.loadBig32(6) == b.loadBig32(6),
                    unsafe a.loadBig64(12) == b.loadBig64(12)
                else { return false }
            } else {
                guard unsafe a.loadBig32(0) == b.loadBig32(0), unsafe a.loadBig16(6) == b.loadBig16(6) else {
                    return false
                }
                for offset in stride(from: 8, to: 40, by: 8) {
                    guard unsafe a.loadBig64(offset) == b.loadBig64(offset) else { return false }
                }
            }
            guard unsafe a.loadBig32(start) == b.loadBig32(start) else { return false }
            guard shape.kind != .udp else { return true }
            // Acknowledgement, window, options; flags apart from PSH are known to be equal.
            guard unsafe a.loadBig32(start + 8) == b.loadBig32(start + 8),
                unsafe a.loadByte(start + 12) == b.loadByte(start + 12),
                unsafe a.loadBig16(start + 14) == b.loadBig16(start + 14)
            else { return false }
            var offset = start + 18
            while offset < Int(shape.header) {
                guard unsafe a.loadBig16(offset) == b.loadBig16(offset) else { return false }
                offset += 2
            }
            return true
        }

        /// A super-packet's checksum is taken for right, so those of its parts must be.
        @inline(__always)
        func hasRightChecksums(_ packet: UnsafeMutableRawPointer, length: Int) -> Bool {
            let start = Int(transport)
            if start == 20, unsafe !Checksum.isValid(packet.checksum(0, 20)) { return false }
            let pseudo = unsafe packet.pseudoHeaderSum(isV4: start == 20, kind: kind == .udp ? 17 : 6)
            return unsafe Checksum.isValid(
                packet.checksum(start, length - start, pseudo &+ Checksum.length(length - start)))
        }
    }
}
