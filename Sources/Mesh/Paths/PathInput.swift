// SPDX-License-Identifier: Apache-2.0

/// What the path machine is told about one peer, after keys and signatures were checked. All decisions are a function
/// of these, their times and the limits: a recorder keeps them and a simulator plays them again.
package enum PathInput: Hashable, Sendable, Codable {
    /// What the coordinator says of the peer.
    case peer(home: Int, endpoints: [SocketAddress], isRestarted: Bool)
    /// Packets are sent. Recorded when that has consequences, at most once a second otherwise.
    case use
    /// A new ping of the peer. `isCertain`: the address is this peer's and nobody else's.
    case ping(PathVia, bytes: Int, isCertain: Bool)
    /// The answer to our ping of this number.
    case pong(number: UInt64, PathVia, seenAs: SocketAddress)
    /// The peer names its addresses.
    case callMeMaybe(region: Int, [SocketAddress])
    /// A packet of the peer came through this relay.
    case heard(region: Int)
    /// The relay does not know the peer.
    case relayPeerGone(region: Int)
    /// The system would not send to this address.
    case sendFailed(SocketAddress, SendFailure)
    /// Data on the chosen address is lost though pings are answered.
    case dataDead(isCertain: Bool)
    /// Data came from an address where it was thought to be dead.
    case directData(SocketAddress)
    /// Authenticated packets came from an address that is not known.
    case moved(SocketAddress)
    /// Packets leave on the chosen address and nothing comes back.
    case silence
    /// The peer, which was heard directly, is heard through a relay.
    case relayedAgain
    /// Somebody asked for a ping.
    case userPing(token: UInt64)
    /// A deadline passed.
    case timeout

    // For all peers of a node:

    /// The own addresses, found anew.
    case ownEndpoints([SocketAddress])
    /// A relay connection is up.
    case relayUp(region: Int)
    /// A relay connection is gone.
    case relayDown(region: Int)
    /// Direct paths were switched off or on.
    case directBlocked(Bool)
    /// The network of this machine changed.
    case linkChanged
}

extension Paths {
    /// The one way by which anything reaches the state of a peer.
    mutating func handle(_ input: PathInput, _ slot: Int, now: Instant) {
        record(input, slot, now: now)
        switch input {
        case .peer(let home, let endpoints, let isRestarted):
            if isRestarted { handleRestart(slot, now: now) }
            peers[slot]!.home = home
            noteRelayChange(slot, now: now)
            setNodeList(slot, endpoints, now: now)
            arm(slot)
        case .use: handleUse(slot, now: now)
        case .ping(let via, let bytes, let isCertain):
            handlePing(via, bytes: bytes, isCertain: isCertain, slot, now: now)
        case .pong(let number, let via, let seenAs): handlePong(number, via, seenAs: seenAs, slot, now: now)
        case .callMeMaybe(let region, let addresses):
            handleCallMeMaybe(region, addresses, slot, now: now)
        case .heard(let region):
            peers[slot]!.relayRoute = region
            noteRelayChange(slot, now: now)
        case .relayPeerGone(let region): handleRelayPeerGone(slot, region: region, now: now)
        case .sendFailed(let address, let failure): handleSendFailure(address, failure, slot, now: now)
        case .dataDead(let isCertain): handleDataDead(slot, isCertain: isCertain, now: now)
        case .directData(let address): handleDirectData(address, slot, now: now)
        case .moved(let address): handleMove(address, slot, now: now)
        case .silence: handleSilence(slot, now: now)
        case .relayedAgain:
            doubtBest(slot, .relayed, now: now)
            arm(slot)
        case .userPing(let token): handleUserPing(token, slot, now: now)
        case .timeout:
            handleTimeout(slot, now: now)
            arm(slot)
        case .ownEndpoints, .relayUp, .relayDown, .directBlocked, .linkChanged:
            preconditionFailure("an input of all peers reached one")
        }
    }

    /// The same for what concerns all peers.
    mutating func handle(_ input: PathInput, now: Instant) {
        record(input, nil, now: now)
        switch input {
        case .ownEndpoints(let endpoints): handleOwnEndpoints(endpoints, now: now)
        case .relayUp(let region):
            if !openRegions.contains(region) { openRegions.append(region) }
            for slot in peers.indices where peers[slot] != nil { noteRelayChange(slot, now: now) }
        case .relayDown(let region):
            openRegions.removeAll { $0 == region }
            for slot in peers.indices where peers[slot]?.relayRoute == region {
                peers[slot]!.relayRoute = nil
            }
            for slot in peers.indices where peers[slot] != nil { noteRelayChange(slot, now: now) }
        case .directBlocked(let isBlocked): handleDirectBlocked(isBlocked, now: now)
        case .linkChanged: handleLinkChange(now: now)
        default: preconditionFailure("an input of one peer reached all")
        }
    }
}
