// SPDX-License-Identifier: Apache-2.0

// Reading, writing and ending connections.
extension Stack {
    /// Bytes that can be read now.
    package func readableCount(_ id: ConnectionID) -> Int {
        slot(id).map { connections[$0].receive.count } ?? 0
    }

    /// Room for bytes in the send buffer. Zero for void names.
    package func writableCount(_ id: ConnectionID) -> Int {
        slot(id).map { connections[$0].writeRoom(context) } ?? 0
    }

    /// Bytes written that the peer has not acknowledged.
    package func unacknowledgedCount(_ id: ConnectionID) -> Int {
        slot(id).map { connections[$0].send.count } ?? 0
    }

    /// Addresses of a connection.
    package func endpoints(_ id: ConnectionID) -> (local: SocketAddress, remote: SocketAddress)? {
        slot(id).map { (connections[$0].local, connections[$0].remote) }
    }

    /// What is known about a connection.
    package func statistics(_ id: ConnectionID) -> ConnectionStatistics? {
        guard let slot = slot(id) else { return nil }
        return connections[slot].statistics
    }

    /// Whether the peer will send no more and everything was read.
    package func isAtEnd(_ id: ConnectionID) -> Bool {
        slot(id).map { connections[$0].finReceived && connections[$0].receive.isEmpty } ?? true
    }

    /// Lets `body` look at the bytes at the front, up to where the buffer wraps, and drops as many as it says.
    /// Not called when there are none. Returns what was dropped.
    @discardableResult
    package mutating func read(
        _ id: ConnectionID, now: Instant, _ body: (UnsafeRawBufferPointer) -> Int
    ) -> Int {
        guard let slot = slot(id), !connections[slot].receive.isEmpty else { return 0 }
        let taken = unsafe body(connections[slot].receive.front)
        precondition(taken >= 0 && taken <= connections[slot].receive.count, "taking more than there is")
        guard taken > 0 else { return 0 }
        connections[slot].consume(taken, now, &context)
        settle(slot)
        return taken
    }

    /// Moves up to `buffer.count` bytes out. Zero means that there are none now.
    package mutating func read(
        _ id: ConnectionID, into buffer: UnsafeMutableRawBufferPointer, now: Instant
    ) -> Int {
        guard let slot = slot(id), unsafe !buffer.isEmpty else { return 0 }
        let length = min(buffer.count, connections[slot].receive.count)
        guard length > 0 else { return 0 }
        unsafe connections[slot].receive.copy(0, length, into: buffer)
        connections[slot].consume(length, now, &context)
        settle(slot)
        return length
    }

    /// Lets `body` fill up to `limit` bytes of contiguous room in the send buffer and sends as many as it says.
    /// Not called when there is no room; then a `writable` event follows. May be less room than the buffer
    /// has in all: call again for the rest.
    @discardableResult
    package mutating func write(
        _ id: ConnectionID, limit: Int = 64 << 10, _ body: (UnsafeMutableRawBufferPointer) -> Int
    ) -> Int {
        guard let slot = slot(id), limit > 0, let room = unsafe connections[slot].reserve(limit, &context)
        else {
            return 0
        }
        let length = unsafe body(room)
        precondition(length >= 0 && length <= room.count, "more bytes than room")
        connections[slot].commit(length, &context)
        settle(slot)
        return length
    }

    /// Copies as much of `bytes` as there is room for. A shorter count is followed by a `writable` event.
    package mutating func write(_ id: ConnectionID, _ bytes: UnsafeRawBufferPointer) -> Int {
        var done = 0
        while done < bytes.count {
            let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = unsafe write(id, limit: rest.count) { room in
                let length = min(room.count, rest.count)
                unsafe room.copyMemory(from: UnsafeRawBufferPointer(rebasing: rest.prefix(length)))
                return length
            }
            guard count > 0 else { break }
            done += count
        }
        if done < bytes.count, let slot = slot(id) { connections[slot].noteShortWrite() }
        return done
    }

    /// Sends FIN after everything that was written. Reading goes on.
    package mutating func shutdownWrite(_ id: ConnectionID) {
        guard let slot = slot(id) else { return }
        connections[slot].shutdownWrite(&context)
        settle(slot)
    }

    /// Lets go: delivers what was written, reads no more. The name is void afterwards.
    package mutating func close(_ id: ConnectionID, now: Instant) {
        guard let slot = slot(id) else { return }
        connections[slot].close(now, &context)
        settle(slot)
    }

    /// Sends RST and forgets everything. The name is void afterwards.
    package mutating func abort(_ id: ConnectionID) {
        guard let slot = slot(id) else { return }
        connections[slot].isOrphan = true
        connections[slot].abort(&context)
        settle(slot)
    }

    /// Drops what waits to be read and whatever comes; writing goes on. `abortWhenSent` should follow.
    package mutating func discardInput(_ id: ConnectionID) {
        guard let slot = slot(id) else { return }
        connections[slot].discardInput(&context)
        settle(slot)
    }

    /// Lets go: delivers what was written, then sends RST. The name is void afterwards.
    package mutating func abortWhenSent(_ id: ConnectionID) {
        guard let slot = slot(id) else { return }
        connections[slot].abortWhenSent(&context)
        settle(slot)
    }
}
