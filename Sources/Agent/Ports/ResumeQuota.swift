// SPDX-License-Identifier: Apache-2.0

package import Resume

/// Which resumable streams without a carrier must go before their time, so that clients that were killed, or that
/// somebody writes to harm us, cannot fill the agent. Pure.
///
/// Streams with a carrier are never touched, and neither are those that lost theirs less than a quarter of an hour ago
/// unless the agent as a whole holds too much: a laptop that sleeps for ten minutes finds everything as it was. A
/// client is *gone* when the coordinator lost it and 15 minutes passed without a handshake, which is when the node
/// forgets it. A sleeping laptop looks the same; so sessions of gone clients are kept as long as there are few, while
/// forwarded ports, to which nobody returns, end half an hour after they lost their carrier.
package struct ResumeQuota: Sendable {
    /// One stream as it stands.
    package struct Stream: Sendable {
        package var id: ResumeID
        /// Node key of its client.
        package var client: [UInt8]
        /// A person's session rather than a forwarded port.
        package var isSession: Bool
        /// nil: it has a carrier.
        package var detachedAt: UInt64?
        package var heldBytes: Int

        package init(
            id: ResumeID, client: [UInt8], isSession: Bool, detachedAt: UInt64?, heldBytes: Int
        ) {
            self.id = id
            self.client = client
            self.isSession = isSession
            self.detachedAt = detachedAt
            self.heldBytes = heldBytes
        }
    }

    /// Streams of one client, with and without carriers. Forwarded ports of a busy web page need some dozens.
    package var streamsPerClient = 256
    /// 128 MiB in the streams without carrier of one client: 16 that were all full in both directions.
    package var bytesPerClient = 128 << 20
    /// 512 MiB in all streams without carrier.
    package var bytesInAll = 512 << 20
    /// Streams, and 64 MiB in them, that are kept for clients that are gone.
    package var goneStreams = 64, goneBytes = 64 << 20
    /// 15 min: younger ones are spared.
    package var sparedNanoseconds: UInt64 = 900_000_000_000
    /// 30 min: for forwarded ports of clients that are gone.
    package var goneForwardNanoseconds: UInt64 = 1_800_000_000_000

    /// The defaults.
    package init() {}

    /// Whose time has come. `known` holds the keys of the clients that the node knows; nil when that is not known.
    package func excess(_ streams: [Stream], known: Set<[UInt8]>?, now: UInt64) -> [ResumeID] {
        // Longest without a carrier first.
        var left = streams.filter { $0.detachedAt != nil }
            .sorted { ($0.detachedAt ?? 0) < ($1.detachedAt ?? 0) }
        var result: [ResumeID] = []
        func age(_ stream: Stream) -> UInt64 {
            let since = stream.detachedAt ?? now
            return now > since ? now - since : 0
        }
        /// Ends the oldest of those that `matches` until at most `count` streams with `bytes` bytes are left.
        func trim(_ count: Int, _ bytes: Int, spares: Bool, _ matches: (Stream) -> Bool) {
            let group = left.filter(matches)
            var (streams, held) = (group.count, group.reduce(0) { $0 + $1.heldBytes })
            var ended: Set<ResumeID> = []
            for stream in group where streams > count || held > bytes {
                if spares, age(stream) < sparedNanoseconds { break }
                // One that holds nothing does not help against too many bytes.
                if streams <= count, stream.heldBytes == 0 { continue }
                ended.insert(stream.id)
                streams -= 1
                held -= stream.heldBytes
            }
            result += left.filter { ended.contains($0.id) }.map(\.id)
            left.removeAll { ended.contains($0.id) }
        }
        if let known {
            let isGone = { (stream: Stream) in !known.contains(stream.client) }
            let isLate = { (stream: Stream) in
                isGone(stream) && !stream.isSession && age(stream) >= goneForwardNanoseconds
            }
            result += left.filter(isLate).map(\.id)
            left.removeAll(where: isLate)
            trim(goneStreams, goneBytes, spares: true, isGone)
        }
        for client in Set(left.map(\.client)) {
            trim(.max, bytesPerClient, spares: true) { $0.client == client }
        }
        trim(.max, bytesInAll, spares: false) { _ in true }
        return result
    }

    /// Whether one more stream of a client fits: nil if so, else the stream to end for it, or none at all.
    package func roomFor(_ client: [UInt8], among streams: [Stream]) -> Room {
        let own = streams.filter { $0.client == client }
        guard own.count >= streamsPerClient else { return .free }
        let oldest = own.filter { $0.detachedAt != nil }.min { ($0.detachedAt ?? 0) < ($1.detachedAt ?? 0) }
        return oldest.map { .instead($0.id) } ?? .none
    }

    /// Answer to the wish for one more stream.
    package enum Room: Hashable, Sendable {
        /// There is room.
        case free
        /// If this one ends.
        case instead(ResumeID)
        /// All of the client's streams are in use.
        case none
    }
}
