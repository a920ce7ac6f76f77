// SPDX-License-Identifier: Apache-2.0

public import Mesh

extension Relay {
    /// How a relay behaves.
    public struct Configuration: Sendable {
        /// The relay's own key pair; new at each start.
        public var privateKey: PrivateKey
        /// Shared secret of the relays of one region; empty: no other relay is known.
        public var meshKey = ""
        /// Asked for each client that proved its key, with its address: call `answer` once, from anywhere. The client
        /// waits, for as long as logins may take. Nil: everybody may come. Other relays of the mesh are not asked for.
        public var verify: Verify?
        /// Bounds.
        public var limits = Limits()

        /// See `verify`. Called on the relay's thread: it must not wait.
        public typealias Verify =
            @Sendable (
                _ key: NodePublicKey, _ source: String, _ answer: @escaping @Sendable (Bool) -> Void
            ) -> Void

        /// A relay that admits everybody.
        public init(privateKey: PrivateKey) { self.privateKey = privateKey }
    }

    /// Bounds on what clients can make the relay hold or do.
    public struct Limits: Sendable {
        /// Connections at a time. Further ones are closed at once.
        public var connections = 65_536
        /// Packets that wait for one client: discovery and all else are counted apart. Upstream has 512, which is
        /// less than one read of small packets.
        public var queuePackets = 4_096
        /// Bytes that wait for one client. `derp.md` D18.
        public var queueBytes = 1 << 20
        /// Bytes that wait for all clients; beyond it each may keep only `crowdedQueueBytes`.
        public var totalQueueBytes = 256 << 20
        /// See `totalQueueBytes`.
        public var crowdedQueueBytes = 64 << 10
        /// Packets that waited longer are of no use to anyone: their senders sent them again.
        public var queueNanoseconds: UInt64 = 1_000_000_000
        /// The same for discovery, whose answers are awaited for 5 s.
        public var discoQueueNanoseconds: UInt64 = 5_000_000_000
        /// A sender to one client alone is not read while more than this waits for that client…
        public var pauseBytes = 64 << 10
        /// …until it is no more than this,
        public var resumeBytes = 16 << 10
        /// or this time has passed: what it has for others must not wait longer. 0: senders are never slowed down.
        public var pauseNanoseconds: UInt64 = 200_000_000
        /// How long a sender must not have sent to anybody else. For discovery it is `discoQueueNanoseconds`: one that
        /// looks for others is not slowed down at all.
        public var singleNanoseconds: UInt64 = 200_000_000
        /// Rate that each client may send with; beyond it is not read. 0: no limit. Other relays are exempt.
        public var bytesPerSecond = 0
        /// What it may send at once. At least one packet of the largest size fits.
        public var burstBytes = 1 << 20
        /// Rate told to clients, which then drop what exceeds it themselves. 0: none.
        public var advertisedBytesPerSecond = 0
        /// What they may send at once.
        public var advertisedBurstBytes = 0
        /// Keys that another relay may have.
        public var remoteKeys = 1 << 20
        /// News that wait for another relay which takes none; then it has to connect again.
        public var watcherBytes = 64 << 20
        /// Bytes of begun frames that all clients together may leave us with. Beyond it the client that holds most
        /// is closed: not the one whose bytes came last, who may be anybody.
        public var partialBytes = 64 << 20
        /// The same for those that are not logged in, whose one frame has some 200 bytes.
        public var loginBytes = 1 << 20
        /// A frame that was begun must be complete within this time. The largest one, 64 KiB, then needs 4 KB/s.
        public var frameNanoseconds: UInt64 = 20_000_000_000
        /// Connections with one key: a node has one, and another one while it moves. Beyond it the oldest is closed.
        public var connectionsPerKey = 16
        /// Connections from one source address. 0: no limit, because many may come through one NAT or proxy.
        public var connectionsPerAddress = 0
        /// Connections that one key sent to and that hear when it leaves.
        public var acquaintances = 4_096
        /// From the connection to the login. `derp.md` §3.
        public var loginNanoseconds: UInt64 = 10_000_000_000
        /// A client that takes nothing of what waits for it for so long is closed. Upstream: 2 s.
        public var stallNanoseconds: UInt64 = 20_000_000_000
        /// The same for a connection that we opened to another relay. `derp.md` §8.
        public var linkStallNanoseconds: UInt64 = 5_000_000_000
        /// Another relay that says nothing for so long is gone: it owes a keep-alive each minute. `derp.md` §7.1.
        public var linkSilenceNanoseconds: UInt64 = 120_000_000_000
        /// After so long without a byte TCP itself asks whether the client is there. `derp.md` §6.7.
        public var probeSeconds = 600
        /// Between keep-alives. `derp.md` §6.5.
        public var keepAliveNanoseconds: UInt64 = 60_000_000_000
        /// A random part of this is added, so that many clients do not wake up together.
        public var keepAliveJitterNanoseconds: UInt64 = 5_000_000_000
        /// Bytes that the kernel may hold unsent per TCP connection; more would only wait out of our reach.
        public var kernelUnsentBytes = 128 << 10
        /// Most that is read of one client before others have their turn.
        public var readBytes = 64 << 10

