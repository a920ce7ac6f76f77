// SPDX-License-Identifier: Apache-2.0

extension UAPI {
    /// A device with what belongs to it: its sockets, and where its peers are.
    package protocol Interface: ~Copyable {
        /// The peers.
        var device: WireGuard.Device { get set }
        /// UDP port in use; 0 for none.
        var listenPort: UInt16 { get }
        /// Mark on outer packets; 0 for none.
        var firewallMark: UInt32 { get }
        /// Binds the sockets to another port; 0 lets the system choose. When it fails, the old one stays.
        mutating func rebind(toPort port: UInt16) throws(Failure)
        /// Marks outer packets from now on.
        mutating func remark(_ mark: UInt32) throws(Failure)
        /// Where the peer is.
        func place(of peer: WireGuard.PeerIndex) -> Endpoint?
        /// Where the peer is from now on, until it shows up elsewhere.
        mutating func setPlace(of peer: WireGuard.PeerIndex, _ endpoint: Endpoint) throws(Failure)
        /// The peer was removed from the device.
        mutating func forgetPlace(of peer: WireGuard.PeerIndex)
    }

    /// How far a `set` operation has come. A new one for each operation.
    package struct Cursor: Sendable {
        /// The peer that lines belong to; nil before the first, and for one that is to be ignored.
        fileprivate var peer: WireGuard.PeerIndex?
        fileprivate var isNew = false
        fileprivate var wantsKeepalive = false

        /// Before the first line.
        package init() {}
    }

    /// Carries settings out in order, up to the first that fails; those before it stay in force.
    package static func apply(
        _ settings: [Setting], _ cursor: inout Cursor, to interface: inout some Interface & ~Copyable,
        now: Instant
    ) throws(Failure) {
        for setting in settings {
            if setting.isOfPeer {
                guard let peer = cursor.peer else { continue }
                try apply(setting, of: peer, &cursor, &interface)
            } else {
                finishPeer(&cursor, &interface, now: now)
                try apply(setting, &cursor, &interface, now: now)
            }
        }
    }

    /// Ends an operation, after its last settings or a failure: what waited for the last peer's session goes.
    package static func finish(
        _ cursor: inout Cursor, on interface: inout some Interface & ~Copyable, now: Instant
    ) {
        finishPeer(&cursor, &interface, now: now)
    }

    /// A copy of all that `get` tells. `wallTime` is civil time at `now`.
    package static func status(
        of interface: borrowing some Interface & ~Copyable, now: Instant, wallTime: WireGuard.WallTime
    ) -> Status {
        var status = Status(
            privateKey: interface.device.privateKey, listenPort: interface.listenPort,
            firewallMark: interface.firewallMark, peers: [])
        status.peers.reserveCapacity(interface.device.peerCount)
        for index in interface.device.peerIndices {
            guard let peer = interface.device.details(of: index) else { continue }
            status.peers.append(
                PeerStatus(
                    publicKey: peer.publicKey, presharedKey: peer.presharedKey,
                    endpoint: interface.place(of: index),
                    lastHandshake: peer.lastHandshake.map { wallTime.before(now.since($0)) },
                    sentBytes: peer.sentBytes, receivedBytes: peer.receivedBytes,
                    persistentKeepalive: peer.persistentKeepalive, allowedIPs: peer.allowedIPs))
        }
        return status
    }

    // MARK: The device's lines

    private static func apply(
        _ setting: Setting, _ cursor: inout Cursor, _ interface: inout some Interface & ~Copyable,
        now: Instant
    ) throws(Failure) {
        switch setting {
        case .privateKey(let key):
            if let removed = interface.device.setPrivateKey(key, now: now) {
                interface.forgetPlace(of: removed)
            }
        case .listenPort(let port): try interface.rebind(toPort: port)
        case .firewallMark(let mark): try interface.remark(mark)
        case .replacePeers:
            for index in interface.device.peerIndices {
                interface.device.removePeer(index)
                interface.forgetPlace(of: index)
            }
        case .peer(let key): try choosePeer(key, &cursor, &interface, now: now)
        default: preconditionFailure("settings of peers go the other way")
        }
    }

    private static func choosePeer(
        _ key: NodePublicKey, _ cursor: inout Cursor, _ interface: inout some Interface & ~Copyable,
        now: Instant
    ) throws(Failure) {
        cursor.isNew = false
        cursor.peer = interface.device.peer(for: key)
        // Our own key: the lines that follow mean nothing. As in wireguard-go, so that one file may list all.
        guard cursor.peer == nil, key != interface.device.publicKey else { return }
        do throws(WireGuard.ConfigurationError) {
            cursor.peer = try interface.device.addPeer(WireGuard.PeerConfiguration(publicKey: key), now: now)
            cursor.isNew = true
        } catch {
            throw failure(error)
        }
    }

    private static func finishPeer(
        _ cursor: inout Cursor, _ interface: inout some Interface & ~Copyable, now: Instant
    ) {
        if cursor.wantsKeepalive, let peer = cursor.peer {
            interface.device.sendKeepalive(to: peer, now: now)
        }
        cursor = Cursor()
    }

    // MARK: A peer's lines

    private static func apply(
        _ setting: Setting, of peer: WireGuard.PeerIndex, _ cursor: inout Cursor,
        _ interface: inout some Interface & ~Copyable
    ) throws(Failure) {
        do throws(WireGuard.ConfigurationError) {
            switch setting {
            case .presharedKey(let key): interface.device.setPresharedKey(key, of: peer)
            case .persistentKeepalive(let seconds):
                if interface.device.setKeepaliveInterval(seconds, of: peer) { cursor.wantsKeepalive = true }
            case .replaceAllowedIPs: try interface.device.setAllowedIPs([], of: peer)
            case .allowedIP(let prefix): try interface.device.addAllowedIP(prefix, of: peer)
            case .noAllowedIP(let prefix): interface.device.removeAllowedIP(prefix, of: peer)
            case .protocolVersion: break
            case .updateOnly where !cursor.isNew: break
            case .updateOnly, .remove:
                interface.device.removePeer(peer)
                interface.forgetPlace(of: peer)
                cursor = Cursor()
            case .endpoint: break
            default: preconditionFailure("settings of the device go the other way")
            }
        } catch {
            throw failure(error)
        }
        if case .endpoint(let endpoint) = setting { try interface.setPlace(of: peer, endpoint) }
    }

    private static func failure(_ error: WireGuard.ConfigurationError) -> Failure {
        switch error {
        case .tooManyPeers, .tooManyAllowedIPs: .tooMany
        case .lowOrderKey: .unusableKey
        case .duplicatePeer, .ownKey, .unknownPeer: .badValue
        }
    }
}

extension WireGuard.WallTime {
    /// The moment so long before this one.
    func before(_ age: Interval) -> Self {
        let nanoseconds = age.nanoseconds % 1_000_000_000
        var result = self
        result.seconds = seconds &- min(seconds, age.nanoseconds / 1_000_000_000)
        if UInt64(result.nanoseconds) < nanoseconds {
            result.seconds = result.seconds &- min(result.seconds, 1)
            result.nanoseconds &+= 1_000_000_000
        }
        result.nanoseconds &-= UInt32(nanoseconds)
        return result
    }
}
