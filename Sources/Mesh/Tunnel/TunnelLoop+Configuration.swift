// SPDX-License-Identifier: Apache-2.0

package import LinuxIO

// What `wg` sets and asks beyond the device's peers; call within `WireGuardTunnel.perform`. Peers and keys are
// changed through `device`.
extension TunnelLoop {
    /// Where packets to the peer go.
    package func endpoint(of index: WireGuard.PeerIndex) -> SocketAddress? {
        kernelEndpoint(of: index).map { SocketAddress($0) }
    }

    /// Sets where packets to the peer go from now on.
    package mutating func setEndpoint(_ address: SocketAddress?, of index: WireGuard.PeerIndex) {
        place(address?.kernel, of: Int(index.slot))
    }

    /// Where packets to the peer go, as the kernel takes it.
    @inline(__always)
    func kernelEndpoint(of index: WireGuard.PeerIndex) -> KernelAddress? {
        let slot = Int(index.slot)
        return slot < endpoints.count ? endpoints[slot] : nil
    }

    /// Enters or takes out a place.
    @inline(never)
    mutating func place(_ address: KernelAddress?, of slot: Int) {
        while endpoints.count <= slot { endpoints.append(nil) }
        endpoints[slot] = address
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
            options.log("UDP port \(listenPort): \(error)")
        }
    }

    private mutating func close() {
        flush()
        if let number = v4?.number { epoll.remove(number) }
        if let number = v6?.number { epoll.remove(number) }
        v4 = nil
        v6 = nil
    }

    private mutating func install(_ sockets: consuming TunnelSockets) {
        close()
        listenPort = sockets.port
        v4 = sockets.v4.take()
        v6 = sockets.v6.take()
        do {
            if let number = v4?.number { try epoll.add(number, .read, token: Source.udp4.rawValue) }
            if let number = v6?.number { try epoll.add(number, .read, token: Source.udp6.rawValue) }
        } catch {
            options.log("\(error)")
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
            let socket = try UDPSocket(bindingTo: .any(v4: false, port: port), mayFragment: true)
            self.port = socket.localAddress.port
            v6 = consume socket
        } catch {
            if error.isAddressInUse { throw error }
            options.log("UDP: no IPv6 (\(error))")
        }
        do {
            v4 = try UDPSocket(bindingTo: .any(v4: true, port: self.port), mayFragment: true)
        } catch {
            let isAlone = v6 == nil
            if error.isAddressInUse || isAlone { throw error }
            options.log("UDP: no IPv4 (\(error))")
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
        guard let features = v4?.features ?? v6?.features else { return }
        if !features.segmentation { options.log("UDP: no UDP_SEGMENT, so one send per datagram") }
        if !features.coalescing { options.log("UDP: no UDP_GRO, so one message per datagram") }
        if features.bufferBytes < UDPSocket.bufferBytes {
            options.log("UDP: socket buffers of \(features.bufferBytes) bytes")
        }
    }
}
