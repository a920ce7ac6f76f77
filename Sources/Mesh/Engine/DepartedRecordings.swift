// SPDX-License-Identifier: Apache-2.0

/// What the flight recorder held of peers that went away or started anew: a connection that broke is the one that
/// somebody asks about. Oldest first.
struct DepartedRecordings {
    private struct Entry {
        var recording: NodeRecording
        var at: Instant
    }

    /// As long as the recorder itself remembers.
    private static let life = RecorderLimits().history
    /// Many short connections must not push out all that matters.
    private static let peers = 32
    /// As many as all connected peers may have: some megabytes.
    private static let inputs = RecorderLimits().allEntries

    private var entries: [Entry] = []

    /// Takes the record of a peer that is about to be removed.
    mutating func add(_ recording: NodeRecording, now: Instant) {
        forgetOld(now: now)
        entries.append(Entry(recording: recording, at: now))
        var inputs = entries.reduce(0) { $0 + $1.recording.recording.inputCount }
        while entries.count > Self.peers || inputs > Self.inputs, !entries.isEmpty {
            inputs -= entries.removeFirst().recording.recording.inputCount
        }
    }

    /// Those that are recent enough.
    mutating func recent(now: Instant) -> [NodeRecording] {
        forgetOld(now: now)
        return entries.map(\.recording)
    }

    private mutating func forgetOld(now: Instant) { entries.removeAll { now.since($0.at) > Self.life } }
}
