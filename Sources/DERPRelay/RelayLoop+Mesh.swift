// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

// Relays of one region tell each other who is connected, and forward. `derp.md` §8. Each relay opens a connection to
// each other one, and forwards on those that it opened.
extension RelayLoop {
    /// Takes over a connection that was opened to another relay.
    func link(_ descriptor: Int32, _ leftover: [UInt8], _ ended: @escaping @Sendable (Relay.LinkEnd) -> Void)
    {
        guard !meshKey.isEmpty, let client = take(descriptor, "") else {
            if meshKey.isEmpty { Glibc.close(descriptor) }
            ended(.stopped)
            return
        }
        let session = DERPMeshSession(privateKey: configuration.privateKey, meshKey: meshKey)
        client.link = RelayLink(session: session, now: now, ended: ended)
        begin(client, leftover)
    }

    func parseLink(_ client: RelayClient, count: Int) {
        guard let link = client.link else { return }
        var offset = 0
        do {
            let bytes = UnsafeRawBufferPointer(rebasing: buffer[..<count]).bytes
            while !client.isClosed, let input = try link.session.next(in: bytes, offset: &offset) {
                handle(client, link, input)
            }
        } catch {
            counters.protocolErrors += 1
            close(client)
            return
        }
        counters.bytesReceived += UInt64(offset)
        guard !client.isClosed, offset < count else { return }
        keepPartial(client, UnsafeRawBufferPointer(rebasing: buffer[offset..<count]), needed: 0)
    }

    private func handle(_ client: RelayClient, _ link: RelayLink, _ input: DERPMeshSession.Input) {
        switch input {
        case .serverKey(let key):
            if key == publicKey {
                link.end = .isSelf
                close(client)
            } else {
                sendControl(link.session.loginFrames(random: &random), to: client)
            }
        case .ready:
            counters.links += 1
            link.end = .lost
        case .peerPresent(let key): addRemote(ClientKey(key), client, link)
        case .peerGone(let key): removeRemote(ClientKey(key), client, link)
        case .ping(let number): sendControl(DERP.frame(.pong, Self.bytes(number)), to: client)
        case .restarting: break  // It closes the connection when it is done.
        case .unknown: counters.unknownFrames += 1
        }
    }

    private func addRemote(_ key: ClientKey, _ client: RelayClient, _ link: RelayLink) {
        guard key.publicKey != publicKey, !link.keys.contains(key) else { return }
        guard link.keys.count < limits.remoteKeys else {
            counters.refusedForLimits += 1
            close(client)
            return
        }
        link.keys.insert(key)
        if let known = remotes[key] {
            known.links.append(client)
        } else {
            let remote = RemoteKey(acquaintances: limits.acquaintances)
            remote.links.append(client)
            remotes[key] = remote
        }
    }

    private func removeRemote(_ key: ClientKey, _ client: RelayClient, _ link: RelayLink) {
        guard link.keys.remove(key) != nil, let remote = remotes[key] else { return }
        remote.links.removeAll { $0 === client }
        guard remote.links.isEmpty else { return }
        remotes[key] = nil
        if let local = keys[key] {
            local.sentTo.formUnion(remote.sentTo)
        } else {
            tellPeers(of: key, remote.sentTo)
        }
    }

    /// Whatever the other relay told is not known any more.
    func closeLink(_ client: RelayClient) {
        guard let link = client.link else { return }
        if link.session.isOpen { counters.links -= 1 }
        for key in Array(link.keys) { removeRemote(key, client, link) }
        link.ended(link.end)
    }

    // MARK: Packets

    /// The connection that leads to a key that is not here.
    func link(to destination: ClientKey) -> RelayClient? { remotes[destination]?.links.first }

    /// Sends a client's packet on to the relay that has its destination.
    func forwardOut(
        _ client: RelayClient, _ source: ClientKey, to link: RelayClient, _ frame: Range<Int>, isDisco: Bool
    ) {
        counters.packetsForwardedOut += 1
        // The frame says: type, length, destination, payload. A source goes between.
        let length = frame.count - DERP.headerBytes + DERP.keyBytes
        let memory = append(
            DERP.headerBytes + length, to: link, isDisco: isDisco, source: client.number)
        memory.storeBytes(of: DERPFrameType.forwardPacket.rawValue, as: UInt8.self)
        memory.storeBytes(of: UInt32(length).bigEndian, toByteOffset: 1, as: UInt32.self)
        source.store(to: memory + DERP.headerBytes)
        (memory + DERP.headerBytes + DERP.keyBytes).copyMemory(
            from: buffer.baseAddress! + frame.lowerBound + DERP.headerBytes,
            byteCount: frame.count - DERP.headerBytes)
    }

    /// A packet from another relay: delivered here or dropped, never forwarded again.
    func forwardIn(from source: ClientKey, to destination: ClientKey, _ payload: Range<Int>) {
        counters.packetsForwardedIn += 1
        let isDisco = isDisco(payload)
        guard let target = keys[destination]?.active else {
            if keys[destination] == nil {
                counters.droppedUnknownOnForward += 1
            } else {
                counters.droppedDuplicate += 1
            }
            if isDisco { counters.droppedDisco += 1 }
            return
        }
        if let remote = remotes[source] {
            remote.sentTo.insert(target.number) { clients[$0] != nil }
        }
        let length = DERP.keyBytes + payload.count
        // Senders elsewhere are told apart by their keys.
        let memory = append(
            DERP.headerBytes + length, to: target, isDisco: isDisco, source: source.a | 1 << 63)
        memory.storeBytes(of: DERPFrameType.receivePacket.rawValue, as: UInt8.self)
        memory.storeBytes(of: UInt32(length).bigEndian, toByteOffset: 1, as: UInt32.self)
        source.store(to: memory + DERP.headerBytes)
        guard !payload.isEmpty else { return }
        (memory + DERP.headerBytes + DERP.keyBytes).copyMemory(
            from: buffer.baseAddress! + payload.lowerBound, byteCount: payload.count)
    }

    // MARK: Watching

    /// Another relay wants to hear who is here.
    func watch(_ client: RelayClient) {
        guard !client.isWatcher, let own = client.ownKey, own.publicKey != publicKey else { return }
        client.isWatcher = true
        watchers.append(client)
        for key in keys.keys.map(\.publicKey).sorted() {
            // All of them, however many: a mesh peer is trusted, and cannot do without.
            client.control += DERP.frame(.peerPresent, key.bytes)
        }
        markDirty(client, bytes: client.control.count)
    }

    func tellWatchers(_ type: DERPFrameType, _ body: [UInt8]) {
        guard !watchers.isEmpty else { return }
        let frame = DERP.frame(type, body)
        for watcher in watchers {
            // One that misses a change believes wrong things: it has to ask for all of them again.
            guard watcher.control.count < limits.watcherBytes || !watcher.isBlocked else {
                counters.stalls += 1
                close(watcher)
                continue
            }
            watcher.control += frame
            markDirty(watcher, bytes: frame.count)
        }
    }

    /// Eight bytes, the highest first.
    static func bytes(_ number: UInt64) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: number >> (56 - 8 * UInt64($0))) }
    }
}
