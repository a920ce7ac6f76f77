// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

// Senders that are not read for a while: TCP then slows them down, which loses nothing. Only who sends to one client
// alone is slowed down for that client's sake, and never for long: its packets to others would wait, too. All others
// lose their oldest packets.
extension RelayLoop {
    // MARK: Destination

    /// After a read: stops reading a client whose one destination has more than enough waiting.
    func pauseForDestination(_ client: RelayClient) {
        guard limits.pauseNanoseconds > 0, client.link == nil, !client.session.isMeshPeer,
            let target = client.lastTarget?.active, target.number == client.lastTargetClient,
            target !== client, target.isBlocked, target.bulkBytes >= limits.pauseBytes,
            now - min(now, client.switchedAt) >= limits.singleNanoseconds || client.switchedAt == 0,
            // What it has to say to others stands in the same stream behind all that is not read.
            client.discoElsewhereAt == 0
                || now - min(now, client.discoElsewhereAt) >= limits.discoQueueNanoseconds,
            // One that takes nothing at all holds nobody up.
            now - min(now, target.progressAt) < limits.pauseNanoseconds
        else { return }
        counters.pauses += 1
        target.pausedSenders.append(client)
        pause(client, .destination, until: now + limits.pauseNanoseconds)
    }

    /// The queue is short again, or the client is gone.
    func resumeSenders(of target: RelayClient) {
        guard !target.pausedSenders.isEmpty else { return }
        let senders = target.pausedSenders
        target.pausedSenders.removeAll(keepingCapacity: true)
        for sender in senders where sender.pauses.contains(.destination) {
            resume(sender, .destination)
        }
    }

    // MARK: Rate

    /// Counts what a client sent; one that used up its rate is not read until it may send again. Other relays are
    /// exempt.
    func takeTokens(_ client: RelayClient, _ bytes: Int) {
        guard client.link == nil, !client.session.isMeshPeer else { return }
        let rate = limits.bytesPerSecond
        let elapsed = Double(now - min(now, client.rateAt)) / 1e9
        client.rateAt = now
        let gained = min(Double(limits.burstBytes), elapsed * Double(rate))
        client.rateTokens = min(limits.burstBytes, client.rateTokens + Int(gained)) - bytes
        guard client.rateTokens < 0 else { return }
        counters.rateLimited += 1
        let wait = Double(-client.rateTokens) / Double(rate) * 1e9
        pause(client, .rate, until: now + UInt64(min(wait, 10e9)))
    }

    // MARK: Both

    private func pause(_ client: RelayClient, _ reason: RelayClient.Pause, until: UInt64) {
        client.pausedUntil = client.pauses.isEmpty ? until : max(client.pausedUntil, until)
        client.pauses.insert(reason)
        updateInterest(client)
        nextPauseEnd = min(nextPauseEnd, client.pausedUntil)
        guard !client.isListedAsPaused else { return }
        client.isListedAsPaused = true
        paused.append(client)
    }

    private func resume(_ client: RelayClient, _ reason: RelayClient.Pause) {
        client.pauses.remove(reason)
        updateInterest(client)
    }

    /// Ends pauses that lasted long enough, and forgets those that ended by themselves.
    func endPauses() {
        nextPauseEnd = .max
        let listed = paused
        paused.removeAll(keepingCapacity: true)
        for client in listed {
            let isWaiting = !client.isClosed && !client.pauses.isDisjoint(with: [.destination, .rate])
            if isWaiting, now < client.pausedUntil {
                nextPauseEnd = min(nextPauseEnd, client.pausedUntil)
                paused.append(client)
                continue
            }
            client.isListedAsPaused = false
            guard isWaiting else { continue }
            if client.pauses.contains(.destination), let target = client.lastTarget?.active {
                target.pausedSenders.removeAll { $0 === client }
            }
            resume(client, [.destination, .rate])
        }
    }
}
