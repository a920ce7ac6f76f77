// SPDX-License-Identifier: Apache-2.0

/// Why packets do not go straight to an address, or to a peer. The text is part of the JSON output.
public enum PathReason: String, Hashable, Sendable, Codable, CaseIterable {
    /// UDP does not leave this network.
    case udpBlocked = "udp-blocked"
    /// The only host with STUN servers is silent: UDP does not leave this network, or the server's port is not open.
    case stunSilent = "stun-silent"
    /// UDP does not leave the peer's network, as it seems.
    case udpBlockedPeer = "udp-blocked-peer"
    /// Small packets get through, full ones do not.
    case mtu
    /// The NATs of both sides cannot be passed together.
    case hardNATBoth = "hard-nat-both"
    /// Direct connections are switched off here.
    case policy
    /// Direct connections are switched off at the peer, as it seems.
    case policyPeer = "policy-peer"
    /// There is no STUN server, so nobody knows this side's outside address.
    case stunMissing = "stun-missing"
    /// Pings were not answered, and nothing tells why.
    case timeout
    /// Pings are answered, data is lost.
    case dataDead = "data-dead"
    /// The system would not send there.
    case noRoute = "no-route"
    /// This machine has no address of that family.
    case noAddressFamily = "no-address-family"
    /// It was not tried yet.
    case notTried = "not-tried"
    /// It cannot be an address of a peer: unspecified, multicast, link-local, loopback, inside the tunnel.
    case unusableAddress = "unusable-address"
    /// The peer names more addresses than are tried.
    case tableFull = "table-full"
    /// No relay can be reached, so the sides cannot even agree to try.
    case relayMissing = "relay-missing"
    /// The relay works, the peer does not answer.
    case peerSilent = "peer-silent"

    /// In words, for a peer.
    public var words: String {
        switch self {
        case .udpBlocked: "no STUN server answers: UDP does not leave this network"
        case .stunSilent:
            "the only STUN host does not answer: its ports are closed, or UDP does not leave this network"
        case .udpBlockedPeer: "UDP does not leave the peer's network: it knows no outside address of its own"
        case .mtu: "small packets get through, packets of the tunnel (1312 bytes) do not"
        case .hardNATBoth:
            "the NAT of one side uses another port for each destination, and the other's lets in only those "
                + "it has sent to"
        case .policy: "direct connections are switched off on this side"
        case .policyPeer: "the peer names no addresses: direct connections seem to be switched off there"
        case .stunMissing: "there is no STUN server, so this side cannot know its outside address"
        case .timeout: "no ping was answered"
        case .dataDead: "pings are answered but data is lost: something on the way drops it"
        case .noRoute: "this machine has no route there"
        case .noAddressFamily: "this machine has no address of that family"
        case .notTried: "not tried yet"
        case .unusableAddress: "not an address that a peer can have"
        case .tableFull: "the peer names more addresses than are tried"
        case .relayMissing: "no relay can be reached"
        case .peerSilent: "the relay works, but the peer does not answer"
        }
    }

    /// What to do about it, on one line.
    public var advice: String {
        switch self {
        case .udpBlocked:
            "Let UDP out at the firewall (any port, or at least to port 3478 and to the peer's addresses); "
                + "until then everything works, through the relay."
        case .stunSilent:
            "Ask the administrator whether UDP ports 3478 and 3479 of the server are open, or to set "
                + "--derp-server-stun-addresses; if they are, let UDP out at this network's firewall."
        case .udpBlockedPeer:
            "Let UDP out at the firewall of the peer's network; 'coder netcheck' run there shows what it sees."
        case .mtu:
            "Raise the MTU on the way to at least 1360 (IPv4) or 1380 (IPv6): look at VPNs, PPPoE and "
                + "tunnels on both sides."
        case .hardNATBoth:
            "Switch on NAT-PMP, PCP or UPnP, or endpoint-independent NAT, at one of the routers, forward a "
                + "UDP port to one side, or use IPv6."
        case .policy:
            "Remove --disable-direct-connections (CODER_DISABLE_DIRECT_CONNECTIONS), or ask the "
                + "administrator about --block-direct-connections."
        case .policyPeer:
            "Ask the administrator about --block-direct-connections, or look at the agent's environment."
        case .stunMissing:
            "Ask the administrator to set --derp-server-stun-addresses to two or more STUN servers."
        case .timeout:
            "A firewall at the peer's side may drop UDP from outside; 'coder netcheck' on both sides tells more."
        case .dataDead:
            "A firewall or traffic shaper on the way drops WireGuard's packets; the relay is used instead and "
                + "the address is tried again later."
        case .noRoute: "Look at the routing table and the local firewall of this machine."
        case .noAddressFamily: "Nothing to do, unless this network should have that family."
        case .notTried: "Wait some seconds and ask again."
        case .unusableAddress: "Nothing to do: such addresses are left out."
        case .tableFull: "Look why the peer has so many addresses."
        case .relayMissing:
            "Look at the way to the server (proxy, firewall, certificate); 'coder netcheck' names each relay."
        case .peerSilent:
            "The workspace may have stopped, or its agent may have lost its own relay; look at its status."
        }
    }

    init(_ refusal: CandidateRefusal) {
        switch refusal {
        case .policy: self = .policy
        case .tableFull: self = .tableFull
        case .unspecified, .multicast, .linkLocal, .tunnelAddress, .loopback: self = .unusableAddress
        }
    }
}
