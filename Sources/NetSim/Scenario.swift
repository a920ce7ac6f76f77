// SPDX-License-Identifier: Apache-2.0

public import Mesh

/// A network, what happens in it, and what is expected: the content of a scenario file. Times are seconds.
public struct Scenario: Codable, Sendable {
    /// How a NAT treats endpoints it did not see before (RFC 4787 §4.1, §5).
    public enum Dependence: String, Codable, Sendable, CaseIterable {
        /// One port for all destinations; or: everybody may answer.
        case independent
        /// One port for each address; or: only addresses that were sent to.
        case address
        /// One port for each address and port; or: only those that were sent to.
        case addressAndPort = "address-and-port"
    }

    /// A router between its inside and the net, or another router.
    public struct Router: Codable, Sendable {
        /// How others refer to it.
        public var name: String
        /// The router in front of it (CGNAT); nil for the net.
        public var behind: String?
        /// Which outside ports inside sockets get.
        public var mapping = Dependence.independent
        /// Who may send to them.
        public var filtering = Dependence.addressAndPort
        /// Whether an inside host reaches another by its outside address.
        public var hairpin = false
        /// Idle time after which a mapping ends.
        public var mappingLife = 60.0
        /// No UDP passes in either direction.
        public var blocksUDP = false
        /// Neither UDP nor TCP but through an HTTP proxy: relays work, with a longer way.
        public var proxyOnly = false
        /// IPv6 is routed, with a firewall that lets in only answers.
        public var v6 = false
        /// NAT-PMP, PCP or UPnP: the host may have a port opened for everybody.
        public var opensPorts = false

        /// An easy home router.
        public init(name: String) { self.name = name }
    }

    /// A node of the mesh.
    public struct Host: Codable, Sendable {
        /// How others refer to it.
        public var name: String
        /// The router it sits behind; nil for a public address.
        public var router: String?
        /// One way to its router or the net, milliseconds.
        public var latency = 5.0
        /// Share of its datagrams that is lost on the way out and in.
        public var lossOut = 0.0
        /// See `lossOut`.
        public var lossIn = 0.0
        /// Largest IP packet of its link; larger ones vanish.
        public var mtu = 1_500
        /// Whether direct paths are switched off.
        public var blocksDirect = false

        /// A node behind `router`.
        public init(name: String, router: String?) {
            self.name = name
            self.router = router
        }
    }

    /// A relay with STUN servers beside it.
    public struct Region: Codable, Sendable {
        /// Its number.
        public var id: Int
        /// One way from the net, milliseconds.
        public var latency = 10.0
        /// STUN servers, each with an address of its own.
        public var stunServers = 2

        /// A region with two STUN servers.
        public init(id: Int) { self.id = id }
    }

    /// Two nodes that talk: a stream each way.
    public struct Session: Codable, Sendable {
        /// One side; it is named by this in expectations.
        public var from: String
        /// The other side.
        public var to: String
        /// When it begins.
        public var at = 1.0

        /// A session from the first second on.
        public init(from: String, to: String) {
            self.from = from
            self.to = to
        }
    }

    /// Something that goes wrong, or changes.
    public struct Fault: Codable, Sendable {
        /// What.
        public enum Kind: String, Codable, Sendable, CaseIterable {
            /// A host's UDP vanishes until `until`.
            case udpDown = "udp-down"
            /// A host's full-size data vanishes on direct paths while pings live.
            case dataDead = "data-dead"
            /// A host's link carries at most `value` bytes.
            case mtu
            /// A host loses `value` of what it sends and receives.
            case loss
            /// A host sleeps: nothing leaves, arrives or is timed.
            case sleep
            /// A host's clock jumps ahead by `value` seconds.
            case clockJump = "clock-jump"
            /// A host moves behind `target` (empty: the net) with a new address, and notices at once.
            case roam
            /// A router forgets all its mappings.
            case rebind
            /// A relay is gone until `until`.
            case relayDown = "relay-down"
            /// A host's process starts anew, with new keys of discovery.
            case restart
            /// Direct paths are switched off at a host until `until`.
            case blockDirect = "block-direct"
        }

        /// What.
        public var kind: Kind
        /// Host, router or region.
        public var who: String
        /// When.
        public var at: Double
        /// Its end; nil for ever.
        public var until: Double?
        /// See the kind.
        public var value: Double?
        /// See the kind.
        public var target: String?

