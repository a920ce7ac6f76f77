// SPDX-License-Identifier: Apache-2.0

extension StackCounters {
    /// All counters by name, for status pages.
    public var named: [(name: String, value: UInt64)] {
        [
            ("packets_received", packetsReceived), ("packets_sent", packetsSent), ("malformed", malformed),
            ("bad_checksum", badChecksum), ("fragments", fragments), ("not_for_us", notForUs),
            ("unknown_protocol", unknownProtocol), ("bad_extension_header", badExtensionHeader),
            ("syn_dropped", synDropped), ("connections_refused", connectionsRefused),
            ("resets_sent", resetsSent), ("resets_received", resetsReceived),
            ("challenge_acks", challengeACKs), ("paws_rejected", pawsRejected),
            ("out_of_window", outOfWindow), ("out_of_order", outOfOrder),
            ("out_of_order_dropped", outOfOrderDropped), ("duplicates", duplicates),
            ("receive_memory_dropped", receiveMemoryDropped), ("retransmissions", retransmissions),
            ("timeouts", timeouts), ("tail_probes", tailProbes), ("recoveries", recoveries),
            ("undone_recoveries", undoneRecoveries), ("window_probes", windowProbes),
            ("keepalive_probes", keepaliveProbes), ("datagrams_dropped", datagramsDropped),
            ("datagrams_too_long", datagramsTooLong), ("packets_dropped", packetsDropped),
            ("control_events_dropped", controlEventsDropped),
            ("unsolicited_replies_suppressed", unsolicitedRepliesSuppressed),
            ("echo_replies", echoReplies), ("tsmp_pongs", tsmpPongs), ("tsmp_rejects", tsmpRejects),
            ("icmp_errors_received", icmpErrorsReceived), ("icmp_errors_ignored", icmpErrorsIgnored),
        ]
    }
}
