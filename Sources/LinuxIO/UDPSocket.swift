// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// An address and port as the kernel gives and takes them, without a name for either family. Bytes of the address
/// are two big-endian numbers; IPv4 is `::ffff:a.b.c.d` with `isV4` set.
@frozen
public struct KernelAddress: Hashable, Sendable {
    /// Bytes 0...7 of the address.
    public var high: UInt64
    /// Bytes 8...15 of the address.
    public var low: UInt64
    /// Port in host order.
    public var port: UInt16
    /// Whether this is an IPv4 address.
    public var isV4: Bool
    /// Number of the interface that a link-local IPv6 address belongs to; 0 for none.
    public var scope: UInt32

    /// An address from its parts.
    @inlinable public init(high: UInt64, low: UInt64, port: UInt16, isV4: Bool, scope: UInt32 = 0) {
        self.high = high
        self.low = low
        self.port = port
        self.isV4 = isV4
        self.scope = scope
    }

    /// In one go, because every packet is compared with the one before.
    @inlinable public static func == (a: KernelAddress, b: KernelAddress) -> Bool {
        (a.low ^ b.low) | (a.high ^ b.high) | UInt64(a.port ^ b.port) | UInt64(a.scope ^ b.scope) == 0
            && a.isV4 == b.isV4
    }

    /// `0.0.0.0:port` or `[::]:port`.
    public static func any(v4: Bool, port: UInt16 = 0) -> KernelAddress {
        KernelAddress(high: 0, low: v4 ? 0xffff_0000_0000 : 0, port: port, isV4: v4)
    }

    /// `127.0.0.1:port` or `[::1]:port`.
    public static func loopback(v4: Bool, port: UInt16 = 0) -> KernelAddress {
        KernelAddress(high: 0, low: v4 ? 0xffff_7f00_0001 : 1, port: port, isV4: v4)
    }

    init(_ raw: clinux_address) {
        self.init(high: raw.high, low: raw.low, port: raw.port, isV4: raw.is_v4 != 0, scope: raw.scope)
    }

    var raw: clinux_address {
        clinux_address(high: high, low: low, port: port, is_v4: isV4 ? 1 : 0, scope: scope)
    }
}

/// A bound UDP socket of one family that never blocks, never fragments, and moves bursts: the kernel cuts what is
/// sent (`UDP_SEGMENT`) and glues what arrives (`UDP_GRO`) where it can. Owned by one thread.
///
/// What the kernel refuses is left out silently; `features` tells what is active.
public struct UDPSocket: ~Copyable, Sendable {
    /// What this socket can do, as found out and read back.
    public struct Features: Hashable, Sendable {
        /// `UDP_SEGMENT`: up to 64 datagrams in one send. Falls to false for good when a device refuses it (EIO).
        public var segmentation: Bool
        /// `UDP_GRO`: equal datagrams of one sender arrive glued together.
        public var coalescing: Bool
        /// Datagrams carry "don't fragment".
        public var dontFragment: Bool
        /// The smaller one of both socket buffers in bytes, as the kernel reports it.
        public var bufferBytes: Int
    }

    /// Datagrams that were given to the kernel, or not.
    public struct Counters: Hashable, Sendable {
        /// Datagrams that the kernel took.
        public var sent: UInt64 = 0
        /// Datagrams that the kernel refused: too big for the path, no route, forbidden, buffers full.
        public var lost: UInt64 = 0
        /// `sendmsg`, `sendmmsg` and `recvmmsg` calls.
        public var calls: UInt64 = 0
        /// How often a full buffer was waited for.
        public var waits: UInt64 = 0

        /// All zero.
        public init() {}
    }

    /// Both socket buffers are raised to this. `path-selection.md` §2: 7 MiB.
    public static let bufferBytes = 7 << 20

    private let descriptor: OwnedDescriptor
    /// What is active.
    public private(set) var features: Features
    /// What happened so far.
    public private(set) var counters = Counters()
    /// Where the socket is bound.
    public let localAddress: KernelAddress

