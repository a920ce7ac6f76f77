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
}
