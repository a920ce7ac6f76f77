// SPDX-License-Identifier: Apache-2.0

/// A peer as the engine sees it: one number for the path machine, another for WireGuard.
struct PeerRecord {
    var peer: MeshPeer
    let index: WireGuard.PeerIndex
    /// The record's place in the table, which is also its name at `Paths`.
    let id: PeerID
    /// Whether `Paths` chooses; else packets go to `endpoint`, or to the relay of its home region.
    let usesPaths: Bool
}

/// Peers by place, name and WireGuard slot. What the packet path needs lies in flat arrays by WireGuard slot.
struct PeerTable {
    private(set) var records: [PeerRecord?] = []
    private var free: [Int] = []
    private var byName: [MeshPeerID: Int] = [:]
    /// By WireGuard slot: place in `records`, or -1.
    private var placeOfSlot: [Int32] = []
    /// By WireGuard slot: the address of a peer without path machine, as last authenticated.
    private var endpointOfSlot: [SocketAddress?] = []

    /// How many there are.
    var count: Int { byName.count }
    /// Names of all, in no order.
    var names: some Collection<MeshPeerID> { byName.keys }

    /// A place that will be free for `insert`.
    mutating func reserve() -> PeerID {
        if let place = free.last { return PeerID(rawValue: UInt32(place)) }
        return PeerID(rawValue: UInt32(records.count))
    }

    /// Takes a record whose id came from `reserve`.
    mutating func insert(_ record: PeerRecord) {
        let place = Int(record.id.rawValue)
        if place == records.count { records.append(record) } else { records[place] = record }
        if free.last == place { free.removeLast() }
        byName[record.peer.id] = place
        let slot = Int(record.index.slot)
        while placeOfSlot.count <= slot {
            placeOfSlot.append(-1)
            endpointOfSlot.append(nil)
        }
        placeOfSlot[slot] = Int32(place)
        endpointOfSlot[slot] = record.usesPaths ? nil : record.peer.endpoints.first
    }

    /// Forgets the record at `place`.
    mutating func remove(_ place: Int) {
        guard let record = records[place] else { return }
        records[place] = nil
        free.append(place)
        byName[record.peer.id] = nil
        placeOfSlot[Int(record.index.slot)] = -1
        endpointOfSlot[Int(record.index.slot)] = nil
    }

    /// Replaces what is known of a peer.
    mutating func update(_ place: Int, _ peer: MeshPeer) { records[place]?.peer = peer }

    /// The place of a peer.
    func place(_ name: MeshPeerID) -> Int? { byName[name] }
    /// The record of a peer.
    func record(_ name: MeshPeerID) -> PeerRecord? { byName[name].flatMap { records[$0] } }
    /// The record of a WireGuard peer.
    func record(_ index: WireGuard.PeerIndex) -> PeerRecord? {
        let slot = Int(index.slot)
        guard slot < placeOfSlot.count, placeOfSlot[slot] >= 0 else { return nil }
        return records[Int(placeOfSlot[slot])]
    }

    /// An authenticated packet came from here: a peer without path machine is there now.
    @inline(__always)
    mutating func noteSource(_ index: WireGuard.PeerIndex, _ source: SocketAddress) {
        let slot = Int(index.slot)
        guard slot < placeOfSlot.count, endpointOfSlot[slot] != source, placeOfSlot[slot] >= 0 else { return }
        moveEndpoint(slot, source)
    }

    private mutating func moveEndpoint(_ slot: Int, _ source: SocketAddress) {
        guard records[Int(placeOfSlot[slot])]?.usesPaths == false else { return }
        endpointOfSlot[slot] = source
    }

    /// Where a peer without path machine is.
    func endpoint(_ index: WireGuard.PeerIndex) -> SocketAddress? { endpointOfSlot[Int(index.slot)] }

    /// Puts a configured address in force.
    mutating func setEndpoint(_ index: WireGuard.PeerIndex, _ address: SocketAddress?) {
        endpointOfSlot[Int(index.slot)] = address
    }
}