        /// A fault.
        public init(kind: Kind, who: String, at: Double, until: Double? = nil, value: Double? = nil) {
            self.kind = kind
            self.who = who
            self.at = at
            self.until = until
            self.value = value
        }
    }

    /// What must be so.
    public struct Expectation: Codable, Sendable {
        /// What carries packets.
        public enum Path: String, Codable, Sendable { case direct, relayed, any }

        /// The session's side that looks.
        public var from: String
        /// Its peer.
        public var to: String
        /// When it is looked at.
        public var at: Double
        /// What must carry packets.
        public var path: Path
        /// The reason that must be named for a path that is not direct.
        public var reason: PathReason?
        /// From then on; with `stall`: the stream may not stand still for longer than so many seconds since then.
        public var since: Double?
        /// See `since`.
        public var stall: Double?

        /// An expectation at one moment.
        public init(from: String, to: String, at: Double, path: Path) {
            self.from = from
            self.to = to
            self.at = at
            self.path = path
        }
    }

    /// Shown in tables.
    public var name: String
    /// What it is about.
    public var comment: String?
    /// Length of the run.
    public var duration: Double
    /// Relays.
    public var regions: [Region]
    /// Routers.
    public var routers: [Router]
    /// Nodes.
    public var hosts: [Host]
    /// Who talks.
    public var sessions: [Session]
    /// What happens.
    public var faults: [Fault]
    /// What must be so.
    public var expectations: [Expectation]
    /// How long a stream may stand still at most, outside of what faults make impossible.
    public var stallLimit = 8.0

    /// An empty network with one relay.
    public init(name: String, duration: Double) {
        self.name = name
        self.duration = duration
        regions = [Region(id: 1)]
        routers = []
        hosts = []
        sessions = []
        faults = []
        expectations = []
    }
}

// Files leave out what has its usual value.

extension KeyedDecodingContainer {
    fileprivate func value<T: Decodable>(_ key: Key, or usual: T) throws -> T {
        try decodeIfPresent(T.self, forKey: key) ?? usual
    }
}

extension Scenario {
    /// Reads a file's form.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            name: try values.decode(String.self, forKey: .name),
            duration: try values.decode(Double.self, forKey: .duration))
        comment = try values.decodeIfPresent(String.self, forKey: .comment)
        regions = try values.value(.regions, or: regions)
        routers = try values.value(.routers, or: [])
        hosts = try values.decode([Host].self, forKey: .hosts)
        sessions = try values.value(.sessions, or: [])
        faults = try values.value(.faults, or: [])
        expectations = try values.value(.expectations, or: [])
        stallLimit = try values.value(.stallLimit, or: stallLimit)
    }
}

extension Scenario.Router {
    /// Reads a file's form.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(name: try values.decode(String.self, forKey: .name))
        behind = try values.decodeIfPresent(String.self, forKey: .behind)
        mapping = try values.value(.mapping, or: mapping)
        filtering = try values.value(.filtering, or: filtering)
        hairpin = try values.value(.hairpin, or: false)
        mappingLife = try values.value(.mappingLife, or: mappingLife)
        blocksUDP = try values.value(.blocksUDP, or: false)
        proxyOnly = try values.value(.proxyOnly, or: false)
        v6 = try values.value(.v6, or: false)
        opensPorts = try values.value(.opensPorts, or: false)
    }
}

extension Scenario.Host {
    /// Reads a file's form.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            name: try values.decode(String.self, forKey: .name),
            router: try values.decodeIfPresent(String.self, forKey: .router))
        latency = try values.value(.latency, or: latency)
        lossOut = try values.value(.lossOut, or: 0)
        lossIn = try values.value(.lossIn, or: 0)
        mtu = try values.value(.mtu, or: mtu)
        blocksDirect = try values.value(.blocksDirect, or: false)
    }
}

extension Scenario.Region {
    /// Reads a file's form.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(id: try values.decode(Int.self, forKey: .id))
        latency = try values.value(.latency, or: latency)
        stunServers = try values.value(.stunServers, or: stunServers)
    }
}

extension Scenario.Session {
    /// Reads a file's form.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            from: try values.decode(String.self, forKey: .from),
            to: try values.decode(String.self, forKey: .to))
        at = try values.value(.at, or: at)
    }
}
