// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// How much the flight recorder keeps.
package struct RecorderLimits: Hashable, Sendable {
    /// A part of a record begins with a snapshot and lasts at most so long.
    package var part = Interval.seconds(300)
    /// Entries of a part.
    package var partEntries = 1_024
    /// Parts that ended before this are dropped.
    package var history = Interval.seconds(1_800)
    /// Entries of one peer: half an hour of a busy one, some 600 KiB at most.
    package var peerEntries = 8_192
    /// Entries of all peers; the peer that has most gives first.
    package var allEntries = 32_768
    /// Inputs that concern all peers.
    package var sharedEntries = 2_048

    package init() {}
}

/// One input with its time. `order` counts all inputs of a node.
package struct RecordedInput: Hashable, Sendable, Codable {
    var order: UInt64
    var at: Instant
    var input: PathInput
}

/// The flight recorder of a node: for each peer a ring of snapshots and the inputs that followed. No keys, no payload.
/// Decisions are not kept, only a checksum: they follow from the inputs.
package struct PathRecorder: Sendable {
    struct Part: Sendable {
        var began: Instant
        var ended: Instant
        var order: UInt64
        var start: PathSnapshot
        var inputs: [RecordedInput] = []
        var checksum = PathRecording.emptyChecksum
    }

    let limits: RecorderLimits
    private var parts: [Int: Deque<Part>] = [:]
    private var shared = Deque<RecordedInput>()
    private var order: UInt64 = 0
    /// Order of the newest shared input that was dropped.
    private var sharedLost: UInt64 = 0
    /// Entries held now.
    package private(set) var entries = 0

    init(limits: RecorderLimits) { self.limits = limits }

    /// Whether the next input of this peer begins a part.
    func needsSnapshot(_ slot: Int, now: Instant) -> Bool {
        guard let last = parts[slot]?.last else { return true }
        return last.inputs.count >= limits.partEntries || now.since(last.began) >= limits.part
    }

    mutating func begin(_ slot: Int, _ snapshot: PathSnapshot, now: Instant) {
        order += 1
        parts[slot, default: []].append(Part(began: now, ended: now, order: order, start: snapshot))
        while let first = parts[slot]?.first, parts[slot]?.count ?? 0 > 1,
            now.since(first.ended) > limits.history || count(slot) > limits.peerEntries - limits.partEntries
        {
            dropOldest(slot)
        }
    }

    mutating func add(_ input: PathInput, _ slot: Int, now: Instant) {
        order += 1
        guard var part = parts[slot]?.popLast() else { return }
        part.ended = now
        part.inputs.append(RecordedInput(order: order, at: now, input: input))
        parts[slot]?.append(part)
        entries += 1
        if entries > limits.allEntries { shrink() }
    }

    mutating func addShared(_ input: PathInput, now: Instant) {
        order += 1
        shared.append(RecordedInput(order: order, at: now, input: input))
        while shared.count > limits.sharedEntries { sharedLost = shared.removeFirst().order }
    }

    /// A decision was made.
    mutating func note(_ event: PathEvent, _ slot: Int) {
        guard event.kind.isDecision, var part = parts[slot]?.popLast() else { return }
        PathRecording.extend(&part.checksum, with: event)
        parts[slot]?.append(part)
    }

    mutating func forget(_ slot: Int) {
        entries -= count(slot)
        parts[slot] = nil
    }

    private func count(_ slot: Int) -> Int { parts[slot]?.reduce(0) { $0 + $1.inputs.count } ?? 0 }

    private mutating func dropOldest(_ slot: Int) {
        entries -= parts[slot]?.popFirst()?.inputs.count ?? 0
    }

    private mutating func shrink() {
        let slots = parts.keys.sorted()
        guard let greediest = slots.max(by: { count($0) < count($1) }) else { return }
        if parts[greediest]?.count ?? 0 > 1 { return dropOldest(greediest) }
        entries -= count(greediest)
        parts[greediest] = nil
    }

    /// What is kept of a peer, with the shared inputs in their places.
    func recording(_ slot: Int) -> PathRecording? {
        let usable = (parts[slot] ?? []).filter { $0.order > sharedLost || sharedLost == 0 }
        guard !usable.isEmpty else { return nil }
        var result: [PathRecording.Part] = []
        for (index, part) in usable.enumerated() {
            let end = index + 1 < usable.count ? usable[index + 1].order : UInt64.max
            let between = shared.filter { $0.order > part.order && $0.order < end }
            let inputs = (part.inputs + between).sorted { $0.order < $1.order }
            result.append(
                PathRecording.Part(
                    began: part.began, start: part.start, inputs: inputs, checksum: part.checksum))
        }
        return PathRecording(parts: result)
    }
}

