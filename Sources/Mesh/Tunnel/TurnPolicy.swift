// SPDX-License-Identifier: Apache-2.0

/// How eagerly a tunnel's thread asks for the processor: more eagerly while it carries bulk.
///
/// A bulk stream fills the device's queue with what the kernel lets it have waiting, about a millisecond's worth, and
/// everything else waits behind it. A thread that is served before the programs at the stream's ends keeps that queue
/// short. With small packets the same eagerness would wake it for each of them, and starve who receives them.
struct TurnPolicy {
    /// Niceness while packets come one by one, and while super-packets do.
    static let standardNiceness: Int32 = -5
    static let bulkNiceness: Int32 = -13
    /// Turns between two looks.
    private static let period: UInt64 = 64
    /// Bytes per call of the kernel from which traffic counts as bulk: more than as many small datagrams as it joins.
    private static let bulkBytes: UInt64 = 8 << 10

    private var turns: UInt64 = 0
    private var lastBytes: UInt64 = 0
    private var lastCalls: UInt64 = 0
    /// Whether super-packets are what is carried at the moment.
    private(set) var isBulk = false

    /// To be called once a turn with the bytes moved so far and the calls of the device that moved them. The
    /// niceness to ask for, when it changes.
    mutating func next(bytes: UInt64, calls: UInt64) -> Int32? {
        turns &+= 1
        guard turns % Self.period == 0 else { return nil }
        let carriesBulk = bytes &- lastBytes > Self.bulkBytes &* (calls &- lastCalls)
        lastBytes = bytes
        lastCalls = calls
        guard carriesBulk != isBulk else { return nil }
        isBulk = carriesBulk
        return isBulk ? Self.bulkNiceness : Self.standardNiceness
    }
}