    /// A datagram that the kernel did not take, though it had room.
    public struct SendFailure: Hashable, Sendable {
        /// Where it should have gone.
        public var destination: KernelAddress
        /// `errno`.
        public var code: Int32
        /// Whether it was too big for the path (EMSGSIZE); smaller ones may pass.
        public var isTooBig: Bool { code == EMSGSIZE }
    }

    /// What failed since `takeFailures`, one entry per destination, a few at most.
    private var failures: [SendFailure] = []

    /// Destinations that could not be reached from the own address that was asked for: it is not ours any more.
    private var strays: [KernelAddress] = []

    /// Binds to `local`; port 0 lets the kernel choose. Datagrams are never fragmented unless `mayFragment`.
    /// `reportsDestination`: a burst tells to which own address each message was sent.
    public init(
        bindingTo local: KernelAddress, mayFragment: Bool = false, reportsDestination: Bool = false
    ) throws(SystemError) {
        var raw = local.raw
        let number = clinux_udp_open(&raw)
        guard number >= 0 else { throw SystemError(call: "bind", code: -number) }
        let owned = OwnedDescriptor(taking: number)
        let code = clinux_local_address(number, &raw)
        guard code == 0 else { throw SystemError(call: "getsockname", code: -code) }
        if reportsDestination {
            let code = clinux_udp_report_destination(number, local.isV4 ? 1 : 0)
            guard code == 0 else { throw SystemError(call: "setsockopt(PKTINFO)", code: -code) }
        }
        localAddress = KernelAddress(raw)
        features = Features(
            segmentation: clinux_udp_probe_gso(number) == 0,
            coalescing: clinux_udp_enable_gro(number, 1) == 0,
            dontFragment: mayFragment
                ? clinux_udp_may_fragment(number, local.isV4 ? 1 : 0) != 0
                : clinux_udp_dont_fragment(number, local.isV4 ? 1 : 0) == 0,
            bufferBytes: Int(clinux_udp_buffers(number, Int32(Self.bufferBytes))))
        descriptor = owned
    }

    /// The descriptor to watch.
    public var number: Int32 { descriptor.number }

    /// Marks outgoing datagrams (`SO_MARK`), for `wg`'s fwmark.
    public func setMark(_ mark: UInt32) throws(SystemError) {
        let code = clinux_set_mark(number, mark)
        guard code == 0 else { throw SystemError(call: "setsockopt(SO_MARK)", code: -code) }
    }

    /// Stops using `UDP_SEGMENT`, as if the device had refused it.
    public mutating func disableSegmentation() { features.segmentation = false }

    /// Stops using `UDP_GRO`, as if the kernel did not have it.
    public mutating func disableCoalescing() {
        if clinux_udp_enable_gro(number, 0) == 0 { features.coalescing = false }
    }

    /// Receives what is waiting into `burst`, at most one system call and `limit` messages: fewer stay in the
    /// processor's cache until they are opened. Errors that concern one datagram or one destination (ICMP errors
    /// reported late) count as nothing received.
    public mutating func receive(
        into burst: inout ReceiveBurst, limit: Int = ReceiveBurst.slotCount
    ) -> Int {
        counters.calls += 1
        return burst.fill(from: number, limit: limit)
    }

    /// Hands over what failed lately. Cheap when nothing did.
    public mutating func takeFailures() -> [SendFailure] {
        guard !failures.isEmpty else { return [] }
        defer { failures = [] }
        return failures
    }

    /// Whether runs left from another own address than was asked.
    public var hasStrays: Bool { !strays.isEmpty }

    /// Hands over their destinations, a few at most.
    public mutating func takeStrays() -> [KernelAddress] {
        defer { strays = [] }
        return strays
    }

    private mutating func noteStray(_ destination: KernelAddress) {
        if strays.count < 16, !strays.contains(destination) { strays.append(destination) }
    }

    private mutating func noteFailure(_ destination: KernelAddress, _ result: Int32) {
        // A full device or buffer says nothing about the way.
        guard result < 0, ![EAGAIN, ENOBUFS, ENOMEM].contains(-result), failures.count < 16,
            !failures.contains(where: { $0.destination == destination })
        else { return }
        failures.append(SendFailure(destination: destination, code: -result))
    }

