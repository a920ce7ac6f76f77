// SPDX-License-Identifier: Apache-2.0

extension PathEvent.Kind {
    /// One line for people: logs, replayed records.
    public var words: String {
        switch self {
        case .candidateAdded(let address, let source): "new address \(address) (\(source.rawValue))"
        case .candidateRefused(let address, let source, let reason):
            "address \(address) (\(source.rawValue)) refused: \(reason.rawValue)"
        case .candidateRemoved(let address, let reason): "address \(address) dropped: \(reason.rawValue)"
        case .probed(let via, let purpose, let bytes): "ping \(via), \(purpose), \(bytes) bytes"
        case .answered(let via, let purpose, let latency, let seenAs):
            "answer from \(via), \(purpose), after \(Self.milliseconds(latency)) ms, we are \(seenAs) there"
        case .unanswered(let via, let purpose): "no answer from \(via), \(purpose)"
        case .pinged(let via, let bytes): "pinged from \(via), \(bytes) bytes"
        case .narrow(let address, let bytes): "\(address) answers pings of \(bytes) bytes, not full ones"
        case .passedOver(let address, let reason): "\(address) answers but is not chosen: \(reason.rawValue)"
        case .sendFailed(let address, let failure): "cannot send to \(address): \(failure.rawValue)"
        case .chosen(let address, let latency, let previous):
            "CHOSEN \(address), \(Self.milliseconds(latency)) ms" + (previous.map { ", before \($0)" } ?? "")
        case .doubted(let address, let reason): "\(address) in doubt: \(reason.rawValue); both ways now"
        case .trustedAgain(let address): "\(address) answers again"
        case .lost(let address, let reason): "LOST \(address): \(reason.rawValue)"
        case .callMeMaybeSent(let region, let addresses):
            "asked the peer through relay \(region) to ping our \(addresses) addresses"
        case .callMeMaybeReceived(let addresses): "the peer asks us to ping its \(addresses) addresses"
        case .refused(let via, let reason): "message from \(via) dropped: \(reason.rawValue)"
        case .relayChanged(let region): "relay is \(region.map { "\($0)" } ?? "none")"
        case .pong(_, let via, let latency): "pong from \(via) after \(Self.milliseconds(latency)) ms"
        case .pingTimedOut: "no pong"
        case .peerRestarted: "the peer started anew"
        case .directBlocked(let isBlocked): "direct paths \(isBlocked ? "off" : "on")"
        case .linkChanged: "the network of this machine changed"
        }
    }

    private static func milliseconds(_ interval: Interval) -> String {
        let tenths = (interval.nanoseconds + 50_000) / 100_000
        return "\(tenths / 10).\(tenths % 10)"
    }
}
