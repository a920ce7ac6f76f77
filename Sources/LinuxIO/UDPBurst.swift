// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// Datagrams of equal size to one destination, side by side in memory; only the last one may be shorter.
@frozen
public struct DatagramRun: Sendable {
    /// Where they go.
    public var destination: KernelAddress
    /// The own address that they leave from; nil: the route's choice.
    public var local: KernelAddress?
    /// First byte in the memory that is handed over with the runs.
    public var offset: Int
    /// Bytes of all of them.
    public var length: Int
    /// Bytes of each but the last.
    public var segment: Int

    /// Most datagrams in a run: `UDP_MAX_SEGMENTS` of older kernels.
    @inlinable public static var countLimit: Int { 64 }
    /// Most bytes in a run: 65535 less IPv4 and UDP header. `path-selection.md` §7.
    @inlinable public static var lengthLimit: Int { 65_507 }

    /// A run that begins with one datagram.
    @inlinable public init(
        destination: KernelAddress, from local: KernelAddress? = nil, offset: Int, length: Int, segment: Int
    ) {
        self.destination = destination
        self.local = local
        self.offset = offset
        self.length = length
        self.segment = segment
    }

    /// Whether a datagram of `bytes` right behind the run may join it.
    @inlinable public func canTake(
        _ bytes: Int, for destination: KernelAddress, from local: KernelAddress? = nil
    ) -> Bool {
        bytes <= segment && length % segment == 0 && length + bytes <= Self.lengthLimit
            && length < segment * Self.countLimit && destination == self.destination && local == self.local
    }

    /// How many datagrams.
    @inlinable public var datagramCount: Int { segment > 0 ? (length + segment - 1) / segment : 1 }

    var raw: clinux_run {
        clinux_run(
            destination: destination.raw, local: local?.raw ?? clinux_address(), offset: UInt32(offset),
            length: UInt32(length), segment: UInt32(segment), has_local: local == nil ? 0 : 1)
    }
}

/// Memory for one `recvmmsg`: 32 slots of 64 KiB, of which the kernel touches only what it fills. One burst serves
/// all sockets of a thread, one after the other.
public struct ReceiveBurst: ~Copyable {
    /// One slot: datagrams of `segment` bytes each (the last may be shorter) from one sender.
    @frozen
    public struct Message: Sendable {
        /// The sender.
        public var source: KernelAddress
        /// First byte in `memory`.
        public var offset: Int
        /// Bytes of all datagrams; 0 when the message was cut off and must be ignored.
        public var length: Int
        /// Bytes of each datagram but the last.
        public var segment: Int

        /// A message by its parts.
        @inlinable public init(source: KernelAddress, offset: Int, length: Int, segment: Int) {
            self.source = source
            self.offset = offset
            self.length = length
            self.segment = segment
        }
    }

    /// Bytes of a slot: the largest datagram that exists.
    public static let slotBytes = 65_536
    /// Slots, that is: messages per system call.
    public static let slotCount = Int(CLINUX_RECEIVE_SLOTS)

    /// All slots, one after the other. Valid while the burst lives.
    public let memory: UnsafeMutableRawBufferPointer
    /// How many messages the last `receive` brought.
    public private(set) var count = 0
    private let batch: OpaquePointer
    private let received: UnsafeMutablePointer<clinux_received>

    /// Reserves address space; pages are touched when datagrams arrive.
    public init() {
        memory = .allocate(byteCount: Self.slotCount * Self.slotBytes, alignment: 4096)
        received = .allocate(capacity: Self.slotCount)
        batch = clinux_receive_batch_new(memory.baseAddress, UInt32(Self.slotBytes))
    }

    deinit {
        memory.deallocate()
        clinux_receive_batch_free(batch)
        received.deallocate()
    }

    /// The message in slot `index`, below `count`.
    public subscript(index: Int) -> Message {
        precondition(index < count, "no such message")
        let raw = received[index]
        return Message(
            source: KernelAddress(raw.source), offset: index * Self.slotBytes, length: Int(raw.length),
            segment: Int(raw.segment))
    }

    /// The own address that the message in slot `index` was sent to; nil unless the socket reports destinations.
    public func localAddress(of index: Int) -> KernelAddress? {
        precondition(index < count, "no such message")
        return received[index].has_local != 0 ? KernelAddress(received[index].local) : nil
    }

    mutating func fill(from number: Int32, limit: Int) -> Int {
        count = max(0, Int(clinux_receive(number, batch, received, Int32(clamping: limit))))
        return count
    }
}

/// Small datagrams, each sent from the own address that was asked: on a machine with many addresses the kernel would
/// choose one by the route, and whoever asked another would not take the answer.
public struct AnswerBurst: ~Copyable {
    /// Answers at once.
    public static let limit = Int(CLINUX_SEND_MESSAGES)

    private let memory: UnsafeMutableRawBufferPointer
    private let slotBytes: Int
    private var answers: [clinux_answer] = []