    /// How often one call of `send` waits for a full buffer: each time up to `waitMilliseconds`, and no more once
    /// that was in vain. A device that is stuck must not stop the thread's timers and its other peers.
    public static let patience = 4
    private static let waitMilliseconds: Int32 = 5

    /// Sends runs of datagrams out of `memory`. What the kernel refuses is lost, as UDP may, and counted.
    public mutating func send(_ runs: UnsafeBufferPointer<DatagramRun>, from memory: UnsafeRawPointer) {
        var next = 0
        var patience = Self.patience
        while next < runs.count {
            if !features.segmentation {
                sendPlainly(runs[next], from: memory, &patience)
                next += 1
                continue
            }
            let count = min(runs.count - next, Int(CLINUX_SEND_MESSAGES))
            let result = withRaw(runs, next, count) { clinux_send_runs(number, memory, $0, Int32(count)) }
            counters.calls += 1
            if result > 0 {
                for run in runs[next..<next + Int(result)] { counters.sent += UInt64(run.datagramCount) }
                next += Int(result)
                continue
            }
            let run = runs[next]
            switch -result {
            case EAGAIN, ENOBUFS:
                if waitUntilWritable(&patience) { continue }
                counters.lost += UInt64(run.datagramCount)
            case EIO where run.datagramCount > 1:
                // The device cannot compute checksums of segments: off for good, and once more plainly.
                features.segmentation = false
                continue
            case let code where code == EINVAL && run.datagramCount > 1 || Self.mayBeOfSource(code, run):
                // A segment is larger than the route's MTU, or the own address is not: only plain datagrams tell.
                sendPlainly(run, from: memory, &patience)
            default:
                counters.lost += UInt64(run.datagramCount)
                noteFailure(run.destination, result)
            }
            next += 1
        }
    }

    private mutating func sendPlainly(
        _ run: DatagramRun, from memory: UnsafeRawPointer, _ patience: inout Int
    ) {
        var raw = run.raw
        var done = 0
        while done < run.datagramCount {
            let result = clinux_send_plain(number, memory, &raw, UInt32(done))
            counters.calls += 1
            if result > 0 {
                done += Int(result)
                counters.sent += UInt64(result)
            } else if [EAGAIN, ENOBUFS].contains(-result), waitUntilWritable(&patience) {
                continue
            } else if raw.has_local != 0, Self.mayBeOfSource(-result, run) {
                raw.has_local = 0
                noteStray(run.destination)
            } else {
                done += 1
                counters.lost += 1
                noteFailure(run.destination, result)
            }
        }
    }

    /// Whether the kernel may refuse the run because the own address that was asked for is not ours, or does not
    /// lead there.
    private static func mayBeOfSource(_ code: Int32, _ run: DatagramRun) -> Bool {
        run.local != nil && [EINVAL, ENETUNREACH, EADDRNOTAVAIL].contains(code)
    }

    /// Full socket buffer: the device drains it within microseconds to milliseconds; dropping would make TCP
    /// inside believe in congestion. False: patience is at its end.
    private mutating func waitUntilWritable(_ patience: inout Int) -> Bool {
        guard patience > 0 else { return false }
        counters.waits += 1
        var wait = pollfd(fd: number, events: Int16(POLLOUT), revents: 0)
        let isWritable =
            poll(&wait, 1, Self.waitMilliseconds) > 0 && wait.revents & Int16(POLLOUT) != 0
        patience = isWritable ? patience - 1 : 0
        return isWritable
    }

    private func withRaw(
        _ runs: UnsafeBufferPointer<DatagramRun>, _ start: Int, _ count: Int,
        _ body: (UnsafePointer<clinux_run>) -> Int32
    ) -> Int32 {
        withUnsafeTemporaryAllocation(of: clinux_run.self, capacity: count) { raw in
            for index in 0..<count { raw.initializeElement(at: index, to: runs[start + index].raw) }
            return body(UnsafePointer(raw.baseAddress!))
        }
    }
}
