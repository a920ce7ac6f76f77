// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// What a network report means, in sentences. Goes to standard error: standard output is JSON.
enum NetcheckWords {
    /// What is known of one relay region.
    struct Region {
        var name: String
        var milliseconds: Double?
        var works: Bool
        var error: String?
        var isWebSocket: Bool
    }

    /// What is known of the rest.
    struct Findings {
        var stun = STUNProbe.Outcome()
        var router = RouterProbe.Outcome()
        /// STUN servers in the map, and hosts that they are on.
        var servers = 0
        var hosts = 0
        var regions: [Region] = []
        var narrow: [(name: String, mtu: Int)] = []
    }

    static func lines(_ findings: Findings) -> [String] {
        udp(findings) + router(findings.router) + v6(findings) + relays(findings)
            + findings.narrow.map {
                "⚠ \($0.name) carries \($0.mtu) bytes only: direct connections over it will not be used "
                    + "(\(PathReason.mtu.rawValue)). \(PathReason.mtu.advice)"
            }
    }

    private static func udp(_ findings: Findings) -> [String] {
        let stun = findings.stun
        guard findings.servers > 0 else {
            let reason = PathReason.stunMissing
            return ["⚠ \(sentence(reason.words)) (\(reason.rawValue)). \(reason.advice)"]
        }
        guard stun.v4 != nil || stun.v6 != nil else {
            let reason = findings.hosts == 1 ? PathReason.stunSilent : .udpBlocked
            return ["✘ \(sentence(reason.words)) (\(reason.rawValue)). \(reason.advice)"]
        }
        var lines: [String] = []
        if let v4 = stun.v4 {
            lines.append("✔ UDP works; outside this machine is seen as \(v4)")
            switch stun.mappingVaries {
            case false?:
                lines.append("✔ the NAT uses one port for all destinations: direct connections are likely")
            case true?:
                lines.append(
                    "⚠ the NAT uses another port for each destination: direct connections work only with peers "
                        + "that are easy to reach. \(PathReason.hardNATBoth.advice)")
            case nil:
                lines.append(
                    "⚠ only one STUN server answered: whether the NAT is hard cannot be told with fewer than two"
                )
            }
            if let hairpin = stun.hairPinning {
                lines.append(
                    hairpin
                        ? "✔ machines behind this NAT reach each other by their outside addresses"
                        : "  machines behind this NAT do not reach each other by their outside addresses; "
                            + "on the same link they need not")
            }
        }
        return lines
    }

    private static func router(_ router: RouterProbe.Outcome) -> [String] {
        guard let upnp = router.upnp else { return [] }
        let names = [("PCP", router.pcp == true), ("NAT-PMP", router.pmp == true), ("UPnP", upnp)]
            .filter { $0.1 }.map { $0.0 }
        return [
            names.isEmpty
                ? "  the router opens no ports: it answers neither PCP, NAT-PMP nor UPnP"
                : "✔ the router opens ports when it is asked (\(names.joined(separator: ", ")))"
        ]
    }

    private static func v6(_ findings: Findings) -> [String] {
        if let v6 = findings.stun.v6 { return ["✔ IPv6 works; outside this machine is seen as \(v6)"] }
        return [findings.stun.canSendV6 ? "  IPv6 leaves this machine, nothing came back" : "  no IPv6 here"]
    }

    private static func relays(_ findings: Findings) -> [String] {
        guard !findings.regions.isEmpty else {
            return ["✘ \(sentence(PathReason.relayMissing.words)): the server names none"]
        }
        return findings.regions.map { region in
            let time = region.milliseconds.map { ", \(fixed($0, 1)) ms away" } ?? ""
            guard region.works else {
                return "✘ the relay \(region.name) does not work from here: \(region.error ?? "no answer"). "
                    + PathReason.relayMissing.advice
            }
            return region.isWebSocket
                ? "⚠ the relay \(region.name) works\(time), but by WebSocket only: a proxy refuses the upgrade"
                : "✔ the relay \(region.name) works\(time)"
        }
    }

    static func sentence(_ words: String) -> String {
        words.prefix(1).uppercased() + words.dropFirst()
    }
}
