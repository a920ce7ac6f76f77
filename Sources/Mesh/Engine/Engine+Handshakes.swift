// SPDX-License-Identifier: Apache-2.0

/// Initiations that were not answered yet, as they left. WireGuard makes a new one after five seconds; that is too
/// late for what gets lost when two nodes start at once: the relay does not know the peer yet, the peer does not know
/// us yet, a NAT is not open yet. So the very same bytes go again: a peer that has them already takes them for a
/// replay and forgets them, so that neither its state nor the answer under way is disturbed, however long the way is.
struct UnansweredHandshakes {
    struct Entry {
        let peer: PeerID
        let index: WireGuard.PeerIndex
        /// When the first initiation of this attempt was made.
        let began: Instant
        var message: [UInt8]
        var madeAt: Instant
        var sentAt: Instant
        var repeatAt: Instant
        /// A second one was asked of WireGuard: the answer to the first may have been lost.
        var isRenewed: Bool
    }

    /// Peers at once; others wait for WireGuard's own repetition. 300 bytes each.
    private static let limit = 1_024
    /// Shortest and longest time between two repetitions: half of what was waited already.
    private static let pause = (least: Interval.milliseconds(50), most: Interval.seconds(1))
    /// Peers drop initiations that come faster. Whitepaper §5.1 and wireguard-go.
    private static let leastPause = Interval.milliseconds(20)
    /// When a new initiation is asked for before WireGuard's own time, once.
    private static let renewal = Interval.milliseconds(1_500)
    /// WireGuard gave up, or made a new one, by then.
    private static let life = Interval.seconds(6)

    private var entries: [Entry] = []
    /// When something is due.
    private(set) var deadline = Instant.never

    var isEmpty: Bool { entries.isEmpty }

    /// An initiation was made, and left if there was a way.
    mutating func note(
        _ message: UnsafeRawBufferPointer, _ peer: PeerID, _ index: WireGuard.PeerIndex, now: Instant
    ) {
        let bytes = unsafe Array(message)
        if let place = entries.firstIndex(where: { $0.peer == peer }) {
            entries[place].message = bytes
            entries[place].madeAt = now
            entries[place].sentAt = now
            schedule(place, now)
        } else if entries.count < Self.limit {
            entries.append(
                Entry(
                    peer: peer, index: index, began: now, message: bytes, madeAt: now, sentAt: now,
                    repeatAt: .never, isRenewed: false))
            schedule(entries.count - 1, now)
        }
    }

    private mutating func schedule(_ place: Int, _ now: Instant) {
        let waited = Interval(nanoseconds: now.since(entries[place].began).nanoseconds / 2)
        let pause = min(max(waited, Self.pause.least), Self.pause.most)
        entries[place].repeatAt = now + pause
        deadline = min(deadline, now + pause)
    }

    /// The peer lives, or there is a new way to it: what was lost need not wait.
    mutating func hurry(_ peer: PeerID, now: Instant) {
        guard let place = entries.firstIndex(where: { $0.peer == peer }) else { return }
        let at = max(now, entries[place].sentAt + Self.leastPause)
        guard at < entries[place].repeatAt else { return }
        entries[place].repeatAt = at
        deadline = min(deadline, at)
    }

    /// A relay took us in: nothing of what was said before may have reached it.
    mutating func hurryAll(now: Instant) {
        for entry in entries { hurry(entry.peer, now: now) }
    }

    /// The peer is gone, or there is a session.
    mutating func forget(_ peer: PeerID) {
        guard let place = entries.firstIndex(where: { $0.peer == peer }) else { return }
        entries.remove(at: place)
    }

    /// The next that is due, which is then taken as sent.
    mutating func nextDue(_ now: Instant) -> Entry? {
        guard now >= deadline else { return nil }
        entries.removeAll { now.since($0.madeAt) > Self.life }
        if let place = entries.firstIndex(where: { $0.repeatAt <= now }) {
            entries[place].sentAt = now
            schedule(place, now)
            return entries[place]
        }
        deadline = entries.reduce(.never) { min($0, $1.repeatAt) }
        return nil
    }

    /// Whether WireGuard should make a new one: once per attempt.
    mutating func wantsRenewal(_ peer: PeerID, now: Instant) -> Bool {
        guard let place = entries.firstIndex(where: { $0.peer == peer }), !entries[place].isRenewed,
            now.since(entries[place].began) >= Self.renewal
        else { return false }
        entries[place].isRenewed = true
        return true
    }
}

extension Engine {
    /// Handshakes over a direct path that are unanswered for so long make it doubtful.
    static let handshakePatience = Interval.milliseconds(1_200)

    /// Sends again what was not answered.
    mutating func repeatHandshakes() {
        while let entry = unanswered.nextDue(now) {
            guard let record = peers.record(entry.index),
                device.statistics(of: entry.index, now: now)?.hasSession == false
            else {
                unanswered.forget(entry.peer)
                continue
            }
            if unanswered.wantsRenewal(entry.peer, now: now) {
                device.repeatInitiation(entry.index, now: now)
                continue
            }
            var route = route(of: record)
            if route.relay == nil, now.since(entry.began) >= Self.handshakePatience {
                // Discovery is answered there and handshakes are not: something on the way drops WireGuard.
                doubtData(entry.peer, isCertain: true)
                route = self.route(of: record)
            }
            // What waits for a relay's login would only pile up there.
            if let region = route.relay, isRelayReady(region) {
                unsafe entry.message.withUnsafeBytes {
                    unsafe sendRelayed($0, region: region, to: record.peer.key, isUrgent: true)
                }
            }
            if let address = route.udp {
                unsafe entry.message.withUnsafeBytes { unsafe sendSmall($0, to: address) }
            }
            counters.repeatedHandshakes += 1
        }
    }

    /// A response whose initiation came through a relay goes there too, whatever we think of the direct path: the peer
    /// had a reason. The region, once.
    mutating func responseRelay(_ peer: WireGuard.PeerIndex) -> Int? {
        relayedInitiations.isEmpty ? nil : relayedInitiations.removeValue(forKey: peer)
    }

    private func isRelayReady(_ region: Int) -> Bool {
        relays.first { $0.region == region }?.client?.isReady == true
    }
}
