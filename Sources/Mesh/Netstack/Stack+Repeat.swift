// SPDX-License-Identifier: Apache-2.0

extension Stack {
    /// There may be a way to the peers again: segments that wait for their repetition are repeated now, not after a
    /// pause that doubled each time while there was none. Linear in the connections; for rare events only.
    package mutating func repeatNow(_ now: Instant) {
        for slot in 0..<UInt32(connections.capacity) {
            let isWaiting =
                !connections[slot].isFree && connections[slot].state != .closed
                && connections[slot].sendTimer == .retransmit && connections[slot].retries > 0
            guard isWaiting else { continue }
            connections[slot].repeatOutstanding(now, &context)
            settle(slot)
        }
    }

    /// The way to these addresses failed a moment ago: what waits for an acknowledgement is repeated now, over
    /// whatever other way there is, rather than after its own time-out. Linear in the connections.
    package mutating func repeatLost(_ now: Instant, to addresses: [IPPrefix]) {
        for slot in 0..<UInt32(connections.capacity) {
            guard !connections[slot].isFree, connections[slot].state != .closed else { continue }
            switch connections[slot].sendTimer {
            case .retransmit, .tailProbe, .reorder: break
            case .off, .persist: continue
            }
            let remote = connections[slot].remote.ip
            guard addresses.contains(where: { $0.contains(remote) }) else { continue }
            connections[slot].repeatOutstanding(now, &context)
            settle(slot)
        }
    }
}

extension Connection {
    /// The owner says that there is another way, or that what is on the way was lost with it: it is repeated. No timer
    /// ran out, so that this is neither one of the repetitions of which there may be so many only, nor a sign of
    /// trouble with the path, nor a reason to wait longer for the next answer. How much the other way takes is
    /// unknown: it is begun with as a new connection begins, and with the old window again when it turns out that
    /// everything arrived the first time.
    mutating func repeatOutstanding(_ now: Instant, _ context: inout StackContext) {
        guard sendNext != unacknowledged else { return }
        trip.clearBackOff()
        if state.isSynchronized {
            if phase == .open {
                rememberForUndo(now)
                undo?.wasTold = true
            }
            if phase != .loss { cubic.startOver(segmentSize) }
            // Duplicates that this makes are no sign of reordering.
            reorderRoundEnd = sendNext
            beginLoss()
        } else {
            synNeeded = true
        }
        retransmitBase = now
        sendTimer = .retransmit
        sendDeadline = now + trip.timeout
        wantsOutput(&context)
    }
}
