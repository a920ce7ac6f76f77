// SPDX-License-Identifier: Apache-2.0

package import LinuxIO

/// Where a peer is, and by which address of ours it knows us: what we send must leave from there, or a NAT or a
/// firewall on its side does not let it in.
struct Place: Equatable {
    var remote: KernelAddress
    /// Nil: the route's choice.
    var local: KernelAddress?

    @inline(__always)
    static func == (a: Self, b: Self) -> Bool { a.remote == b.remote && a.local == b.local }
}

// What `wg` sets and asks beyond the device's peers; call within `WireGuardTunnel.perform`. Peers and keys are
// changed through `device`.
extension TunnelLoop {
    /// Where packets to the peer go.
    package func endpoint(of index: WireGuard.PeerIndex) -> SocketAddress? {
        whereabouts(of: index).map { SocketAddress($0.remote) }
    }

    /// Sets where packets to the peer go from now on.
    package mutating func setEndpoint(_ address: SocketAddress?, of index: WireGuard.PeerIndex) {
        setPlace(address.map { Place(remote: $0.kernel) }, of: index)
    }

    /// Where the peer is.
    @inline(__always)
    func whereabouts(of index: WireGuard.PeerIndex) -> Place? {
        let slot = Int(index.slot)
        return slot < places.count ? places[slot] : nil
    }

    /// Enters or takes out a place.
    @inline(never)
    mutating func setPlace(_ place: Place?, of index: WireGuard.PeerIndex) {
        while places.count <= index.slot { places.append(nil) }
        places[Int(index.slot)] = place
    }

    /// Leaves the choice of our address to the route again, until the peer is heard from.
    @inline(never)
    mutating func forgetLocal(of index: WireGuard.PeerIndex) {
        if Int(index.slot) < places.count { places[Int(index.slot)]?.local = nil }
    }

    @inline(never)
    private mutating func forgetLocals(towards remotes: [KernelAddress]) {
        for slot in places.indices {
            if let place = places[slot], remotes.contains(place.remote) { places[slot]?.local = nil }
        }
    }

    /// Looks at what became of a send: addresses of ours that are not ours any more, and what the device refuses.
    @inline(__always)
    mutating func noteSends() {
        if v4?.hasStrays ?? false, let strays = v4?.takeStrays() { forgetLocals(towards: strays) }
        if v6?.hasStrays ?? false, let strays = v6?.takeStrays() { forgetLocals(towards: strays) }
        guard usesSegmentation, !(v4?.features.segmentation ?? true && v6?.features.segmentation ?? true)
        else {
            return
        }
        usesSegmentation = false
        options.log(.notice, "UDP: the device refuses UDP_SEGMENT, so one send per datagram from now on")
    }

    /// Binds to another port; 0 lets the kernel choose. On failure the old sockets stay.
    package mutating func setListenPort(_ port: UInt16) throws(SystemError) {
        if isUp {
            if port != 0, port == listenPort { return }
            let sockets = try TunnelSockets.open(port: port, mark: firewallMark, options: options)
            install(sockets)
        } else {
            listenPort = port
            checkLink()
        }
    }

    /// Marks what is sent from now on; 0 for no mark.
    package mutating func setFirewallMark(_ mark: UInt32) throws(SystemError) {
        try v4?.setMark(mark)
        try v6?.setMark(mark)
        firewallMark = mark
    }

    // MARK: Link

    /// Looks at the link: opens the sockets when it came up, closes them when it went down, follows its MTU.
    mutating func checkLink() {
        followDevice()
        guard let link = tun.link() else { return }
        if link.mtuBytes != device.mtu {
            device.setMTU(min(link.mtuBytes, 65_535 - WireGuard.overhead))
            limitQueue()
        }
        guard link.isUp != isUp else { return }
        guard link.isUp else {
            isUp = false
            close()
            return
        }
        do {
            install(try TunnelSockets.open(port: listenPort, mark: firewallMark, options: options))
            isUp = true
            device.wakePeers(now: now)
        } catch {
            options.log(.error, "the link is up, but UDP port \(listenPort) cannot be had: \(error)")
        }
    }

