// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport

/// How the relay is reached.
enum NATRelay: String, Sendable {
    case plain
    case webSocket = "forced WebSocket"
    case refusing = "upgrade refused"
    case tls = "nginx with TLS"
    case loopback
}

/// `coder mesh` on a host of the lab.
final class NATNode: Sendable {
    let home: NATHome
    let address: String
    private let socket: String
    private let process: Command
    private let proxy: Command?
    private let portMapper: Command?

    init(_ home: NATHome, _ name: String, number: Int, relay: NATRelay, blocksDirect: Bool) async throws {
        self.home = home
        address = "fd7a:115c:a1e0::\(String(number + 1, radix: 16))"
        let folder = home.world.folder
        socket = folder.appending(path: "\(name).sock").path
        let file: [String: Any] = [
            "addresses": ["\(address)/128"], "derp_map": Self.map(relay, isV6: home.kind.translation == .v6),
            "block_direct": blocksDirect, "force_websockets": relay == .webSocket,
            "services": [["kind": "echo", "port": 7]],
        ]
        let config = folder.appending(path: "\(name).json")
        try JSONSerialization.data(withJSONObject: file).write(to: config)
        var environment: [String: String] = [:]
        if relay == .tls { environment["SSL_CERT_FILE"] = folder.appending(path: "cert.pem").path }
        portMapper = home.kind.opensPorts == nil ? nil : try await home.startPortMapper()
        if portMapper != nil { try await Task.sleep(for: .milliseconds(300)) }
        proxy = home.kind.onlyProxy ? try home.startProxy() : nil
        if proxy != nil { environment[relay == .tls ? "HTTPS_PROXY" : "HTTP_PROXY"] = home.proxyURL }
        process = try home.start(
            [Deployment.binary, "mesh", "-v", "--config", config.path, "--control", socket],
            environment: environment)
    }

    /// One region; STUN at two nodes, so that a varying mapping is noticed.
    private static func map(_ relay: NATRelay, isV6: Bool) -> [String: Any] {
        let host = relay == .loopback ? "127.0.0.1" : isV6 ? NATWorld.relay.v6 : NATWorld.relay.v4
        var node: [String: Any] = [
            "Name": "1a", "RegionID": 1, "HostName": host, "DERPPort": NATWorld.relay.port, "ForceHTTP": true,
            "STUNPort": 3478,
        ]
        if relay == .tls {
            node["ForceHTTP"] = false
            node["DERPPort"] = NATWorld.tls
            node["CertName"] = "relay.lab"
        }
        if relay == .refusing { node["DERPPort"] = NATWorld.refusing }
        var nodes = [node]
        if !isV6, relay != .loopback {
            nodes.append([
                "Name": "1stun1", "RegionID": 1, "HostName": NATWorld.relay.second, "STUNOnly": true,
                "STUNPort": 3478,
            ])
        }
        return [
            "Regions": ["1": ["RegionID": 1, "RegionCode": "lab", "RegionName": "Lab", "Nodes": nodes]]
        ]
    }

    var log: String {
        process.errorText + (portMapper.map { "--- miniupnpd:\n\($0.errorText.suffix(800))" } ?? "")
    }
    var isRunning: Bool { process.isRunning }

    /// The newest line that tells of the own node.
    var ownNode: String? {
        let text = process.text
        guard let end = text.lastIndex(of: "\n") else { return nil }
        return text[..<end].split(separator: "\n").last.map(String.init)
    }

    /// Asks the node; a failure is an error.
    func ask(_ words: String..., timeout: Double = 60) async throws -> [String: Any] {
        let outcome = try await Command.run(
            [Deployment.binary, "mesh", "--control", socket] + words, timeout: timeout)
        guard outcome.status == 0 else {
            throw LabError(
                what: words.joined(separator: " ").prefix(80) + "\n" + log.suffix(1_500), outcome: outcome)
        }
        return try JSONSerialization.jsonObject(with: outcome.output) as? [String: Any] ?? [:]
    }

    /// Asks the node; its answer as it stands.
    func text(_ words: [String]) async throws -> String {
        try await Command.run([Deployment.binary, "mesh", "--control", socket] + words, timeout: 10).text
    }

    /// Hands every change of this node to the other one, as a coordinator would, until cancelled.
    func follow(to other: NATNode) async throws {
        var told: String?
        while true {
            if let line = ownNode, line != told {
                told = line
                _ = try await other.ask("peers", "add", line)
            }
            try await Task.sleep(for: .milliseconds(20))
        }
    }

    func stop() {
        process.signal(SIGTERM)
        proxy?.signal(SIGKILL)
        portMapper?.signal(SIGTERM)
    }
}
