// SPDX-License-Identifier: Apache-2.0

extension Stack {
    /// The next thing the owner should know; nil when there is nothing new.
    package mutating func nextEvent() -> StackEvent? {
        if controlHead < control.count {
            let event = control[controlHead]
            controlHead += 1
            if controlHead == control.count {
                control.removeAll(keepingCapacity: true)
                controlHead = 0
            }
            return event
        }
        if !datagrams.isEmpty, !saidDatagrams {
            saidDatagrams = true
            return .datagrams
        }
        while let slot = context.events.first {
            guard let event = takeEvent(slot) else {
                context.events.popFirst()
                continue
            }
            return event
        }
        return nil
    }

    private mutating func takeEvent(_ slot: UInt32) -> StackEvent? {
        let pending = connections[slot].pending
        guard !connections[slot].isOrphan, !connections[slot].isFree, !pending.isEmpty else { return nil }
        let id = connections[slot].id
        if pending.contains(.asked) {
            connections[slot].pending.remove(.asked)
            return .asked(id, local: connections[slot].local, remote: connections[slot].remote)
        }
        if pending.contains(.accepted) {
            connections[slot].pending.remove(.accepted)
            return .accepted(id, local: connections[slot].local, remote: connections[slot].remote)
        }
        if pending.contains(.connected) {
            connections[slot].pending.remove(.connected)
            return .connected(id)
        }
        if pending.contains(.readable) {
            connections[slot].pending.remove(.readable)
            return .readable(id)
        }
        if pending.contains(.writable) {
            connections[slot].pending.remove(.writable)
            return .writable(id)
        }
        if pending.contains(.peerClosed) {
            connections[slot].pending.remove(.peerClosed)
            return .peerClosed(id)
        }
        let reason = connections[slot].closeReason
        connections[slot].pending = []
        connections[slot].isOrphan = true
        if connections[slot].state == .timeWait, connections[slot].lifeDeadline == .never {
            connections[slot].state = .closed
        }
        settle(slot)
        return .closed(id, reason)
    }

    /// Queues an event that belongs to no connection.
    mutating func say(_ event: StackEvent) {
        guard control.count - controlHead < context.limits.controlEvents else {
            context.counters.controlEventsDropped += 1
            return
        }
        control.append(event)
    }
}