        /// The defaults.
        public init() {}
    }

    /// What a relay did, in the words of `derp.md` §10. Gauges say how things are now.
    public struct Counters: Hashable, Sendable {
        /// Connections taken.
        public var accepts: UInt64 = 0
        /// Bytes of received frames.
        public var bytesReceived: UInt64 = 0
        /// Bytes of sent frames.
        public var bytesSent: UInt64 = 0
        /// Packets received from clients.
        public var packetsReceived: UInt64 = 0
        /// Of those, discovery messages.
        public var discoReceived: UInt64 = 0
        /// Packets given to clients' connections.
        public var packetsSent: UInt64 = 0
        /// Packets from other relays.
        public var packetsForwardedIn: UInt64 = 0
        /// Packets given to other relays.
        public var packetsForwardedOut: UInt64 = 0
        /// How often a sender was not read because its destination took less.
        public var pauses: UInt64 = 0
        /// How often a sender was not read because its rate was used up.
        public var rateLimited: UInt64 = 0
        /// Dropped: nobody has this key here.
        public var droppedUnknown: UInt64 = 0
        /// Dropped: nobody has the key of a forwarded packet here.
        public var droppedUnknownOnForward: UInt64 = 0
        /// Dropped: the destination is going away.
        public var droppedGone: UInt64 = 0
        /// Dropped from a queue's head: full.
        public var droppedQueueHead: UInt64 = 0
        /// Dropped from a queue's head: too old.
        public var droppedLate: UInt64 = 0
        /// Dropped: the destination's connection broke.
        public var droppedWriteError: UInt64 = 0
        /// Dropped: several connections have the key, none is active.
        public var droppedDuplicate: UInt64 = 0
        /// Of all dropped, discovery messages.
        public var droppedDisco: UInt64 = 0
        /// Frames of unknown types, skipped.
        public var unknownFrames: UInt64 = 0
        /// Pings of clients.
        public var pingsReceived: UInt64 = 0
        /// Answers to them.
        public var pongsSent: UInt64 = 0
        /// Problems, and their ends, told to clients.
        public var healthSent: UInt64 = 0
        /// "It left" told.
        public var peerGoneDisconnected: UInt64 = 0
        /// "It is not here" told.
        public var peerGoneNotHere: UInt64 = 0
        /// Clients that made us their home after a while.
        public var homeMovesIn: UInt64 = 0
        /// Clients that chose another home.
        public var homeMovesOut: UInt64 = 0
        /// Closed: login too late.
        public var loginTimeouts: UInt64 = 0
        /// Closed: login refused, by its box or by `verify`.
        public var loginsRefused: UInt64 = 0
        /// Closed: something that is not allowed.
        public var protocolErrors: UInt64 = 0
        /// Closed: took nothing for too long.
        public var stalls: UInt64 = 0
        /// Closed: a frame was begun and not finished.
        public var slowFrames: UInt64 = 0
        /// Closed or refused: too many connections, of all or with one key, or too much memory for begun frames.
        public var refusedForLimits: UInt64 = 0
        /// Gauge: connections.
        public var connections = 0
        /// Gauge: connections of clients whose home is here.
        public var homeConnections = 0
        /// Gauge: keys logged in.
        public var clients = 0
        /// Gauge: keys that other relays of the mesh have.
        public var remoteClients = 0
        /// Gauge: connections to other relays.
        public var links = 0
        /// Gauge: keys with more than one connection.
        public var duplicateKeys = 0
        /// Gauge: other relays that watch who is here.
        public var watchers = 0
        /// Gauge: bytes in clients' queues.
        public var queuedBytes = 0
        /// Mean time of packets in queues, milliseconds (only packets that had to wait).
        public var averageQueueMilliseconds = 0.0

