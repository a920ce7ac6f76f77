// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// Asks the router of this network to forward a UDP port to us: PCP, NAT-PMP, and if neither answers UPnP. Pure.
///
/// Tell it the network with `setNetwork`, feed it what comes, call `nextOutput` until nil and `handleTimeout` by
/// `nextDeadline`; `external` is the address that others can use. Only the gateway is listened to.
/// `path-selection.md` §10, RFC 6886, RFC 6887.
package struct PortMapper: Sendable {
    /// Times and bounds.
    package struct Limits: Sendable {
        /// What is asked for; renewed at half of what is granted. `path-selection.md` §10.
        package var lifetimeSeconds: UInt32 = 7_200
        /// When PCP and NAT-PMP are asked, after the beginning. RFC 6886 §3.1, but not for a minute.
        package var tries: [Interval] = [.zero, .milliseconds(250), .milliseconds(750)]
        /// When UPnP joins in, to the gateway alone and then to all: routers that speak PCP have answered by then.
        package var searches: [Interval] = [.milliseconds(50), .milliseconds(400)]
        /// A search is over after this.
        package var search = Interval.seconds(4)
        /// A gateway that offers nothing is asked again after this. `path-selection.md` §10.
        package var rest = Interval.seconds(600)
        /// How often a gateway is asked whether it still knows what it granted (its epoch tells).
        package var check = Interval.seconds(120)
        /// Nothing is believed to be granted for less (a gateway must not make us busy) or more.
        package var grant: ClosedRange<UInt32> = 120...86_400
        /// Outer ports tried when UPnP says that one is taken.
        package var conflicts = 4
        /// Bytes and outputs that wait.
        package var outputs = 32

        package init() {}
    }

    /// How a mapping was made.
    package enum Service: String, Hashable, Sendable {
        case pcp
        case natPMP = "nat-pmp"
        case upnp
    }

    /// What has to be sent.
    package enum Output: Hashable, Sendable {
        /// A datagram.
        case udp(SocketAddress, [UInt8])
        /// A whole HTTP request to this address; hand the whole answer, or nil, to `receiveHTTP`.
        case http(id: UInt64, SocketAddress, [UInt8])
    }

    struct Network: Hashable {
        var gateway: IPAddress
        var own: IPAddress
        var port: UInt16
    }

    struct Mapping {
        var service: Service
        var external: SocketAddress
        var renewAt: Instant
        var expires: Instant
        /// UPnP's only: where it was asked for.
        var upnp: UPnP.Service?
    }

    enum HTTPStep {
        case description(UPnP.Location)
        case address(UPnP.Service)
        case map(UPnP.Service, external: IPAddress, port: UInt16, conflicts: Int, lease: UInt32)
    }

    let limits: Limits
    var random: SecureGenerator
    var network: Network?
    private var nonce: PCP.Nonce
    var mapping: Mapping?
    /// The present search, if there is one: when it began, and what is still to be sent.
    private var searchBegan: Instant?
    private var triesDone = 0
    private var searchesDone = 0
    private var restUntil = Instant.never
    private var checkAt = Instant.never
    private var lastEpoch: (value: UInt32, at: Instant)?
    private var pmpAddress: IPAddress?
    private var pmpPort: (external: UInt16, lifetime: UInt32)?
    var steps: [UInt64: HTTPStep] = [:]
    var nextStep: UInt64 = 1
    private var outputs = Deque<Output>()
    /// Services that the gateway was seen to have.
    package private(set) var seen: Set<Service> = []
    /// What came from the gateway and could not be used.
    package internal(set) var badAnswers: UInt64 = 0
    /// Datagrams from others than the gateway.
    package private(set) var strangers: UInt64 = 0

    package init(limits: Limits = Limits(), random: SecureGenerator) {
        self.limits = limits
        self.random = random
        nonce = TransactionID(using: &self.random)
    }

    /// The address that the router forwards to us, and how it was asked.
    package var external: SocketAddress? { mapping?.external }
    /// How `external` was made.
    package var service: Service? { mapping?.service }

    // MARK: Network

    /// The IPv4 gateway, our address towards it, and the port of our socket; nil when there is none, or when direct
    /// paths are not wanted. A gateway outside of the private ranges is no home router and is not asked.
    package mutating func setNetwork(gateway: IPAddress?, own: IPAddress?, port: UInt16?, now: Instant) {
        var next: Network?
        if let gateway, let own, let port, port != 0, gateway.isV4, own.isV4, gateway.isPrivate, own.isPrivate
        {
            next = Network(gateway: gateway, own: own, port: port)
        }
        guard next != network else { return }
        if let old = network, next?.gateway == old.gateway || next == nil { release() }
        forget()
        seen = []
        network = next
        nonce = TransactionID(using: &random)
        if next != nil { search(now) }
    }

    /// Gives the mapping back, by one datagram or one HTTP request whose answer does not matter.
    package mutating func release() {
        guard let network, let mapping else { return }
        switch mapping.service {
        case .pcp: sendPCP(network, lifetime: 0)
        case .natPMP:
            let bytes = NATPMP.mapRequest(internalPort: network.port, externalPort: 0, lifetimeSeconds: 0)
            push(.udp(SocketAddress(network.gateway, port: NATPMP.port), bytes))
        case .upnp:
            guard let service = mapping.upnp else { return }
            let call = UPnP.call(
                "DeletePortMapping",
                [
                    "NewRemoteHost": "", "NewExternalPort": "\(mapping.external.port)", "NewProtocol": "UDP",
                ], of: service, gateway: network.gateway)
            push(.http(id: nextStep, SocketAddress(network.gateway, port: service.control.port), call))
            nextStep += 1
        }
    }

    private mutating func forget() {
        mapping = nil
        searchBegan = nil
        restUntil = .never
        checkAt = .never
        lastEpoch = nil
        pmpAddress = nil
        pmpPort = nil
        steps = [:]
    }

    private mutating func search(_ now: Instant) {
        searchBegan = now
        triesDone = 0
        searchesDone = 0
        restUntil = .never
        pmpPort = nil
        handleTimeout(now: now)
    }

    // MARK: Time

    /// When `handleTimeout` must be called at the latest.
    package var nextDeadline: Instant {
        var result = min(restUntil, checkAt)
        if let mapping {
            result = min(result, mapping.expires)
            if searchBegan == nil, restUntil == .never { result = min(result, mapping.renewAt) }
        }
        guard let searchBegan else { return result }
        result = min(result, searchBegan + limits.search)
        if triesDone < limits.tries.count { result = min(result, searchBegan + limits.tries[triesDone]) }
        if searchesDone < limits.searches.count, wantsUPnP {
            result = min(result, searchBegan + limits.searches[searchesDone])
        }
        return result
    }

    /// A mapping of another kind is renewed the way it was made.
    var wantsUPnP: Bool { mapping.map { $0.service == .upnp } ?? true }

    /// Does what is due.
    package mutating func handleTimeout(now: Instant) {
        guard let network else { return }
        if let mapping, now >= mapping.expires { self.mapping = nil }
        if now >= checkAt { check(network, now) }
        if now >= restUntil { return search(now) }
        if searchBegan == nil, restUntil == .never, let mapping, now >= mapping.renewAt { return search(now) }
        guard let searchBegan else { return }
        while triesDone < limits.tries.count, now >= searchBegan + limits.tries[triesDone] {
            // PCP first; a gateway that knows only NAT-PMP says so. RFC 6887 §9.
            if mapping?.service != .natPMP { sendPCP(network, lifetime: limits.lifetimeSeconds) }
            if triesDone > 0 || mapping?.service == .natPMP || seen.contains(.natPMP) { sendPMP(network) }
            triesDone += 1
        }
        while wantsUPnP, searchesDone < limits.searches.count,
            now >= searchBegan + limits.searches[searchesDone]
        {
            let target = searchesDone == 0 ? network.gateway : UPnP.group
            for bytes in UPnP.searches { push(.udp(SocketAddress(target, port: UPnP.port), bytes)) }
            searchesDone += 1
        }
        if now >= searchBegan + limits.search {
            self.searchBegan = nil
            restUntil = now + (mapping == nil ? limits.rest : .seconds(60))
        }
    }

    /// One datagram tells whether the gateway was restarted, and whether its address changed.
    private mutating func check(_ network: Network, _ now: Instant) {
        checkAt = .never
        guard let mapping else { return }
        checkAt = now + limits.check
        let gateway = SocketAddress(network.gateway, port: NATPMP.port)
        switch mapping.service {
        case .pcp: push(.udp(gateway, PCP.announceRequest(own: network.own)))
        case .natPMP: push(.udp(gateway, NATPMP.externalAddressRequest))
        case .upnp: checkAt = .never
        }
    }

    private mutating func sendPCP(_ network: Network, lifetime: UInt32) {
        let bytes = PCP.mapRequest(
            own: network.own, nonce: nonce, internalPort: network.port,
            suggested: lifetime == 0 ? nil : mapping?.external, lifetimeSeconds: lifetime)
        push(.udp(SocketAddress(network.gateway, port: NATPMP.port), bytes))
    }

    private mutating func sendPMP(_ network: Network) {
        let gateway = SocketAddress(network.gateway, port: NATPMP.port)
        push(.udp(gateway, NATPMP.externalAddressRequest))
        push(
            .udp(
                gateway,
                NATPMP.mapRequest(
                    internalPort: network.port, externalPort: mapping?.external.port ?? 0,
                    lifetimeSeconds: limits.lifetimeSeconds)))
    }

    mutating func push(_ output: Output) {
        guard outputs.count < limits.outputs else { return }
        outputs.append(output)
    }

    /// The next thing to send. Not inlined: Swift 6.3.1 fails on that in the engine.
    @inline(never) package mutating func nextOutput() -> Output? { outputs.popFirst() }

    // MARK: Answers

    /// Takes a datagram.
    package mutating func receive(_ bytes: [UInt8], from source: SocketAddress, now: Instant) {
        guard let network, source.ip == network.gateway else {
            strangers += 1
            return
        }
        if source.port == NATPMP.port {
            receiveMapping(bytes, network, now)
        } else if mapping == nil || mapping?.service == .upnp, searchBegan != nil {
            guard steps.isEmpty, let location = UPnP.location(inSearchAnswer: bytes) else { return }
            seen.insert(.upnp)
            request(
                .description(location), at: location.port,
                UPnP.descriptionRequest(location, gateway: network.gateway))
        }
    }

    private mutating func receiveMapping(_ bytes: [UInt8], _ network: Network, _ now: Instant) {
        do {
            if bytes.first == 2 {
                try receivePCP(unsafe PCP.parse(bytes.span.bytes, nonce: nonce), network, now)
            } else {
                try receivePMP(unsafe NATPMP.parse(bytes.span.bytes), network, now)
            }
        } catch {
            badAnswers += 1
        }
    }

    private mutating func receivePCP(
        _ answer: PCP.Answer, _ network: Network, _ now: Instant
    ) throws(PortMappingError) {
        switch answer {
        case .announced(let epoch):
            seen.insert(.pcp)
            noteEpoch(epoch, now)
        case .mapped(let external, let port, let lifetime, let epoch):
            guard port == network.port else { throw .notOurs }
            seen.insert(.pcp)
            noteEpoch(epoch, now)
            guard lifetime > 0 else { return }
            take(.pcp, external, lifetime, now)
        case .refused(_, _, _, let epoch):
            // 2 not authorised, 12 address mismatch, …: none for us here; another service may grant it.
            noteEpoch(epoch, now)
        }
    }

    private mutating func receivePMP(
        _ answer: NATPMP.Answer, _ network: Network, _ now: Instant
    ) throws(PortMappingError) {
        switch answer {
        case .externalAddress(let ip, let epoch):
            seen.insert(.natPMP)
            noteEpoch(epoch, now)
            pmpAddress = ip
            if let mapping, mapping.service == .natPMP, mapping.external.ip != ip { search(now) }
        case .mapped(let port, let external, let lifetime, let epoch):
            guard port == network.port else { throw .notOurs }
            seen.insert(.natPMP)
            noteEpoch(epoch, now)
            guard lifetime > 0 else { return }
            pmpPort = (external, lifetime)
        case .refused(_, let result, let epoch):
            if result == NATPMP.unsupportedVersion {
                // It does not know PCP: NAT-PMP without waiting.
                if searchBegan != nil, !seen.contains(.natPMP) {
                    seen.insert(.natPMP)
                    sendPMP(network)
                }
                return
            }
            noteEpoch(epoch, now)
        }
        if let pmpPort, let pmpAddress {
            self.pmpPort = nil
            take(.natPMP, SocketAddress(pmpAddress, port: pmpPort.external), pmpPort.lifetime, now)
        }
    }

    mutating func take(
        _ service: Service, _ external: SocketAddress, _ granted: UInt32, _ now: Instant
    ) {
        guard external.ip.isV4, !external.ip.isUnspecified, !external.ip.isLoopback, !external.ip.isMulticast,
            external.port != 0
        else {
            badAnswers += 1
            return
        }
        // While a better service holds a mapping, another one's late answer does not replace it.
        if let mapping, mapping.service != service, now < mapping.renewAt { return }
        let seconds = UInt64(min(max(granted, limits.grant.lowerBound), limits.grant.upperBound))
        mapping = Mapping(
            service: service, external: external, renewAt: now + .seconds(seconds / 2),
            expires: now + .seconds(seconds))
        searchBegan = nil
        restUntil = .never
        if service != .upnp { checkAt = now + limits.check }
    }

    /// RFC 6886 §3.6, RFC 6887 §8.5: a gateway whose clock went back has forgotten what it granted.
    private mutating func noteEpoch(_ epoch: UInt32, _ now: Instant) {
        defer { lastEpoch = (epoch, now) }
        guard let last = lastEpoch else { return }
        let elapsed = now.since(last.at).nanoseconds / 1_000_000_000
        let expected = UInt64(last.value) + elapsed * 7 / 8
        if UInt64(epoch) + 2 < expected, mapping != nil, searchBegan == nil { search(now) }
    }
}
