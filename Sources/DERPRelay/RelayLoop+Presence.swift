// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

// Who comes, who goes, and who hears of it. `derp.md` §6.3, §6.4, §6.6.
extension RelayLoop {
    /// A client proved its key. It is registered at once, or when it is admitted.
    func login(_ client: RelayClient, _ publicKey: NodePublicKey, _ info: DERPClientInfo) {
        guard let verify = configuration.verify, !client.session.isMeshPeer else {
            register(client, publicKey, info)
            return
        }
        client.applicant = (publicKey, info)
        client.pauses.insert(.admission)
        updateInterest(client)
        let (mailbox, number) = (mailbox, client.number)
        verify(publicKey, client.source) { isAdmitted in
            mailbox.post(.admitted(number, isAdmitted))
        }
    }

    /// The answer to `verify`; the client may be gone meanwhile.
    func admitted(_ number: UInt64, _ isAdmitted: Bool) {
        guard let client = clients[number], let applicant = client.applicant else { return }
        client.applicant = nil
        guard isAdmitted else {
            counters.loginsRefused += 1
            close(client)
            return
        }
        client.pauses.remove(.admission)
        updateInterest(client)
        register(client, applicant.key, applicant.info)
        parseKept(client)
    }

    private func register(_ client: RelayClient, _ publicKey: NodePublicKey, _ info: DERPClientInfo) {
        client.canAckPings = info.canAckPings
        let key = ClientKey(publicKey)
        client.ownKey = key
        let serverInfo = DERPServerInfo(
            tokenBucketBytesPerSecond: client.session.isMeshPeer ? 0 : limits.advertisedBytesPerSecond,
            tokenBucketBytesBurst: client.session.isMeshPeer ? 0 : limits.advertisedBurstBytes)
        sendControl(client.session.serverInfoFrame(serverInfo, random: &random), to: client)
        let state: KeyState
        if let known = keys[key] {
            state = known
            if state.members.count == 1 { counters.duplicateKeys += 1 }
        } else {
            state = KeyState(key, acquaintances: limits.acquaintances)
            keys[key] = state
        }
        client.key = state
        state.members.append(client)
        activate(client, of: state)
        tellProblem(client)
        if state.members.count == 1 { tellWatchers(.peerPresent, key.publicKey.bytes) }
        closeSurplus(state)
    }

    func unregister(_ client: RelayClient) {
        guard let state = client.key else { return }
        client.key = nil
        state.members.removeAll { $0 === client }
        state.speakers.removeAll { $0 === client }
        if state.active === client { state.active = state.speakers.last }
        guard state.members.isEmpty else {
            if state.members.count == 1 {
                counters.duplicateKeys -= 1
                endDuplicate(state.members[0])
            }
            return
        }
        keys[state.key] = nil
        state.active = nil
        if let remote = remotes[state.key] {
            // It is connected elsewhere: nobody needs to give it up.
            remote.sentTo.formUnion(state.sentTo)
        } else {
            tellPeers(of: state.key, state.sentTo)
        }
        let reason = DERPPeerGoneReason.disconnected.rawValue
        tellWatchers(.peerGone, state.key.publicKey.bytes + [reason])
    }

    /// Tells those that `key` sent to that it left.
    func tellPeers(of key: ClientKey, _ peers: SentTo) {
        let frame = DERP.frame(.peerGone, key.publicKey.bytes, [DERPPeerGoneReason.disconnected.rawValue])
        for number in peers.numbers.sorted() {
            guard let peer = clients[number], !peer.isWatcher else { continue }
            counters.peerGoneDisconnected += 1
            sendControl(frame, to: peer)
        }
    }

    func notePreferred(_ client: RelayClient, _ isHome: Bool) {
        guard client.isHome != isHome else { return }
        client.isHome = isHome
        counters.homeConnections += isHome ? 1 : -1
        // At the start it is no move.
        guard now - client.opened > 5_000_000_000 else { return }
        if isHome { counters.homeMovesIn += 1 } else { counters.homeMovesOut += 1 }
    }
}