        /// Nothing happened yet.
        public init() {}

        /// All packets dropped.
        public var packetsDropped: UInt64 {
            droppedUnknown + droppedUnknownOnForward + droppedGone + droppedQueueHead + droppedLate
                + droppedWriteError + droppedDuplicate
        }
    }
}

extension Relay.Counters {
    /// The counters as Prometheus text, under upstream's names.
    public var prometheusText: String {
        var lines: [String] = []
        func add(_ name: String, _ kind: String, _ samples: [(labels: String, value: String)]) {
            lines.append("# TYPE coder_derp_\(name) \(kind)")
            for sample in samples { lines.append("coder_derp_\(name)\(sample.labels) \(sample.value)") }
        }
        let counters: [(String, UInt64)] = [
            ("accepts_total", accepts), ("bytes_received_total", bytesReceived),
            ("bytes_sent_total", bytesSent),
            ("packets_received_total", packetsReceived), ("packets_sent_total", packetsSent),
            ("packets_dropped_total", packetsDropped), ("packets_forwarded_in_total", packetsForwardedIn),
            ("packets_forwarded_out_total", packetsForwardedOut), ("sender_pauses_total", pauses),
            ("rate_limited_total", rateLimited),
            ("home_moves_in_total", homeMovesIn), ("home_moves_out_total", homeMovesOut),
            ("got_ping_total", pingsReceived), ("sent_pong_total", pongsSent),
            ("peer_gone_disconnected_total", peerGoneDisconnected),
            ("peer_gone_not_here_total", peerGoneNotHere),
            ("unknown_frames_total", unknownFrames), ("sent_health_total", healthSent),
        ]
        for (name, value) in counters { add(name, "counter", [("", "\(value)")]) }
        let reasons: [(String, UInt64)] = [
            ("unknown_dest", droppedUnknown), ("unknown_dest_on_fwd", droppedUnknownOnForward),
            ("gone_disconnected", droppedGone), ("queue_head", droppedQueueHead), ("queue_late", droppedLate),
            ("write_error", droppedWriteError), ("dup_client", droppedDuplicate),
        ]
        add("packets_dropped_reason_total", "counter", reasons.map { ("{reason=\"\($0.0)\"}", "\($0.1)") })
        add(
            "packets_dropped_type_total", "counter",
            [
                ("{type=\"disco\"}", "\(droppedDisco)"),
                ("{type=\"other\"}", "\(packetsDropped - min(packetsDropped, droppedDisco))"),
            ])
        add(
            "packets_received_kind_total", "counter",
            [
                ("{kind=\"disco\"}", "\(discoReceived)"),
                ("{kind=\"other\"}", "\(packetsReceived - min(packetsReceived, discoReceived))"),
            ])
        add(
            "connections_closed_reason_total", "counter",
            [
                ("{reason=\"login_timeout\"}", "\(loginTimeouts)"),
                ("{reason=\"login_refused\"}", "\(loginsRefused)"),
                ("{reason=\"protocol_error\"}", "\(protocolErrors)"), ("{reason=\"stalled\"}", "\(stalls)"),
                ("{reason=\"slow_frame\"}", "\(slowFrames)"),
                ("{reason=\"limit\"}", "\(refusedForLimits)"),
            ])
        let gauges = [
            ("connections", "\(connections)"), ("home_connections", "\(homeConnections)"),
            ("clients", "\(clients + remoteClients)"), ("clients_local", "\(clients)"),
            ("clients_remote", "\(remoteClients)"), ("duplicate_keys", "\(duplicateKeys)"),
            ("watchers", "\(watchers)"), ("mesh_links", "\(links)"),
            ("queued_bytes", "\(queuedBytes)"), ("average_queue_duration_ms", "\(averageQueueMilliseconds)"),
        ]
        for (name, value) in gauges { add(name, "gauge", [("", value)]) }
        return lines.joined(separator: "\n") + "\n"
    }
}
