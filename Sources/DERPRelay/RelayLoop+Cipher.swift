// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

// Connections whose bytes are sealed. What is read goes through a buffer of the thread's; what is sent is sealed in
// large pieces into another one, and only what the kernel does not take is kept, as the client's `sealed`: it goes out
// before all else, and nothing more is sealed until it is gone.
extension RelayLoop {
    /// Bytes that are sealed at once: as many as one read gives.
    private static let quantumBytes = 64 << 10
    /// The same when much waits for all together: one record.
    private static let crowdedQuantumBytes = 16 << 10
    /// Answers that may wait for a client that reads nothing; a good one owes none while it has not read ours.
    private static let answerLimit = 256 << 10

    /// Like `recv`, for all connections. Nil: the connection is over, and closed, or gave nothing.
    func receive(_ client: RelayClient, at offset: Int) -> Int? {
        let room = min(limits.readBytes, buffer.count - offset - Relay.cipherRoom)
        let target = client.cipher == nil ? buffer.baseAddress! + offset : scratch.baseAddress!
        let count = recv(client.descriptor, target, room, 0)
        guard count > 0 else {
            if count < 0, errno == EAGAIN || errno == EINTR { return nil }
            close(client)
            return nil
        }
        guard let cipher = client.cipher else { return count }
        sealedOutput.removeAll(keepingCapacity: true)
        let plain = cipher.receive(
            UnsafeRawBufferPointer(rebasing: scratch[..<count]),
            into: UnsafeMutableRawBufferPointer(rebasing: buffer[offset...]), output: &sealedOutput)
        if !sealedOutput.isEmpty { answer(client) }
        guard plain > 0 else {
            if cipher.isOver { close(client) }
            return nil
        }
        return client.isClosed ? nil : plain
    }

    /// Like `send`, for all connections. What was sealed counts as sent, whatever the kernel took of it.
    func send(_ client: RelayClient, _ bytes: UnsafeRawBufferPointer) -> Int {
        guard let cipher = client.cipher else {
            return Glibc.send(client.descriptor, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
        }
        let quantum = queuedBytes > limits.totalQueueBytes ? Self.crowdedQuantumBytes : Self.quantumBytes
        var sent = 0
        while sent < bytes.count, client.sealed.isEmpty {
            let piece = UnsafeRawBufferPointer(rebasing: bytes[sent..<min(bytes.count, sent + quantum)])
            sealedOutput.removeAll(keepingCapacity: true)
            guard cipher.seal(piece, output: &sealedOutput) else {
                errno = EPIPE
                return -1
            }
            sent += piece.count
            guard sendSealed(client) else { return -1 }
        }
        return sent
    }

    /// Like `sendmsg`, for all connections.
    func send(_ client: RelayClient, _ pieces: UnsafeMutableBufferPointer<iovec>) -> Int {
        guard client.cipher != nil else {
            var message = msghdr()
            message.msg_iov = pieces.baseAddress
            message.msg_iovlen = pieces.count
            return sendmsg(client.descriptor, &message, Int32(MSG_NOSIGNAL))
        }
        if pieces.count == 1 {
            let count = min(pieces[0].iov_len, Self.quantumBytes)
            return send(client, UnsafeRawBufferPointer(start: pieces[0].iov_base, count: count))
        }
        var count = 0
        for piece in pieces where count < scratch.count {
            let taken = min(piece.iov_len, scratch.count - count)
            (scratch.baseAddress! + count).copyMemory(from: piece.iov_base, byteCount: taken)
            count += taken
        }
        return send(client, UnsafeRawBufferPointer(rebasing: scratch[..<count]))
    }

    /// The kernel takes nothing more of what waits for a client.
    func noteBlocked(_ client: RelayClient) {
        setBlocked(client, true)
        client.stalledSince = now
    }

    /// Offers what is sealed and was not taken to the kernel. False when there is more, or the client was closed.
    func flushSealed(_ client: RelayClient) -> Bool {
        let count = client.sealed.withUnsafeBytes {
            Glibc.send(client.descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        if count < 0, !Self.isFull(errno) {
            close(client)
            return false
        }
        if count > 0 {
            queuedBytes -= count
            client.progressAt = now
            client.stalledSince = 0
        }
        guard count < client.sealed.count else {
            client.sealed = []
            return true
        }
        client.sealed.removeFirst(max(0, count))
        setBlocked(client, true)
        if client.stalledSince == 0 { client.stalledSince = now }
        return false
    }

    /// Tells the peer that this is the end, if that can be said at once.
    func sayEnd(_ client: RelayClient) {
        guard let cipher = client.cipher, client.sealed.isEmpty else { return }
        sealedOutput.removeAll(keepingCapacity: true)
        cipher.end(output: &sealedOutput)
        sealedOutput.withUnsafeBytes {
            _ = Glibc.send(client.descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
    }

    /// Sends what a cipher has to say by itself.
    private func answer(_ client: RelayClient) {
        guard client.sealed.isEmpty else {
            keepSealed(client, from: 0)
            if client.sealed.count > Self.answerLimit { close(client) }
            return
        }
        guard sendSealed(client) else { return close(client) }
        if !client.sealed.isEmpty { noteBlocked(client) }
    }

    /// Gives what was just sealed to the kernel, and keeps the rest. False when the connection is broken.
    private func sendSealed(_ client: RelayClient) -> Bool {
        let count = sealedOutput.withUnsafeBytes {
            Glibc.send(client.descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        if count < 0, !Self.isFull(errno) { return false }
        keepSealed(client, from: max(0, count))
        return true
    }

    private func keepSealed(_ client: RelayClient, from sent: Int) {
        if sent < sealedOutput.count {
            client.sealed += sealedOutput[sent...]
            queuedBytes += sealedOutput.count - sent
        }
    }
}
