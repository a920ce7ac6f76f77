// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// Which way packets take, and what is said of it.
extension EndToEndTests {
    @Test func aDirectPathIsFoundAndLostWithoutABrokenStream() async throws {
        let direct = try await Command.eventually(within: 20) {
            try await self.lab.coder(["ping", "dev", "-n", "3"]).text.contains("p2p")
        }
        #expect(direct)
        let stream = try lab.start([
            "ssh", "dev", "--", "for i in $(seq 1 48); do head -c 1000000 /dev/zero; sleep 0.25; done",
        ])
        try await Task.sleep(for: .seconds(3))
        try await lab.lab.setUDPBlocked(true, between: "agent", and: "client")
        let before = stream.output.count
        let resumed = try await Command.eventually(within: 5) { stream.output.count > before + 1_000_000 }
        #expect(resumed, "nothing more than \(before) bytes within 5 s of the path's death")
        let outcome = try await stream.finish(timeout: 60)
        #expect(
            outcome.status == 0 && outcome.output.count == 48_000_000,
            "\(outcome.status) \(outcome.output.count) \(outcome.errorText)")
    }

    @Test func theRelayAloneIsEnough() async throws {
        try await lab.lab.setUDPBlocked(true, between: "agent", and: "client")
        let ping = try await lab.coder(["ping", "dev", "-n", "2"])
        #expect(
            ping.text.lowercased().contains("derp") || ping.text.contains("Coder Embedded Relay"), "\(ping)")
        let outcome = try await lab.coder(["ssh", "dev", "--", "head", "-c", "20000000", "/dev/zero"])
        #expect(outcome.status == 0 && outcome.output.count == 20_000_000, "\(outcome.errorText)")
        try await lab.lab.setUDPBlocked(false, between: "agent", and: "client")
    }

    private func explanation(_ options: [String] = []) async throws -> (status: Int32, json: [String: Any]) {
        let outcome = try await lab.coder(["ping", "dev", "--explain", "-o", "json"] + options)
        let json = try JSONSerialization.jsonObject(with: outcome.output) as? [String: Any]
        return (outcome.status, try #require(json, "\(outcome)"))
    }

    @Test func aPathIsExplained() async throws {
        try await lab.lab.setUDPBlocked(false, between: "agent", and: "client")
        let isDirect = try await Command.eventually(within: 40) {
            try await self.lab.coder(["ping", "dev", "--explain"]).status == 0
        }
        #expect(isDirect)
        let text = try await lab.coder(["ping", "dev", "--explain"])
        #expect(text.text.hasPrefix("dev: direct, p2p via ") && text.text.contains("in use"), "\(text)")
        let direct = try await explanation()
        #expect(direct.status == 0 && direct.json["outcome"] as? String == "direct", "\(direct)")
        #expect((direct.json["candidates"] as? [Any])?.isEmpty == false)

        let policy = try await explanation(["--disable-direct-connections"])
        #expect(policy.status == 3 && policy.json["outcome"] as? String == "relayed", "\(policy)")
        #expect(policy.json["reason"] as? String == "policy")
        #expect(policy.json["advice"] is String)

        try await lab.lab.setUDPBlocked(true, between: "agent", and: "client")
        let blocked = try await explanation()
        try await lab.lab.setUDPBlocked(false, between: "agent", and: "client")
        #expect(blocked.status == 3 && blocked.json["outcome"] as? String == "relayed", "\(blocked)")
        let peer = blocked.json["peer_network"] as? [String: Any]
        #expect(peer?["udp"] as? Bool == true && peer?["direct_blocked"] as? Bool == false, "\(blocked)")

        // An agent that hangs is still connected, as far as the server knows.
        let agent = try await lab.agent()
        agent.signal(SIGSTOP)
        let silent = try await explanation()
        agent.signal(SIGCONT)
        #expect(silent.status == 1 && silent.json["outcome"] as? String == "unreachable", "\(silent)")
        #expect(silent.json["reason"] is String)
        #expect(
            try await Command.eventually(within: 40) {
                try await self.lab.coder(["ssh", "dev", "--", "true"], timeout: 20).status == 0
            })
    }

    @Test func aNetworkReportNamesWhatWorks() async throws {
        let outcome = try await lab.coder(["netcheck"])
        let json = try #require(try JSONSerialization.jsonObject(with: outcome.output) as? [String: Any])
        let derp = try #require(json["derp"] as? [String: Any], "\(outcome)")
        let netcheck = try #require(derp["netcheck"] as? [String: Any], "\(outcome)")
        #expect(netcheck["UDP"] as? Bool == true && netcheck["PreferredDERP"] as? Int == 999, "\(outcome)")
        // Two ports of one server: enough to see that there is no NAT here that maps by destination.
        #expect(netcheck["MappingVariesByDestIP"] as? Bool == false, "\(outcome)")
        #expect(
            outcome.errorText.contains("UDP works") && outcome.errorText.contains("the relay"), "\(outcome)")
    }

    /// Whether the recordings in the file play again to the same decisions.
    private func replays(_ file: URL) async throws -> Command.Outcome {
        let tool = URL(filePath: Deployment.binary).deletingLastPathComponent().appending(
            path: "coder-netsim")
        return try await Command.run([tool.path, "replay", file.path])
    }

    @Test func recordsOfAConnectionPlayAgain() async throws {
        let file = lab.folder.appending(path: "record.json")
        let record = try await lab.coder(["netcheck", "--record", "dev"])
        #expect(record.status == 0, "\(record)")
        try record.output.write(to: file)
        let replay = try await replays(file)
        #expect(replay.status == 0 && replay.text.contains("CHOSEN"), "\(replay)")
        let json = try JSONSerialization.jsonObject(with: record.output) as? [String: Any]
        let sides = (json?["recordings"] as? [[String: Any]])?.compactMap { $0["side"] as? String }
        #expect(Set(sides ?? []) == ["client", "agent"], "\(record.errorText)")

        // The trouble of a running connection is told by its own process.
        let session = try lab.start(["ssh", "dev", "--", "echo up; sleep 60"])
        #expect(try await Command.eventually(within: 20) { session.text.contains("up") })
        session.signal(SIGUSR1)
        let running = lab.folder.appending(path: "user/path-recordings/\(session.pid).json")
        #expect(
            try await Command.eventually(within: 20) {
                FileManager.default.fileExists(atPath: running.path)
            }, "\(session.errorText)")
        #expect(session.isRunning)
        let second = try await replays(running)
        #expect(second.status == 0, "\(second)")
        session.signal(SIGTERM)
        try await session.finish(timeout: 20)
    }

    @Test func theSpeedTestCanBeCaptured() async throws {
        let file = lab.folder.appending(path: "speed.pcap")
        defer { try? FileManager.default.removeItem(at: file) }
        let outcome = try await lab.coder(["speedtest", "dev", "-t", "1s", "--pcap-file", file.path])
        #expect(
            outcome.status == 0 && outcome.errorText.contains("packets are in \(file.path)"), "\(outcome)")
        let bytes = try Data(contentsOf: file)
        #expect(bytes.prefix(4).elementsEqual([0xd4, 0xc3, 0xb2, 0xa1]) && bytes.count > 1_000_000)
        #expect(bytes.count > 40 && bytes[40] >> 4 == 6, "an IP packet, without anything in front")
    }
}
