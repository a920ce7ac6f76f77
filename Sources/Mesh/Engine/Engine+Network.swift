// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// Where packets to the rest of the world go, by family.
struct DefaultRoutes: Hashable {
    var v4: DefaultRoute?
    var v6: DefaultRoute?

    /// Those of this moment, in the engine's network namespace.
    static func current() -> DefaultRoutes {
        DefaultRoutes(v4: DefaultRoute.current(v4: true), v6: DefaultRoute.current(v4: false))
    }

    /// Own addresses towards addresses that nobody has: those of documentation.
    static func sources() -> [IPAddress] {
        ["192.0.2.1", "2001:db8::1"].compactMap { IPAddress($0) }
            .compactMap { DefaultRoute.source(towards: SocketAddress($0, port: 9).kernel) }
            .map { IPAddress($0) }
    }
}

// Changes of the machine's network, sleep, and the router's port mapping. `path-selection.md` §8, §10.
extension Engine {
    /// Messages of one change come within milliseconds; a session stalls until it is looked at.
    static let linkSettles = Interval.milliseconds(50)
    /// A jump that is no scheduling delay.
    private static let leastSleep: UInt64 = 1_000_000_000

    // MARK: Links

    /// The kernel said that something changed. Another default route means another network. Addresses come and go
    /// with containers and VPNs: only one that packets left from takes paths with it; else it is enough to publish
    /// what there is now. `path-selection.md` §8.
    mutating func checkLink() {
        let used = usedAddresses()
        updateLocalAddresses()
        let found = configuration.binding == .any ? DefaultRoutes.current() : routes
        let isRerouted = found != routes
        routes = found
        if isRerouted || !used.isSubset(of: interfaceAddresses) { linkChanged(isMajor: isRerouted) }
        updatePortMapper()
    }

    /// Own addresses that packets leave from.
    private func usedAddresses() -> Set<IPAddress> {
        var used = Set(routeSources)
        for link in relays where link.isOpen && Descriptor.kind(link.number) == .tcp {
            if let address = localAddress(link.number) { used.insert(address) }
        }
        return used.intersection(interfaceAddresses)
    }

    /// The machine is elsewhere: whatever was known of paths is in doubt. `isMajor`: sockets are opened anew, on the
    /// same port, lest they remember routes or errors of the old network.
    mutating func linkChanged(isMajor: Bool = true) {
        log("network changed", [("default route", isMajor ? "changed" : "same")])
        if isMajor { rebind() }
        updateLocalAddresses()
        discovery.linkChanged(now: now)
        paths.linkChanged(now: now)
        if isMajor { hub.notify(.networkChanged) }
        checkRelays()
        stack.repeatNow(now)
        resolveAt = now
        if configuration.relayDialer != nil { measure() }
    }

    // MARK: Sleep

    /// The clock jumped, or nothing happened for a while: did the machine sleep? Its clock then went on without it.
    mutating func checkSleep() {
        let found = Clock.sleptNanoseconds()
        defer { slept = found }
        guard found > slept, found - slept > Self.leastSleep else { return }
        log("the machine woke up", [("slept seconds", "\((found - slept) / 1_000_000_000)")])
        linkChanged()
    }

    /// A way to the peer was found: what got lost before need not wait for its repetition.
    mutating func wayFound(_ id: PeerID) {
        stack.repeatNow(now)
        unanswered.hurry(id, now: now)
    }

    /// The direct path swallowed what was sent; from now on the relay carries it as well.
    mutating func wayLost(_ id: PeerID) {
        guard let name = peers.name(id), let record = peers.record(name) else { return }
        stack.repeatLost(now, to: record.peer.allowedIPs)
        unanswered.hurry(id, now: now)
    }

    // MARK: Port mapping

    /// Tells the mapper where it is.
    mutating func updatePortMapper() {
        guard portMapSocket != nil else { return }
        let gateway = paths.isDirectBlocked ? nil : routes.v4?.gateway
        let own = gateway.flatMap { DefaultRoute.source(towards: $0) }
        portMapper.setNetwork(
            gateway: gateway.map { IPAddress($0) }, own: own.map { IPAddress($0) },
            port: v4?.localAddress.port,
            now: now)
    }

    /// Takes datagrams of the router.
    mutating func receivePortMapping() {
        // Bounded: the socket is level-triggered.
        for _ in 0..<16 {
            guard let (bytes, source) = portMapSocket?.receive() else { return }
            portMapper.receive(bytes, from: SocketAddress(source), now: now)
        }
    }

    /// The node ends: the router should not keep what was asked of it. Its answer is not waited for long.
    mutating func releasePortMapping() {
        portMapper.release()
        while let output = portMapper.nextOutput() {
            if case .http(_, let address, let request) = output {
                _ = GatewayHTTP.exchange(address, request, limit: GatewayHTTP.shortLimit)
            } else {
                sendToGateway(output)
            }
        }
    }

    @inline(never)  // as above: the compiler
    private mutating func sendToGateway(_ output: PortMapper.Output) {
        switch output {
        case .udp(let address, let bytes): portMapSocket?.send(bytes, to: address.kernel)
        case .http(let id, let address, let request): hub.notify(.askGateway(id: id, address, request))
        }
    }

    /// Sends what the mapper has to say, and offers what it got.
    mutating func drivePortMapper() {
        while let output = portMapper.nextOutput() { sendToGateway(output) }
        var external: [SocketAddress] = []
        if let address = portMapper.external { external.append(address) }
        guard external != offeredMapping else { return }
        offeredMapping = external
        log(
            "port mapping",
            [
                ("address", external.first.map { "\($0)" } ?? "none"),
                ("by", portMapper.service?.rawValue ?? "-"),
            ])
        discovery.setPortMapped(external, now: now)
    }
}

/// One HTTP exchange with the router of this network.
enum GatewayHTTP {
    /// Upstream waits a second for a description; slow routers need longer for a mapping. Nanoseconds.
    static let limit: UInt64 = 3_000_000_000
    /// For the last request of a node.
    static let shortLimit: UInt64 = 300_000_000

    /// Sends a request and reads until the end of the answer. Blocks for up to `limit`: never in an engine that runs.
    static func exchange(_ address: SocketAddress, _ request: [UInt8], limit: UInt64) -> [UInt8]? {
        guard let socket = try? StreamSocket.connect(to: address.kernel) else { return nil }
        let deadline = Clock.monotonicNanoseconds() + limit
        var rest = request[...]
        var answer: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 8_192)
        while answer.count <= UPnP.responseLimit {
            let now = Clock.monotonicNanoseconds()
            guard now < deadline, socket.waitReady(forWriting: !rest.isEmpty, nanoseconds: deadline - now)
            else {
                return nil
            }
            let number = socket.number
            if !rest.isEmpty {
                guard (try? StreamSocket.outcome(number)) != nil else { return nil }
                let result = unsafe rest.withUnsafeBytes {
                    unsafe Descriptor.write(number, $0, isSocket: true)
                }
                switch result {
                case .moved(let count): rest = rest.dropFirst(count)
                case .wouldBlock: break
                case .end, .failed: return nil
                }
                continue
            }
            let result = unsafe buffer.withUnsafeMutableBytes { unsafe Descriptor.read(number, into: $0) }
            switch result {
            case .moved(let count):
                answer += buffer[..<count]
                if UPnP.isComplete(answer) { return answer }
            case .wouldBlock: break
            case .end: return answer
            case .failed: return nil
            }
        }
        return nil
    }
}
