// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// A node key as words: hashed and compared in place, without a call into another module.
struct ClientKey: Hashable {
    let a: UInt64
    let b: UInt64
    let c: UInt64
    let d: UInt64

    @inline(__always) init(_ key: NodePublicKey) { (a, b, c, d) = key.words }

    var publicKey: NodePublicKey { NodePublicKey(words: (a, b, c, d)) }

    /// Keys are chosen by clients, but none can find two that share eight bytes; the hash itself is seeded.
    func hash(into hasher: inout Hasher) { hasher.combine(a) }

    /// Writes the 32 bytes.
    @inline(__always) func store(to memory: UnsafeMutableRawPointer) {
        memory.storeBytes(of: a.littleEndian, as: UInt64.self)
        memory.storeBytes(of: b.littleEndian, toByteOffset: 8, as: UInt64.self)
        memory.storeBytes(of: c.littleEndian, toByteOffset: 16, as: UInt64.self)
        memory.storeBytes(of: d.littleEndian, toByteOffset: 24, as: UInt64.self)
    }
}

/// Numbers of the connections that a key sent to: they hear when it leaves. Forgets those that are gone; when all are
/// there and full, further ones do not hear.
struct SentTo {
    private(set) var numbers: Set<UInt64> = []
    private let limit: Int
    private var pruneAt = 64
    /// How often there was no room since those that are gone were forgotten.
    private var skipped = 0

    init(limit: Int) { self.limit = limit }

    /// Notes a packet to connection `number`.
    mutating func insert(_ number: UInt64, isOpen: (UInt64) -> Bool) {
        if numbers.count >= limit, !numbers.contains(number) {
            skipped += 1
            // Looking at all of them for each packet would cost too much.
            guard skipped >= 1_024 else { return }
            skipped = 0
            numbers = numbers.filter(isOpen)
            guard numbers.count < limit else { return }
        }
        numbers.insert(number)
        guard numbers.count >= pruneAt else { return }
        numbers = numbers.filter(isOpen)
        pruneAt = max(64, numbers.count * 2)
    }

    mutating func formUnion(_ other: SentTo) {
        for number in other.numbers.sorted() where numbers.count < limit { numbers.insert(number) }
    }
}

/// All connections with one key. Owned by the relay's thread. `derp.md` §6.4.
final class KeyState {
    let key: ClientKey
    var members: [RelayClient] = []
    /// Gets the packets: the one that spoke last.
    var active: RelayClient?
    /// Who spoke, in order, each once; the last is `active`.
    var speakers: [RelayClient] = []
    var sentTo: SentTo

    init(_ key: ClientKey, acquaintances: Int) {
        self.key = key
        sentTo = SentTo(limit: acquaintances)
    }

    /// `client` said something.
    func noteSpeaker(_ client: RelayClient) {
        active = client
        if speakers.last === client { return }
        speakers.removeAll { $0 === client }
        speakers.append(client)
    }
}

/// A key that is connected to other relays of the mesh. `derp.md` §8.
final class RemoteKey {
    /// Connections to the relays that have it; the first gets its packets.
    var links: [RelayClient] = []
    var sentTo: SentTo

    init(acquaintances: Int) { sentTo = SentTo(limit: acquaintances) }
}

/// Packets of one sender that wait for one client.
final class Flow {
    let source: UInt64
    var queue = FrameQueue()

    init(source: UInt64) { self.source = source }
}

/// What makes us a client of another relay.
final class RelayLink {
    var session: DERPMeshSession
    /// Keys that the other relay has.
    var keys: Set<ClientKey> = []
    var end = Relay.LinkEnd.closed
    /// When it said something last.
    var heardAt: UInt64
    let ended: @Sendable (Relay.LinkEnd) -> Void

    init(session: DERPMeshSession, now: UInt64, ended: @escaping @Sendable (Relay.LinkEnd) -> Void) {
        self.session = session
        heardAt = now
        self.ended = ended
    }
}

/// One connection. Owned by the relay's thread.
final class RelayClient {
    /// Why nothing is read from a client now.
    struct Pause: OptionSet {
        let rawValue: UInt8
        /// Its one destination takes less than it sends.
        static let destination = Pause(rawValue: 1)
        /// It used up its rate.
        static let rate = Pause(rawValue: 2)
        /// It is not known yet whether it may be here.
        static let admission = Pause(rawValue: 4)
    }

