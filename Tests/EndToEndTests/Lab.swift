// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport

/// Hosts in network namespaces of their own, joined by one switch. No traffic leaves the machine.
struct Lab: Sendable {
    /// A host of the lab.
    struct Host: Sendable {
        let name: String
        let address: String

        /// The words that run a command on this host.
        func on(_ arguments: [String]) -> [String] { ["ip", "netns", "exec", name] + arguments }
    }

    let prefix: String
    let hosts: [String: Host]

    /// Network namespaces need root.
    static var isPossible: Bool {
        getuid() == 0 && ["/usr/sbin/ip", "/sbin/ip"].contains { FileManager.default.fileExists(atPath: $0) }
    }

    /// Builds a switch and one host for each name: 10.`network`.0.2 and up.
    init(_ names: [String], network: Int) async throws {
        prefix = "cdr\(network)"
        await Lab.demolish(prefix: prefix)
        try await Self.must(["ip", "netns", "add", "\(prefix)-switch"])
        try await Self.must(["ip", "-n", "\(prefix)-switch", "link", "add", "br0", "type", "bridge"])
        try await Self.must(["ip", "-n", "\(prefix)-switch", "link", "set", "br0", "up"])
        var hosts: [String: Host] = [:]
        for (index, name) in names.enumerated() {
            let host = Host(name: "\(prefix)-\(name)", address: "10.\(network).0.\(index + 2)")
            hosts[name] = host
            try await Self.must(["ip", "netns", "add", host.name])
            try await Self.must([
                "ip", "link", "add", "eth0", "netns", host.name, "type", "veth", "peer", "name", "p\(index)",
                "netns",
                "\(prefix)-switch",
            ])
            try await Self.must([
                "ip", "-n", "\(prefix)-switch", "link", "set", "p\(index)", "master", "br0", "up",
            ])
            try await Self.must([
                "ip", "-n", host.name, "address", "add", "\(host.address)/24", "dev", "eth0",
            ])
            try await Self.must(["ip", "-n", host.name, "link", "set", "eth0", "up"])
            try await Self.must(["ip", "-n", host.name, "link", "set", "lo", "up"])
        }
        self.hosts = hosts
    }

    subscript(_ name: String) -> Host { hosts[name]! }

    /// Drops (or lets through again) all UDP between two hosts, so that only the relay is left.
    func setUDPBlocked(_ blocked: Bool, between a: String, and b: String) async throws {
        for (here, there) in [(self[a], self[b]), (self[b], self[a])] {
            _ = try await Command.run(here.on(["nft", "delete", "table", "inet", "blocked"]))
            guard blocked else { continue }
            let rules = """
                table inet blocked {
                    chain i { type filter hook input priority 0; ip saddr \(there.address) meta l4proto udp drop; }
                    chain o { type filter hook output priority 0; ip daddr \(there.address) meta l4proto udp drop; }
                }
                """
            let outcome = try await Command.run(here.on(["nft", "-f", "-"]), input: Data(rules.utf8))
            guard outcome.status == 0 else { throw LabError(what: "nft", outcome: outcome) }
        }
    }

    /// Loses this share of the UDP between two hosts, in each direction; 0: none. Lost on arrival: a sender notices
    /// nothing.
    func setUDPLoss(percent: Int, between a: String, and b: String) async throws {
        for (here, there) in [(self[a], self[b]), (self[b], self[a])] {
            _ = try await Command.run(here.on(["nft", "delete", "table", "inet", "loss"]))
            guard percent > 0 else { continue }
            let rules = """
                table inet loss {
                    chain i {
                        type filter hook input priority 0
                        ip saddr \(there.address) meta l4proto udp numgen random mod 100 < \(percent) drop
                    }
                }
                """
            let outcome = try await Command.run(here.on(["nft", "-f", "-"]), input: Data(rules.utf8))
            guard outcome.status == 0 else { throw LabError(what: "nft", outcome: outcome) }
        }
    }

    /// Drops (or lets through again) every packet from and to a host.
    func setIsolated(_ isolated: Bool, host: String) async throws {
        _ = try await Command.run(self[host].on(["nft", "delete", "table", "inet", "isolated"]))
        guard isolated else { return }
        let rules = """
            table inet isolated {
                chain i { type filter hook input priority 0; policy accept; iifname eth0 drop; }
                chain o { type filter hook output priority 0; policy accept; oifname eth0 drop; }
            }
            """
        let outcome = try await Command.run(self[host].on(["nft", "-f", "-"]), input: Data(rules.utf8))
        guard outcome.status == 0 else { throw LabError(what: "nft", outcome: outcome) }
    }

    /// Removes the namespaces of a lab, and whatever still runs in them.
    static func demolish(prefix: String) async {
        let list = (try? await Command.run(["ip", "netns", "list"]))?.text ?? ""
        for line in list.split(separator: "\n") {
            guard let name = line.split(separator: " ").first, name.hasPrefix("\(prefix)-") else { continue }
            let pids = (try? await Command.run(["ip", "netns", "pids", String(name)]))?.text ?? ""
            for pid in pids.split(separator: "\n").compactMap({ Int32($0) }) { kill(pid, SIGKILL) }
            _ = try? await Command.run(["ip", "netns", "delete", String(name)])
        }
    }

    private static func must(_ arguments: [String]) async throws {
        let outcome = try await Command.run(arguments)
        guard outcome.status == 0 else {
            throw LabError(what: arguments.joined(separator: " "), outcome: outcome)
        }
    }
}

/// A step of the set-up that failed.
struct LabError: Error, CustomStringConvertible {
    let what: String
    let outcome: Command.Outcome
    var description: String { "\(what): \(outcome)" }
}
