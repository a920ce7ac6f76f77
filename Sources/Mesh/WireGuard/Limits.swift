// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// Times and bounds of a device. The defaults are the protocol's; tests shorten them.
    package struct Limits: Sendable {
        /// A pair that sealed more packets than this is renewed. Whitepaper §6.1.
        package var rekeyAfterMessages: UInt64 = 1 << 60
        /// Counters from here on are never used nor accepted. Whitepaper §6.1.
        package var rejectAfterMessages: UInt64 = .max - (1 << 13)
        /// The initiator of a session renews it after this time when it sends.
        package var rekeyAfterTime: Interval = .seconds(120)
        /// Both peers' sessions began at once: one of them, chosen by key, renews later, so that the next
        /// handshake is a single one.
        package var glareDelay: Interval = .seconds(15)
        /// No session lives longer.
        package var rejectAfterTime: Interval = .seconds(180)
        /// Shortest time between initiations to one peer, and time until the next try.
        package var rekeyTimeout: Interval = .seconds(5)
        /// Random addition to times that both sides would else hit at once.
        package var jitter: Interval = .milliseconds(333)
        /// Retransmissions of an initiation before giving up: 19 in 90 s, 20 initiations in all.
        package var retransmissions = 19
        /// Time after which received data is acknowledged with an empty packet if nothing else was sent.
        package var keepaliveTimeout: Interval = .seconds(10)
        /// Life of a cookie and of the secret it is made with.
        package var cookieLifetime: Interval = .seconds(120)
        /// Shortest time between two accepted initiations of one peer.
        package var initiationInterval: Interval = .milliseconds(20)
        /// Handshake messages that may come in at once before cookies are asked for: wireguard-go asks at 128
        /// waiting ones.
        package var handshakeBurst = 128
        /// Handshake messages per second that one thread answers without asking for cookies: a quarter of a
        /// core at 250 µs each.
        package var handshakeRate: UInt64 = 1_000
        /// How long cookies are asked for once it began.
        package var loadTime: Interval = .seconds(1)
        /// Under load, handshakes per second and source that showed a cookie; five may come at once.
        package var sourceRate: UInt64 = 20
        /// See `sourceRate`.
        package var sourceBurst: UInt64 = 5
        /// Sources remembered for `sourceRate`, 40 bytes each. When full, new sources wait for the next
        /// second.
        package var sources = 8_192
        /// Wrong responses to one of our initiations that are examined although we are under load: an
        /// attacker would have to guess its index.
        package var wrongResponses: UInt8 = 8
        /// Peers of one device, as in wireguard-go.
        package var peers = 65_536
        /// Prefixes of all peers together, 64 to 96 bytes each.
        package var allowedIPs = 1 << 20
        /// Packets that wait for a handshake, per peer; the oldest is dropped.
        package var stagedPackets = 128
        /// Bytes of all packets that wait for handshakes; a peer's oldest are dropped for its new ones, and
        /// others' oldest for a peer that has none.
        package var stagedBytes = 16 << 20
        /// Packets that a peer keeps while others have more, when the bytes are used up: the first of a stream.
        package var stagedShare = 4

        /// The protocol's values.
        package init() {}

        /// One "last minute" initiation when data comes on a session of ours this old: 180 − 10 − 5 s.
        var lastMinute: Interval {
            let margin = keepaliveTimeout.nanoseconds &+ rekeyTimeout.nanoseconds
            return Interval(
                nanoseconds: rejectAfterTime.nanoseconds > margin ? rejectAfterTime.nanoseconds - margin : 0)
        }
    }

    /// Why a datagram or packet went no further. Each has a counter.
    package enum DropReason: Int, CaseIterable, Error, Sendable {
        /// Not a type that exists, or reserved bytes set.
        case unknownType
        /// Another size than its type has.
        case wrongSize
        /// MAC1 is not for us.
        case wrongMAC1
        /// We are under load and the message shows no valid cookie; it is answered with one.
        case cookieRequired
        /// We are under load and the source sends too many handshakes.
        case sourceRate
        /// An initiation that does not open: not for this key, damaged, or a low-order point.
        case badInitiation
        /// An initiation of somebody who is no peer.
        case unknownPeer
        /// An initiation not newer than the newest one of its peer.
        case oldTimestamp
        /// An initiation too soon after the one before.
        case initiationRate
        /// A response or cookie for an initiation that we do not wait for.
        case noHandshake
        /// A response that does not open.
        case badResponse
        /// A cookie reply that does not open, or to a message without MAC.
        case badCookie
        /// Data for an index that is no session.
        case unknownIndex
        /// Data on a session past its time.
        case expiredSession
        /// Data with a counter past the limit.
        case counterLimit
        /// Data that does not open.
        case badTag
        /// Data seen before, or too old to tell.
        case replay
        /// The inner packet is not IPv4 or IPv6, or shorter than its length field.
        case malformedPacket
        /// The inner source address does not belong to the peer.
        case wrongSource
        /// A packet to send waited for a handshake and was displaced.
        case stagedOverflow
        /// A packet to send waited for a handshake that did not come about.
        case handshakeAbandoned
        /// A packet to send is longer than the MTU, which has become smaller.
        case longerThanMTU
    }

    /// What a device has counted.
    package struct Counters: Sendable {
        private var drops = InlineArray<22, UInt64>(repeating: 0)
        /// Handshake messages by what was sent or accepted.
        package var initiationsSent: UInt64 = 0
        package var initiationsAccepted: UInt64 = 0
        package var responsesSent: UInt64 = 0
        package var responsesAccepted: UInt64 = 0
        package var cookieRepliesSent: UInt64 = 0
        package var cookieRepliesAccepted: UInt64 = 0
        /// Handshakes given up after the last retransmission.
        package var handshakesAbandoned: UInt64 = 0
        /// Handshakes that both sides began at once.
        package var glares: UInt64 = 0

        /// Nothing counted yet.
        package init() {}

        /// How many packets were dropped for this reason.
        package internal(set) subscript(_ reason: DropReason) -> UInt64 {
            get { drops[reason.rawValue] }
            set { drops[reason.rawValue] = newValue }
        }

        /// All drops together.
        package var dropped: UInt64 { DropReason.allCases.reduce(0) { $0 &+ self[$1] } }
    }
}