    let number: UInt64
    let descriptor: Int32
    /// What its bytes are sealed with; nil: they are those of the socket.
    let cipher: (any RelayCipher)?
    let opened: UInt64
    let source: String
    var session: DERPServerSession
    /// Set for connections that we opened to other relays.
    var link: RelayLink?
    var key: KeyState?
    /// Frame type and first key bytes of what it sends are rewritten in place; the key is needed for each.
    var ownKey: ClientKey?
    /// Who logged in, until it is admitted.
    var applicant: (key: NodePublicKey, info: DERPClientInfo)?
    var isClosed = false
    var isHome = false
    var isWatcher = false
    var canAckPings = false
    /// Whether it heard that another connection with its key took its packets.
    var isToldDuplicate = false
    /// The begun frame at the end of the last read; all that follows while the client is paused.
    var partial: [UInt8] = []
    /// Length that the begun frame will have; 0: not known, or there is more than one.
    var neededBytes = 0
    /// Since when it is begun.
    var partialSince: UInt64 = 0
    /// Whether its bytes count as those of one that is not logged in.
    var isPartialLogin = false
    /// What was sealed and the kernel did not take.
    var sealed: [UInt8] = []
    /// Rest of a frame that was written in part: goes out before all else.
    var rest: [UInt8] = []
    /// Frames of the relay itself.
    var control: [UInt8] = []
    /// Whether a pong is among them.
    var hasPong = false
    var disco = FrameQueue()
    /// All else, by sender, so that one who sends much delays itself only.
    var flows: [Flow] = []
    /// Of all flows together.
    var bulkBytes = 0
    var bulkFrames = 0
    /// Flow that is written next.
    var turn = 0
    /// Whether the kernel refused bytes; then epoll tells when it takes more.
    var isBlocked = false
    /// What epoll watches for.
    var interest: Epoll.Interest = .read
    var isDirty = false
    /// Since when bytes wait that nobody takes; 0: none do.
    var stalledSince: UInt64 = 0
    var keepAliveAt: UInt64

    var pauses: Pause = []
    /// Whether the relay's list of paused clients has it.
    var isListedAsPaused = false
    /// When a pause for its destination or its rate ends at the latest.
    var pausedUntil: UInt64 = 0
    /// Who waits for this client's queue to become shorter.
    var pausedSenders: [RelayClient] = []
    /// When its queue became shorter last.
    var progressAt: UInt64 = 0
    /// Bytes that it may still send before its rate is used up.
    var rateTokens: Int
    var rateAt: UInt64

    /// Where its last packet went, and through which connection.
    var lastDestination: ClientKey?
    var lastTarget: KeyState?
    var lastTargetClient: UInt64 = 0
    /// When it last sent discovery to somebody else; 0: never.
    var discoElsewhereAt: UInt64 = 0
    /// When it last sent to somebody else than before.
    var switchedAt: UInt64 = 0
    /// "Not here" messages: three at once, one per second.
    var notHereTokens = 3.0
    var notHereAt: UInt64 = 0

    init(
        number: UInt64, descriptor: Int32, cipher: (any RelayCipher)?, session: DERPServerSession,
        source: String, now: UInt64, keepAliveAt: UInt64, rateTokens: Int
    ) {
        self.number = number
        self.descriptor = descriptor
        self.cipher = cipher
        self.session = session
        self.source = source
        self.keepAliveAt = keepAliveAt
        self.rateTokens = rateTokens
        opened = now
        rateAt = now
    }

    /// Whether login is done, on either side.
    var isOpen: Bool { link?.session.isOpen ?? (session.isOpen && applicant == nil) }
    var queuedBytes: Int { disco.bytes + bulkBytes + sealed.count }
    var queuedFrames: Int { disco.frames + bulkFrames }
    var hasOutput: Bool { hasPlainOutput || !sealed.isEmpty }
    var hasPlainOutput: Bool { bulkFrames > 0 || !control.isEmpty || !rest.isEmpty || !disco.isEmpty }

    func mayTellNotHere(_ now: UInt64) -> Bool {
        notHereTokens = min(3, notHereTokens + Double(now - min(now, notHereAt)) / 1e9)
        notHereAt = now
        guard notHereTokens >= 1 else { return false }
        notHereTokens -= 1
        return true
    }

    /// Flows that one client's queue is divided into; senders beyond share.
    private static let maximumFlows = 64

    /// The flow of `source`.
    func flow(of source: UInt64) -> Flow {
        if let first = flows.first, first.source == source { return first }
        if let known = flows.first(where: { $0.source == source }) { return known }
        if flows.count >= Self.maximumFlows { return flows[Int(source % UInt64(Self.maximumFlows))] }
        let flow = Flow(source: source)
        flows.append(flow)
        return flow
    }
}
