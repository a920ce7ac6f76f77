// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// The descriptors that an engine opens at its start; it takes them out one by one.
struct EngineSockets: ~Copyable {
    var v4: UDPSocket?
    var v6: UDPSocket?
    var tun: TUNDevice?
    var linkMonitor: LinkMonitor?
    var clockWatch: ClockWatch?
    /// Talks to the router about port mappings.
    var portMap: SmallUDPSocket?

    /// IPv6 first, so that both families can share the port that it gets. Only a missing IPv4 is an error.
    /// `path-selection.md` §7.
    init(_ configuration: NodeConfiguration) throws(SystemError) {
        tun = nil
        if let name = configuration.tunName { tun = try TUNDevice(name: name) }
        linkMonitor = try? LinkMonitor()  // a sandbox without netlink: `Node.linkChanged()` remains
        clockWatch = try? ClockWatch()  // the same: sleep is noticed at the next timer
        portMap = nil
        v4 = nil
        v6 = nil
        guard configuration.binding != .none else { return }
        let wanted = configuration.listenPort
        v6 = Self.open(configuration, v4: false, port: wanted)
        if v6 == nil, wanted != 0 { v6 = Self.open(configuration, v4: false, port: 0) }
        let shared = wanted != 0 ? wanted : v6?.localAddress.port ?? 0
        v4 = Self.open(configuration, v4: true, port: shared)
        if v4 == nil { v4 = try UDPSocket(bindingTo: Self.address(configuration, v4: true, port: 0)) }
        if configuration.mapsPorts, configuration.binding == .any { portMap = try? SmallUDPSocket(v4: true) }
    }

    /// A socket of one family; nil when there is none of it, or the port is taken.
    static func open(_ configuration: NodeConfiguration, v4: Bool, port: UInt16) -> UDPSocket? {
        try? UDPSocket(bindingTo: address(configuration, v4: v4, port: port))
    }

    private static func address(_ configuration: NodeConfiguration, v4: Bool, port: UInt16) -> KernelAddress {
        configuration.binding == .loopback ? .loopback(v4: v4, port: port) : .any(v4: v4, port: port)
    }

    /// One socket of a family, on the configured port if that is free, else on `port`, the present one, or any.
    static func reopen(_ configuration: NodeConfiguration, v4: Bool, port: UInt16) -> UDPSocket? {
        let wanted = configuration.listenPort
        for candidate in wanted != 0 ? [wanted, port, 0] : [port, 0] {
            if let socket = open(configuration, v4: v4, port: candidate) { return consume socket }
        }
        return nil
    }

    /// Watches all of them for reading.
    mutating func watch(_ epoll: borrowing Epoll, _ wakeUp: WakeUp) throws(SystemError) {
        try epoll.add(wakeUp.number, .read, token: EventSource.wakeUp.token)
        if let number = linkMonitor?.number { try epoll.add(number, .read, token: EventSource.link.token) }
        if let number = clockWatch?.number { try epoll.add(number, .read, token: EventSource.clock.token) }
        if let number = portMap?.number { try epoll.add(number, .read, token: EventSource.portMap.token) }
        if let number = tun?.number { try epoll.add(number, .read, token: EventSource.tun.token) }
        if let number = v4?.number { try epoll.add(number, .read, token: EventSource.udp4.token) }
        if let number = v6?.number { try epoll.add(number, .read, token: EventSource.udp6.token) }
    }
}

/// Memory of a fixed size with one owner.
@safe struct ScratchMemory: ~Copyable {
    /// Valid while the owner lives.
    let bytes: UnsafeMutableRawBufferPointer

    init(byteCount: Int) { unsafe bytes = .allocate(byteCount: byteCount, alignment: 64) }

    deinit { unsafe bytes.deallocate() }
}
