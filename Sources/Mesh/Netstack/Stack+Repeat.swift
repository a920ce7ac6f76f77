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
            // It was told so, which is no further sign of trouble: neither the number of repetitions, of which there
            // may be so many only, nor the pause after this one grows. Ways may be found and lost again many times.
            connections[slot].retries -= 1
            connections[slot].trip.clearBackOff()
            connections[slot].sendDeadline = now
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
            if connections[slot].retries > 0 { connections[slot].retries -= 1 }
            connections[slot].trip.clearBackOff()
            connections[slot].sendTimer = .retransmit
            connections[slot].sendDeadline = now
            settle(slot)
        }
    }
}
