// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// A TUN device: one IP packet per read and write, or one super-packet behind a `virtio_net_hdr` where that
/// was asked for and granted.
public struct TUNDevice: ~Copyable, Sendable {
    /// What the kernel hands over and takes beyond plain packets.
    public struct Offload: OptionSet, Sendable {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }

        /// Ten bytes of `virtio_net_hdr` before each packet.
        public static let header = Offload(rawValue: CLINUX_TUN_HEADER)
        /// TCP super-packets of both families, and packets without checksum.
        public static let tcp = Offload(rawValue: CLINUX_TUN_TCP)
        /// UDP super-packets of both families (Linux 6.2).
        public static let udp = Offload(rawValue: CLINUX_TUN_UDP)
        /// Everything that exists.
        public static let all: Offload = [.header, .tcp, .udp]
    }

    private let descriptor: OwnedDescriptor
    /// Asks for and sets the link, in the network namespace that the device is in.
    private var control: OwnedDescriptor
    private var namespace: UInt64
    /// The name that the kernel gave, such as `tun0`, or that it had when `follow` was called last.
    public private(set) var name: String
    /// Hears of changes of the link, and of others in its network namespace.
    public private(set) var monitor: LinkMonitor
    /// What was granted.
    public let offload: Offload

    /// Creates or attaches to the device `name`; needs CAP_NET_ADMIN. `%d` in the name is replaced by a
    /// number.
    public init(name: String, offload: Offload = []) throws(SystemError) {
        var bytes = [CChar](repeating: 0, count: 16)
        for (index, byte) in name.utf8.prefix(15).enumerated() { bytes[index] = CChar(bitPattern: byte) }
        var features = offload.rawValue
        let number = clinux_tun_open_offload(&bytes, &features)
        guard number >= 0 else { throw SystemError(call: "ioctl(TUNSETIFF)", code: -number) }
        let owned = OwnedDescriptor(taking: number)
        var sockets: (Int32, Int32) = (-1, -1)
        try Self.check("socket(AF_NETLINK)", clinux_open_link_sockets(-1, &sockets.0, &sockets.1))
        control = OwnedDescriptor(taking: sockets.0)
        monitor = LinkMonitor(taking: sockets.1)
        descriptor = owned
        self.name = Self.text(bytes)
        self.offload = Offload(rawValue: features)
        namespace = Self.namespace(of: number)
    }

    /// What tells the device's network namespace from others; 0 where that cannot be known.
    private static func namespace(of number: Int32) -> UInt64 {
        let space = clinux_tun_namespace(number)
        guard space >= 0 else { return 0 }
        let owned = OwnedDescriptor(taking: space)
        return clinux_namespace_number(owned.number)
    }

    private static func text(_ bytes: [CChar]) -> String {
        String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// Notices that the device has another name, or was moved to another network namespace. Then its link is
    /// watched there: true, and `monitor` is a new one. Before Linux 5.2 namespaces are not followed.
    public mutating func follow() throws(SystemError) -> Bool {
        var bytes = [CChar](repeating: 0, count: 16)
        if clinux_tun_name(number, &bytes) == 0 { name = Self.text(bytes) }
        let space = clinux_tun_namespace(number)
        // EBADFD: the device is gone, which the next read tells.
        guard space >= 0 || space == -EPERM else { return false }
        try Self.check("ioctl(TUNGETDEVNETNS)", min(space, 0))
        let owned = OwnedDescriptor(taking: space)
        let found = clinux_namespace_number(owned.number)
        guard found != namespace else { return false }
        var sockets: (Int32, Int32) = (-1, -1)
        try Self.check("setns", clinux_open_link_sockets(owned.number, &sockets.0, &sockets.1))
        control = OwnedDescriptor(taking: sockets.0)
        monitor = LinkMonitor(taking: sockets.1)
        namespace = found
        return true
    }

    /// The descriptor to watch.
    public var number: Int32 { descriptor.number }

    /// Sets the address, the MTU, and brings the device up.
    public func configure(address: KernelAddress, prefixBits: Int, mtuBytes: Int) throws(SystemError) {
        var raw = address.raw
        try setMTU(mtuBytes)
        try Self.check("RTM_NEWADDR", clinux_interface_add_address(name, &raw, Int32(prefixBits)))
        try Self.check("SIOCSIFFLAGS", clinux_interface_set_up(name))
    }

    /// Sets the largest packet in bytes.
    public func setMTU(_ bytes: Int) throws(SystemError) {
        try Self.check("SIOCSIFMTU", clinux_interface_set_mtu(name, Int32(clamping: bytes)))
    }

    /// Sets how many packets wait in the kernel for a read; more are dropped.
    public func setQueueLength(_ packets: Int) throws(SystemError) {
        try Self.check(
            "SIOCSIFTXQLEN", clinux_link_set_queue_length(control.number, name, Int32(clamping: packets)))
    }

    /// Limits super-packets that the kernel hands over.
    public func setSegmentLimits(count: Int, bytes: Int) throws(SystemError) {
        let code = clinux_link_set_gso_limits(
            control.number, name, UInt32(clamping: count), UInt32(clamping: bytes))
        try Self.check("RTM_NEWLINK", code)
    }

    /// The link as it is now: nil when the device is gone.
    public func link() -> (isUp: Bool, mtuBytes: Int)? {
        let up = clinux_link_is_up(control.number, name)
        let mtu = clinux_link_mtu(control.number, name)
        return up >= 0 && mtu >= 0 ? (up == 1, Int(mtu)) : nil
    }

    /// Reads one packet without waiting; nil when none waits. Throws when the device is gone.
    public func read(into buffer: UnsafeMutableRawBufferPointer) throws(SystemError) -> Int? {
        let count = Glibc.read(number, buffer.baseAddress, buffer.count)
        if count >= 0 { return count }
        guard errno == EAGAIN || errno == EINTR || errno == EIO else { throw SystemError(call: "read") }
        return nil
    }

    /// Writes one packet; false when the device refused it (down, or malformed).
    @discardableResult
    public func write(_ packet: UnsafeRawBufferPointer) -> Bool {
        Glibc.write(number, packet.baseAddress, packet.count) == packet.count
    }

    /// Writes one packet out of its parts; false when the device refused it.
    @discardableResult
    public func write(_ parts: borrowing PacketParts) -> Bool {
        Glibc.writev(number, parts.vectors, Int32(parts.count)) > 0
    }

    private static func check(_ call: String, _ code: Int32) throws(SystemError) {
        guard code == 0 else { throw SystemError(call: call, code: -code) }
    }
}

/// Pieces of memory that make one packet, for a gathering write. Has a fixed capacity.
public struct PacketParts: ~Copyable {
    /// Most pieces.
    public static let capacity = 80
    let vectors: UnsafeMutablePointer<iovec>
    /// Pieces so far.
    public private(set) var count = 0

    /// No pieces.
    public init() { vectors = .allocate(capacity: Self.capacity) }

    deinit { vectors.deallocate() }

    /// Appends a piece, which must stay valid until the packet is written.
    public mutating func append(_ start: UnsafeMutableRawPointer, _ length: Int) {
        precondition(count < Self.capacity, "too many pieces")
        vectors[count] = iovec(iov_base: start, iov_len: length)
        count += 1
    }

    /// Begins a new packet.
    public mutating func removeAll() { count = 0 }
}
