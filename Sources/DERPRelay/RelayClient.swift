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

/// All connections with one key. Owned by the relay's thread. `derp.md` §6.4.
final class KeyState {
    let key: ClientKey
    var members: [RelayClient] = []
    /// Gets the packets: the one that spoke last.
    var active: RelayClient?
    /// Who spoke, in order, each once; the last is `active`.
    var speakers: [RelayClient] = []
    /// Numbers of the connections that this key sent to; they hear when it leaves.
    var sentTo: Set<UInt64> = []
    var sentToPruneAt = 64

    init(_ key: ClientKey) { self.key = key }

    /// `client` said something.
    func noteSpeaker(_ client: RelayClient) {
        active = client
        speakers.removeAll { $0 === client }
        speakers.append(client)
    }
}

/// One connection. Owned by the relay's thread.
final class RelayClient {
    let number: UInt64
    let descriptor: Int32
    let opened: UInt64
    var session: DERPServerSession
    var key: KeyState?
    /// Frame type and first key bytes of what it sends are rewritten in place; the key is needed for each.
    var ownKey: ClientKey?
    var isClosed = false
    var isHome = false
    var isWatcher = false
    var canAckPings = false
    /// The begun frame at the end of the last read.
    var partial: [UInt8] = []
    /// Rest of a frame that was written in part: goes out before all else.
    var rest: [UInt8] = []
    /// Frames of the relay itself.
    var control: [UInt8] = []
    var disco = FrameQueue()
    var other = FrameQueue()
    /// Whether the kernel refused bytes; then epoll tells when it takes more.
    var isBlocked = false
    /// Whether epoll watches for writing.
    var isWaitingForWrite = false
    var isDirty = false
    /// Since when bytes wait that nobody takes; 0: none do.
    var stalledSince: UInt64 = 0
    var keepAliveAt: UInt64
    /// Where its last packet went, and through which connection.
    var lastDestination: ClientKey?
    var lastTarget: KeyState?
    var lastTargetClient: UInt64 = 0
    /// "Not here" messages: three at once, one per second.
    var notHereTokens = 3.0
    var notHereAt: UInt64 = 0

    init(number: UInt64, descriptor: Int32, session: DERPServerSession, now: UInt64, keepAliveAt: UInt64) {
        self.number = number
        self.descriptor = descriptor
        self.session = session
        opened = now
        self.keepAliveAt = keepAliveAt
    }

    var waitingBytes: Int { rest.count + control.count + disco.bytes + other.bytes }
    var hasOutput: Bool { !rest.isEmpty || !control.isEmpty || !disco.isEmpty || !other.isEmpty }

    func mayTellNotHere(_ now: UInt64) -> Bool {
        notHereTokens = min(3, notHereTokens + Double(now - min(now, notHereAt)) / 1e9)
        notHereAt = now
        guard notHereTokens >= 1 else { return false }
        notHereTokens -= 1
        return true
    }
}
