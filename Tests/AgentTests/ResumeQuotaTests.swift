// SPDX-License-Identifier: Apache-2.0

import Agent
import Resume
import Testing

/// What happens to streams whose clients do not come back.
@Suite struct ResumeQuotaTests {
    private static let minute: UInt64 = 60_000_000_000
    private let now = 1_000 * minute
    private let quota = ResumeQuota()

    private func stream(
        _ client: UInt8, minutes: UInt64?, held: Int = 0, isSession: Bool = true
    ) -> ResumeQuota.Stream {
        var generator = SystemRandomNumberGenerator()
        return .init(
            id: .random(using: &generator), client: [client], isSession: isSession,
            detachedAt: minutes.map { now - $0 * Self.minute }, heldBytes: held)
    }

    private func ended(_ streams: [ResumeQuota.Stream], known: Set<[UInt8]>? = []) -> Set<ResumeID> {
        let list = quota.excess(streams, known: known, now: now)
        #expect(Set(list).count == list.count)
        return Set(list)
    }

    @Test func aNightWithTheLidClosedEndsNoSession() {
        let streams = [
            stream(1, minutes: 700), stream(1, minutes: 700, held: 4 << 20), stream(2, minutes: nil),
        ]
        #expect(ended(streams).isEmpty)
        #expect(ended(streams, known: [[1], [2]]).isEmpty)
    }

    @Test func forwardedPortsOfClientsThatAreGoneEnd() {
        let late = stream(1, minutes: 31, isSession: false)
        let streams = [
            late, stream(1, minutes: 29, isSession: false), stream(1, minutes: nil, isSession: false),
            stream(1, minutes: 31),
        ]
        #expect(ended(streams) == [late.id])
        #expect(ended(streams, known: [[1]]).isEmpty)
        #expect(ended(streams, known: nil).isEmpty)
    }

    @Test func sessionsOfClientsThatAreGoneAreFew() {
        // One killed client after the other, each a node of its own.
        let streams = (0..<100).map { stream(UInt8($0), minutes: 20 + UInt64($0)) }
        #expect(ended(streams) == Set(streams[64...].map(\.id)))
        #expect(ended(streams, known: Set(streams.map(\.client))).isEmpty)
    }

    @Test func sessionsOfClientsThatAreGoneHoldLittle() {
        let streams = (0..<30).map { stream(UInt8($0), minutes: 20 + UInt64($0), held: 4 << 20) }
        let idle = stream(200, minutes: 300)
        #expect(ended(streams + [idle]) == Set(streams[16...].map(\.id)))
    }

    @Test func oneClientHoldsALimitedAmount() {
        let streams = (0..<40).map { stream(7, minutes: 16 + UInt64($0), held: 8 << 20) }
        #expect(ended(streams, known: [[7]]) == Set(streams[16...].map(\.id)))
    }

    @Test func tenMinutesOfSleepHarmNothing() {
        let streams = (0..<60).map { stream(7, minutes: 10, held: 8 << 20, isSession: $0 % 2 == 0) }
        #expect(ended(streams).isEmpty)
    }

    @Test func theAgentAsAWholeHoldsALimitedAmount() {
        let streams = (0..<100).map { stream(UInt8($0), minutes: UInt64($0) / 10, held: 8 << 20) }
        let list = ended(streams, known: Set(streams.map(\.client)))
        #expect(list.count == 36)
        #expect(list.isSubset(of: Set(streams[60...].map(\.id))))
    }

    @Test func aClientWithTooManyStreamsLosesTheOldest() {
        var streams = (0..<255).map { _ in stream(7, minutes: nil) }
        #expect(quota.roomFor([7], among: streams) == .free)
        streams.append(stream(7, minutes: nil))
        #expect(quota.roomFor([7], among: streams) == .none)
        #expect(quota.roomFor([8], among: streams) == .free)
        let old = stream(7, minutes: 5)
        streams += [stream(7, minutes: 1), old, stream(8, minutes: 100)]
        #expect(quota.roomFor([7], among: streams) == .instead(old.id))
    }
}