    /// Room for `limit` answers of at most `slotBytes` each.
    public init(slotBytes: Int) {
        self.slotBytes = slotBytes
        memory = .allocate(byteCount: Self.limit * slotBytes, alignment: 16)
        answers.reserveCapacity(Self.limit)
    }

    deinit { memory.deallocate() }

    /// Whether it must be sent before more is written.
    public var isFull: Bool { answers.count == Self.limit }

    /// Writes an answer with `body`, which returns its length. `local`: the address that was asked, if it is known.
    public mutating func append(
        to destination: KernelAddress, from local: KernelAddress?,
        _ body: (UnsafeMutableRawBufferPointer) -> Int
    ) {
        precondition(!isFull, "room for an answer")
        let offset = answers.count * slotBytes
        let count = body(UnsafeMutableRawBufferPointer(rebasing: memory[offset..<offset + slotBytes]))
        precondition(count <= slotBytes, "an answer that fits")
        answers.append(
            clinux_answer(
                destination: destination.raw, local: (local ?? .any(v4: destination.isV4)).raw,
                offset: UInt32(offset), length: UInt32(count), has_local: local == nil ? 0 : 1))
    }

    /// Sends everything that the kernel takes; the rest is lost, as UDP may. Returns how many were sent.
    public mutating func send(from number: Int32) -> Int {
        defer { answers.removeAll(keepingCapacity: true) }
        var (sent, next) = (0, 0)
        while next < answers.count {
            let result = answers.withUnsafeBufferPointer {
                clinux_send_answers(
                    number, memory.baseAddress, $0.baseAddress! + next, Int32($0.count - next))
            }
            // One that cannot be sent, because its address is gone, must not hold up the others.
            sent += max(0, Int(result))
            next += max(1, Int(result))
        }
        return sent
    }
}

/// Memory in which datagrams are sealed, and the runs that they form: what one `sendmmsg` per family takes.
public struct SendBurst: ~Copyable {
    /// Bytes of `memory`: two full runs and some room.
    public static let capacityBytes = 192 << 10

    /// Room for runs; `isFull` keeps `reservedRuns` of them for what is being appended right now.
    private static let runLimit = 256
    /// Datagrams that may be appended after `isFull` said no.
    public static let reservedRuns = 64

    /// Where datagrams are written, one behind the other. Valid while the burst lives.
    public let memory: UnsafeMutableRawBufferPointer
    /// Where the next datagram begins.
    public private(set) var used = 0
    private let runs: UnsafeMutablePointer<DatagramRun>
    private var runCount = 0

    /// Allocates the memory.
    public init() {
        memory = .allocate(byteCount: Self.capacityBytes, alignment: 4096)
        runs = .allocate(capacity: Self.runLimit)
    }

    deinit {
        memory.deallocate()
        runs.deallocate()
    }

    /// Room behind the datagrams so far.
    public var free: Int { Self.capacityBytes - used }
    /// Whether nothing waits to be sent.
    public var isEmpty: Bool { runCount == 0 }
    /// Whether another datagram of up to `bytes` may find no place.
    public func isFull(for bytes: Int) -> Bool {
        free < bytes || runCount > Self.runLimit - Self.reservedRuns
    }

    /// Takes the `bytes` that were written at `used` as one datagram to `destination`, which is to leave from the
    /// own address `local` if that is possible.
    public mutating func append(
        _ bytes: Int, to destination: KernelAddress, from local: KernelAddress? = nil
    ) {
        precondition(bytes > 0 && bytes <= free && runCount < Self.runLimit, "burst is full")
        if runCount > 0, runs[runCount - 1].offset + runs[runCount - 1].length == used,
            runs[runCount - 1].canTake(bytes, for: destination, from: local)
        {
            runs[runCount - 1].length += bytes
        } else {
            let run = DatagramRun(
                destination: destination, from: local, offset: used, length: bytes, segment: bytes)
            (runs + runCount).initialize(to: run)
            runCount += 1
        }
        used += bytes
    }

    /// Forgets everything; returns how many datagrams that were.
    public mutating func discard() -> Int {
        let count = UnsafeBufferPointer(start: runs, count: runCount).reduce(0) { $0 + $1.datagramCount }
        runCount = 0
        used = 0
        return count
    }

    /// Sends everything: runs of each family through its socket. Without a socket of a family its runs are
    /// dropped silently. Returns the number of datagrams without a socket.
    public mutating func flush(v4: inout UDPSocket?, v6: inout UDPSocket?) -> Int {
        var homeless = 0
        var start = 0
        while start < runCount {
            let isV4 = runs[start].destination.isV4
            var end = start + 1
            while end < runCount, runs[end].destination.isV4 == isV4 { end += 1 }
            let part = UnsafeBufferPointer(start: runs + start, count: end - start)
            let hasSocket = isV4 ? v4 != nil : v6 != nil
            if isV4 {
                v4?.send(part, from: memory.baseAddress!)
            } else {
                v6?.send(part, from: memory.baseAddress!)
            }
            if !hasSocket { homeless += part.reduce(0) { $0 + $1.datagramCount } }
            start = end
        }
        runCount = 0
        used = 0
        return homeless
    }
}