extension Engine {
    mutating func setPeers(_ list: [MeshPeer]) {
        let wanted = Set(list.map(\.id))
        for name in peers.names.filter({ !wanted.contains($0) }).sorted() { removePeer(name) }
        for peer in list { updatePeer(peer) }
    }

    mutating func updatePeer(_ peer: MeshPeer) {
        guard let place = peers.place(peer.id), let record = peers.records[place] else {
            return addPeer(peer)
        }
        let wantsPaths = Self.wantsPaths(peer)
        guard record.peer.key == peer.key, record.usesPaths == wantsPaths else {
            removePeer(peer.id)
            return addPeer(peer)
        }
        if wantsPaths {
            let change = paths.setPeer(record.id, pathConfiguration(peer), now: now)
            if change == .restarted || change == nil {
                // The same key in another process: its sessions are gone (`path-selection.md` §4.7).
                removePeer(peer.id)
                return addPeer(peer)
            }
        } else if record.peer.endpoints != peer.endpoints, let endpoint = peer.endpoints.first {
            peers.setEndpoint(record.index, endpoint)
        }
        if record.peer.allowedIPs != peer.allowedIPs {
            do {
                try device.setAllowedIPs(peer.allowedIPs, of: record.index)
            } catch {
                log(
                    "allowed addresses of a peer were refused",
                    [("peer", "\(peer.id)"), ("error", "\(error)")])
            }
        }
        if record.peer.presharedKey != peer.presharedKey {
            device.setPresharedKey(presharedKey(peer), of: record.index)
        }
        peers.update(place, peer)
        if record.peer.keepaliveSeconds != peer.keepaliveSeconds {
            device.setPersistentKeepalive(peer.keepaliveSeconds, of: record.index, now: now)
        }
    }

    private mutating func addPeer(_ peer: MeshPeer) {
        // The same key under another name: the newer name wins.
        if let old = device.peer(for: peer.key), let record = peers.record(old) { removePeer(record.peer.id) }
        let index: WireGuard.PeerIndex
        do {
            index = try device.addPeer(
                WireGuard.PeerConfiguration(
                    publicKey: peer.key, presharedKey: presharedKey(peer), allowedIPs: peer.allowedIPs,
                    persistentKeepalive: peer.keepaliveSeconds), now: now)
        } catch {
            return log("a peer was refused", [("peer", "\(peer.id)"), ("error", "\(error)")])
        }
        let record = PeerRecord(
            peer: peer, index: index, id: peers.reserve(), usesPaths: Self.wantsPaths(peer))
        peers.insert(record)
        guard record.usesPaths else { return }
        if paths.setPeer(record.id, pathConfiguration(peer), now: now) == nil {
            log("a peer's discovery key was refused", [("peer", "\(peer.id)")])
            removePeer(peer.id)
        }
    }

    mutating func removePeer(_ name: MeshPeerID) {
        guard let place = peers.place(name), let record = peers.records[place] else { return }
        keepRecording(of: record)
        device.removePeer(record.index)
        if record.usesPaths { paths.removePeer(record.id, now: now) }
        peers.remove(place)
        unanswered.forget(record.id)
    }

    private static func wantsPaths(_ peer: MeshPeer) -> Bool { !peer.isStatic && !peer.discoKey.isZero }

    private func presharedKey(_ peer: MeshPeer) -> WireGuard.PresharedKey? {
        peer.presharedKey.flatMap { try? WireGuard.PresharedKey(bytes: $0) }
    }

    private func pathConfiguration(_ peer: MeshPeer) -> Paths.PeerConfiguration {
        Paths.PeerConfiguration(
            nodeKey: peer.key, discoKey: peer.discoKey, home: peer.homeRegion,
            endpoints: peer.endpoints)
    }

    /// The WireGuard peer that packets to this inner address go to.
    func route(to address: IPAddress) -> WireGuard.PeerIndex? { device.peer(for: address) }

    func log(_ message: String, _ metadata: [(String, String)] = []) { configuration.log?(message, metadata) }
}
