// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// One TCP connection of the stack and the descriptors that its bytes come from and go to. Descriptors are owned by
/// number: only `StreamTable` closes them.
struct BridgedStream {
    /// Who may do what.
    enum Phase {
        /// Our SYN is on its way.
        case dialing
        /// The peer opened it; nobody took it yet.
        case waiting
        /// Bytes flow.
        case open
    }

    var token: UInt64
    var phase: Phase
    var connection: ConnectionID
    var local: SocketAddress
    var remote: SocketAddress
    var reading: Int32 = -1
    var writing: Int32 = -1
    var readKind = DescriptorKind.other
    var writeKind = DescriptorKind.other
    /// Reading may bring something: set by readiness, cleared by `EAGAIN`. Always true where epoll refuses.
    var canRead = false
    /// Writing may take something.
    var canWrite = false
    /// Readiness cannot be watched (regular files, /dev/null): always ready.
    var isReadUnwatched = false
    var isWriteUnwatched = false
    /// The descriptor said that no more comes; our FIN is queued in the stack.
    var isReadDone = false
    /// The peer's FIN was handed on.
    var isWriteDone = false
    /// The stack said that all of the peer's bytes were read.
    var hasPeerFinished = false
    /// The other side of the socket is gone altogether; see `Engine.handleOrphan`.
    var isHungUp = false
    /// Bytes for the descriptor could not be written any more: it is read to its end, then the peer hears of it.
    var isBroken = false
    /// Waits in the engine's list of streams to pump.
    var isQueued = false
    /// Moved much the last time.
    var isBulk = false
    /// Flags to put back when the descriptors are closed.
    var wasReadBlocking = false
    var wasWriteBlocking = false
}

/// All streams of a node by slot, token and connection. Slots are used again; their generation tells old readiness
/// events from new ones.
struct StreamTable {
    private(set) var slots: [BridgedStream?] = []
    private var generations: [UInt32] = []
    private var free: [Int] = []
    private var byToken: [UInt64: Int] = [:]
    private var byConnection: [ConnectionID: Int] = [:]

    /// How many there are.
    var count: Int { byToken.count }

    /// The stream in `slot`, which must exist.
    subscript(slot: Int) -> BridgedStream {
        get { slots[slot]! }
        _modify { yield &slots[slot]! }
    }

    /// The slot of a stream.
    func slot(token: UInt64) -> Int? { byToken[token] }
    /// The slot of a stream.
    func slot(connection: ConnectionID) -> Int? { byConnection[connection] }
    /// The slot that an event is about, unless it was left since.
    func slot(_ index: Int, generation: UInt32) -> Int? {
        guard index < slots.count, slots[index] != nil, generations[index] == generation else { return nil }
        return index
    }
    /// What distinguishes this use of the slot from earlier ones: 24 bits.
    func generation(_ slot: Int) -> UInt32 { generations[slot] }

    /// Takes a stream in.
    mutating func insert(_ stream: BridgedStream) -> Int {
        let slot: Int
        if let reused = free.popLast() {
            slot = reused
            slots[slot] = stream
        } else {
            slot = slots.count
            slots.append(stream)
            generations.append(0)
        }
        byToken[stream.token] = slot
        byConnection[stream.connection] = slot
        return slot
    }

    /// Forgets the stream. Its descriptors must be closed.
    mutating func remove(_ slot: Int) {
        guard let stream = slots[slot] else { return }
        byToken[stream.token] = nil
        byConnection[stream.connection] = nil
        slots[slot] = nil
        generations[slot] = (generations[slot] &+ 1) & 0xff_ffff
        free.append(slot)
    }
}

/// What an epoll event is about, packed into its token: kind, generation, index.
enum EventSource {
    case wakeUp
    case udp4
    case udp6
    case link
    case clock
    case portMap
    case tun
    case relay(Int, generation: UInt32)
    case streamRead(Int, generation: UInt32)
    case streamWrite(Int, generation: UInt32)
    case streamBoth(Int, generation: UInt32)
    case flow(Int, generation: UInt32)

    private var parts: (kind: UInt64, index: Int, generation: UInt32) {
        switch self {
        case .wakeUp: (1, 0, 0)
        case .udp4: (2, 0, 0)
        case .udp6: (3, 0, 0)
        case .link: (4, 0, 0)
        case .clock: (11, 0, 0)
        case .portMap: (12, 0, 0)
        case .tun: (5, 0, 0)
        case .relay(let index, let generation): (6, index, generation)
        case .streamRead(let index, let generation): (7, index, generation)
        case .streamWrite(let index, let generation): (8, index, generation)
        case .streamBoth(let index, let generation): (9, index, generation)
        case .flow(let index, let generation): (10, index, generation)
        }
    }

    /// The packed form.
    var token: UInt64 {
        let parts = parts
        return parts.kind << 56 | UInt64(parts.generation & 0xff_ffff) << 32 | UInt64(UInt32(parts.index))
    }

    /// Unpacks what `token` made.
    init?(token: UInt64) {
        let index = Int(UInt32(truncatingIfNeeded: token))
        let generation = UInt32(truncatingIfNeeded: token >> 32) & 0xff_ffff
        switch token >> 56 {
        case 1: self = .wakeUp
        case 2: self = .udp4
        case 3: self = .udp6
        case 4: self = .link
        case 5: self = .tun
        case 6: self = .relay(index, generation: generation)
        case 7: self = .streamRead(index, generation: generation)
        case 8: self = .streamWrite(index, generation: generation)
        case 9: self = .streamBoth(index, generation: generation)
        case 10: self = .flow(index, generation: generation)
        case 11: self = .clock
        case 12: self = .portMap
        default: return nil
        }
    }
}