/// What a flight recorder kept of one peer. Encoded as JSON it holds addresses and times, but no keys and no names.
public struct PathRecording: Hashable, Sendable, Codable {
    /// A snapshot and what followed.
    struct Part: Hashable, Sendable, Codable {
        var began: Instant
        var start: PathSnapshot
        var inputs: [RecordedInput]
        /// Of the decisions, as they were made.
        var checksum: UInt64
    }

    /// Version of the format.
    public private(set) var format = 1
    var parts: [Part]

    init(parts: [Part]) { self.parts = parts }

    /// From its first to its last input.
    public var length: Interval {
        guard let first = parts.first, let last = parts.last else { return .zero }
        return (last.inputs.last?.at ?? last.began).since(first.began)
    }
    /// When it begins, by the clock of the node.
    public var began: Instant { parts.first?.began ?? .never }
    /// Inputs kept.
    public var inputCount: Int { parts.reduce(0) { $0 + $1.inputs.count } }

    /// What a replay found.
    public struct Replay: Sendable {
        /// Every decision, in order.
        public var decisions: [PathEvent]
        /// Whether all decisions are those that were made when it was recorded.
        public var isFaithful: Bool
    }

    /// Plays the inputs again on a fresh machine. Cost: that of the original.
    public func replay() -> Replay {
        var result = Replay(decisions: [], isFaithful: true)
        for part in parts {
            var paths = Paths.forReplay()
            guard let slot = paths.slotForReplay(part) else {
                result.isFaithful = false
                continue
            }
            var checksum = Self.emptyChecksum
            for entry in part.inputs {
                paths.replay(entry, slot)
                while let event = paths.nextEvent() {
                    guard event.kind.isDecision, event.peer != nil else { continue }
                    Self.extend(&checksum, with: event)
                    result.decisions.append(event)
                }
            }
            if checksum != part.checksum { result.isFaithful = false }
        }
        return result
    }

    // FNV-1a over what people would read.
    static let emptyChecksum: UInt64 = 0xcbf2_9ce4_8422_2325

    static func extend(_ checksum: inout UInt64, with event: PathEvent) {
        for byte in "\(event.at.nanoseconds) \(event.kind)".utf8 {
            checksum = (checksum ^ UInt64(byte)) &* 0x100_0000_01b3
        }
    }
}

extension Paths {
    mutating func record(_ input: PathInput, _ slot: Int?, now: Instant) {
        guard recorder != nil else { return }
        guard let slot else {
            recorder?.addShared(input, now: now)
            return
        }
        if recorder?.needsSnapshot(slot, now: now) == true {
            let snapshot = snapshot(slot)
            recorder?.begin(slot, snapshot, now: now)
        }
        recorder?.add(input, slot, now: now)
    }

    /// What is kept of a peer.
    package func recording(of id: PeerID) -> PathRecording? {
        slotOfID[id].flatMap { recorder?.recording($0) }
    }

    fileprivate static func forReplay() -> Paths {
        var source = SeededGenerator(seed: 0)
        var limits = Limits()
        limits.recording = nil
        limits.events = 1 << 20
        let keys = (PrivateKey(using: &source), PrivateKey(using: &source))
        return Paths(
            nodeKey: keys.0.nodePublicKey, discoKey: keys.1, limits: limits,
            random: SecureGenerator(seededBy: &source))
    }

    /// Adds the one peer of a replay in the state of the snapshot.
    fileprivate mutating func slotForReplay(_ part: PathRecording.Part) -> Int? {
        var source = SeededGenerator(seed: 1)
        let keys = (PrivateKey(using: &source), PrivateKey(using: &source))
        let id = PeerID(rawValue: 0)
        setPeer(
            id,
            PeerConfiguration(
                nodeKey: keys.0.nodePublicKey, discoKey: keys.1.discoPublicKey, home: 0, endpoints: []),
            now: part.began)
        while nextEvent() != nil {}
        guard let slot = slotOfID[id] else { return nil }
        restore(slot, part.start)
        return slot
    }

    fileprivate mutating func replay(_ entry: RecordedInput, _ slot: Int) {
        switch entry.input {
        case .ownEndpoints, .relayUp, .relayDown, .directBlocked, .linkChanged:
            handle(entry.input, now: entry.at)
        case .userPing(let token):
            userPings[token] = UserPing(peer: PeerID(rawValue: 0))
            handle(entry.input, slot, now: entry.at)
            userPings[token] = nil
        default:
            handle(entry.input, slot, now: entry.at)
        }
        // Nothing leaves: what was sent then is an event here.
        outputs.removeAll()
    }
}

extension PathEvent.Kind {
    /// Whether it is a decision about a path rather than an answer to somebody who waits, or a dropped message.
    var isDecision: Bool {
        switch self {
        case .refused, .pong, .pingTimedOut: false
        default: true
        }
    }
}
