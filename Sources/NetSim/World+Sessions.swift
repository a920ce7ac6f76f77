// SPDX-License-Identifier: Apache-2.0

internal import Mesh

// The streams: what users feel.
extension World {
    /// Data is dead when the oldest segment waits for so long and the path still answers pings.
    private static let deathAge = Interval.milliseconds(1_200)

    func tick(_ index: Int, _ side: Int) {
        schedule(.tick(session: index, side: side), in: SimStream.period)
        let host = hosts[sessions[index].host(side)]
        let other = sessions[index].host(1 - side)
        guard !host.isAsleep, host.known.contains(other) else { return }
        if sessions[index].began == nil { sessions[index].began = now }
        if let number = sessions[index].streams[side].handleTimeout(now: now) {
            sendSegment(host, to: other, .init(session: index, number: number, acknowledges: nil))
        }
        if let number = sessions[index].streams[side].next(now: now) {
            sendSegment(host, to: other, .init(session: index, number: number, acknowledges: nil))
        }
        // What was lost before, on another path or while the peer slept, says nothing of this one.
        guard let since = host.directSince[other], now.since(since) > Self.deathAge,
            sessions[index].streams[side].oldest(now: now) > Self.deathAge,
            host.paths.directAddress(of: hosts[other].id, now: host.time(now)) != nil
        else { return }
        host.paths.noteDataDead(hosts[other].id, isCertain: true, now: host.time(now))
        pump(host)
    }

    private func sendSegment(_ host: SimHost, to other: Int, _ segment: SimStream.Segment) {
        let route = host.paths.route(to: hosts[other].id, now: host.time(now))
        pump(host)
        if let address = route.udp { send(host, .data(segment), to: address) }
        if let region = route.relay { sendRelayed(host, .data(segment), region: region, to: other) }
    }

    /// What the engine asks of the real stack when the path to a peer fails.
    func repeatLost(_ host: SimHost, _ other: Int) {
        for index in host.sessions {
            let side = sessions[index].hosts.0 == host.index ? 0 : 1
            guard sessions[index].host(1 - side) == other,
                let number = sessions[index].streams[side].repeatLost(now: now)
            else { continue }
            schedule(.repeated(session: index, side: side, number), in: .zero)
        }
    }

    func repeated(_ index: Int, _ side: Int, _ number: UInt32) {
        let host = hosts[sessions[index].host(side)]
        guard !host.isAsleep else { return }
        sendSegment(
            host, to: sessions[index].host(1 - side), .init(session: index, number: number, acknowledges: nil)
        )
    }

    func received(_ host: SimHost, _ segment: SimStream.Segment, from source: SocketAddress? = nil) {
        let index = segment.session
        let side = sessions[index].hosts.0 == host.index ? 0 : 1
        let other = sessions[index].host(1 - side)
        guard host.known.contains(other) else { return }
        host.paths.noteReceived(hosts[other].id, from: source, now: host.time(now))
        if let next = segment.acknowledges {
            let repeated = sessions[index].streams[side].acknowledged(next, got: segment.number, now: now)
            for number in repeated {
                sendSegment(host, to: other, .init(session: index, number: number, acknowledges: nil))
            }
            return
        }
        if let gap = sessions[index].streams[1 - side].received(segment.number, now: now),
            gap > SimStream.period * 4
        {
            let stall = Interval(nanoseconds: gap.nanoseconds - SimStream.period.nanoseconds)
            sessions[index].stalls.append((side, now, stall))
            note("\(now.since(Self.start).nanoseconds) \(host.name) stalled \(stall.nanoseconds)")
        }
        let wanted = sessions[index].streams[1 - side].wanted
        sendSegment(
            host, to: other, .init(session: index, number: segment.number, acknowledges: wanted))
    }

    // MARK: Checks

    /// Longest time that a stream of the session stood still and that ended after `since`; also the present one.
    func longestStall(_ index: Int, since: Instant) -> Interval {
        var longest = Interval.zero
        for stall in sessions[index].stalls where stall.end >= since { longest = max(longest, stall.length) }
        guard let began = sessions[index].began else { return now.since(since) }
        for side in 0..<2 {
            longest = max(longest, now.since(sessions[index].streams[side].lastProgress ?? began))
        }
        return longest
    }

    private func session(_ from: Int, _ to: Int) -> Int? {
        sessions.firstIndex { $0.hosts == (from, to) || $0.hosts == (to, from) }
    }

    func check(_ expectation: Scenario.Expectation) {
        guard let from = hostNames[expectation.from], let to = hostNames[expectation.to],
            let index = session(from, to)
        else { return violations.append("an expectation names an unknown session") }
        let host = hosts[from]
        let what = "\(expectation.from)→\(expectation.to) at \(expectation.at) s"
        let direct = host.paths.directAddress(of: hosts[to].id, now: host.time(now))
        switch expectation.path {
        case .direct where direct == nil: violations.append("\(what): relayed instead of direct")
        case .relayed where direct != nil: violations.append("\(what): direct instead of relayed")
        default: break
        }
        if let reason = expectation.reason {
            let found = host.paths.explain(
                hosts[to].id, host.discovery.surroundings, now: host.time(now))?.reason
            if found != reason {
                violations.append(
                    "\(what): says \(found?.rawValue ?? "nothing") instead of \(reason.rawValue)")
            }
        }
        if let stall = expectation.stall {
            let longest = longestStall(index, since: Self.moment(expectation.since ?? 0))
            if longest.inSeconds > stall {
                violations.append("\(what): the stream stood still for \(longest.inSeconds) s, not \(stall)")
            }
        }
    }

    func checkAtEnd() {
        for (index, session) in sessions.enumerated() {
            let longest = longestStall(index, since: Self.start)
            let name = "\(hosts[session.hosts.0].name)-\(hosts[session.hosts.1].name)"
            if longest.inSeconds > scenario.stallLimit {
                violations.append("\(name): the stream stood still for \(longest.inSeconds) s")
            }
        }
        for host in hosts {
            let sizes = host.paths.sizes
            let peers = Set(host.sessions.flatMap { [sessions[$0].hosts.0, sessions[$0].hosts.1] }).count
            if sizes.candidates > 100 || sizes.pings > 600 || sizes.timers > 64 * max(1, peers)
                || sizes.addresses > 120 * max(1, peers) || sizes.outputs > 0
            {
                violations.append("\(host.name): state grew: \(sizes)")
            }
        }
        for session in sessions.prefix(4) {
            for (a, b) in [(session.hosts.0, session.hosts.1), (session.hosts.1, session.hosts.0)] {
                guard let recording = hosts[a].paths.recording(of: hosts[b].id) else { continue }
                if !recording.replay().isFaithful {
                    violations.append("\(hosts[a].name)→\(hosts[b].name): the record replays differently")
                }
            }
        }
    }
}
