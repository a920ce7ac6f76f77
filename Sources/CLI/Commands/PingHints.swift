// SPDX-License-Identifier: Apache-2.0

package import Mesh

/// What `coder ping` says when the path is not direct: what is known already to stand in the way.
package enum PingHints {
    /// In words. Reasons that only time will tell, such as unanswered pings, are not among them.
    package static func lines(
        _ reason: PathReason?, isDisabledHere: Bool, narrow: [(name: String, mtu: Int)]
    ) -> [String] {
        var lines: [String] = []
        switch reason {
        case .policy where isDisabledHere:
            lines.append(
                "❗ Direct connections are disabled locally, by `--disable-direct-connections` or "
                    + "`CODER_DISABLE_DIRECT_CONNECTIONS`")
        case .policy: lines.append("❗ Your Coder administrator has blocked direct connections")
        case .stunMissing?, .udpBlocked?, .udpBlockedPeer?, .hardNATBoth?, .policyPeer?:
            if let reason { lines.append("❗ \(sentence(reason))") }
        default: break
        }
        return lines
            + narrow.map {
                "❗ Network interface \($0.name) has MTU \($0.mtu) (less than \(NetworkInterface.mtuFloor)),"
                    + " which may degrade the quality of direct connections"
            }
    }

    /// A reason with what can be done about it.
    static func sentence(_ reason: PathReason) -> String {
        "\(NetcheckWords.sentence(reason.words)) (\(reason.rawValue)). \(reason.advice)"
    }
}