    /// The device may have another name, or be in another network namespace. The sockets stay where they are.
    private mutating func followDevice() {
        do {
            // The monitor before it is closed, and thereby forgotten.
            guard try tun.follow() else { return }
            try epoll.add(tun.monitor.number, .read, token: Source.link.rawValue)
            options.log(.detail, "\(tun.name) is in another network namespace now")
        } catch {
            options.log(.error, "\(tun.name) was moved and cannot be followed: \(error)")
        }
    }

    private mutating func close() {
        flush()
        if let number = v4?.number { epoll.remove(number) }
        if let number = v6?.number { epoll.remove(number) }
        formerSockets = socketCounters()
        v4 = nil
        v6 = nil
    }

    private mutating func install(_ sockets: consuming TunnelSockets) {
        close()
        listenPort = sockets.port
        v4 = sockets.v4.take()
        v6 = sockets.v6.take()
        usesSegmentation = v4?.features.segmentation ?? true && v6?.features.segmentation ?? true
        do {
            if let number = v4?.number { try epoll.add(number, .read, token: Source.udp4.rawValue) }
            if let number = v6?.number { try epoll.add(number, .read, token: Source.udp6.rawValue) }
        } catch {
            options.log(.error, "\(error)")
        }
    }
}

/// The sockets of both families on one port.
struct TunnelSockets: ~Copyable {
    var v4: UDPSocket?
    var v6: UDPSocket?
    private(set) var port: UInt16

    /// How many ports of the kernel's choice are tried: the choice is free in one family, but may be taken in
    /// the other.
    private static let attempts = 100

    /// Sockets on `port`, or on any port that is free in both families when it is 0.
    static func open(
        port: UInt16, mark: UInt32, options: WireGuardTunnel.Options
    ) throws(SystemError) -> TunnelSockets {
        for _ in 1..<attempts where port == 0 {
            do throws(SystemError) {
                return try TunnelSockets(port: port, mark: mark, options: options)
            } catch {
                guard error.isAddressInUse else { throw error }
            }
        }
        return try TunnelSockets(port: port, mark: mark, options: options)
    }

    /// A machine may lack one family, not both; a port that is taken in either is an error.
    private init(port: UInt16, mark: UInt32, options: WireGuardTunnel.Options) throws(SystemError) {
        v4 = nil
        v6 = nil
        self.port = port
        do {
            let socket = try UDPSocket(
                bindingTo: .any(v4: false, port: port), mayFragment: true, reportsDestination: true)
            self.port = socket.localAddress.port
            v6 = consume socket
        } catch {
            if error.isAddressInUse { throw error }
            options.log(.notice, "UDP: no IPv6 (\(error))")
        }
        do {
            v4 = try UDPSocket(
                bindingTo: .any(v4: true, port: self.port), mayFragment: true, reportsDestination: true)
        } catch {
            let isAlone = v6 == nil
            if error.isAddressInUse || isAlone { throw error }
            options.log(.notice, "UDP: no IPv4 (\(error))")
        }
        if let bound = v4?.localAddress.port { self.port = bound }
        if mark != 0 {
            try v4?.setMark(mark)
            try v6?.setMark(mark)
        }
        if !options.usesSegmentation {
            v4?.disableSegmentation()
            v6?.disableSegmentation()
        }
        if !options.usesCoalescing {
            v4?.disableCoalescing()
            v6?.disableCoalescing()
        }
        guard let features = v4?.features ?? v6?.features else { return }
        if !features.segmentation { options.log(.notice, "UDP: no UDP_SEGMENT, so one send per datagram") }
        if !features.coalescing { options.log(.notice, "UDP: no UDP_GRO, so one message per datagram") }
        if features.bufferBytes < UDPSocket.bufferBytes {
            options.log(.notice, "UDP: socket buffers of \(features.bufferBytes) bytes")
        }
    }
}
