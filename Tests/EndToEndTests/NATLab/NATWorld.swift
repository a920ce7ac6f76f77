// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport

/// A small internet in network namespaces: one switch, one host with the relay and STUN, and whatever homes the
/// rows of the lab attach to it. No traffic leaves the machine.
final class NATWorld: Sendable {
    let prefix = "nat\(getpid())"
    let folder: URL
    let hasNginx: Bool
    let hasPortMapper = FileManager.default.fileExists(atPath: "/usr/sbin/miniupnpd")
    private let servers: [Command]

    /// 5.5.5.1 and 2001:db8::1 are the relay (routers open no ports on addresses that are documented as examples);
    /// .2 is the second address of its STUN server, without which no node could tell that its mapping varies.
    static let relay = (v4: "5.5.5.1", second: "5.5.5.2", v6: "2001:db8::1", port: 3000)
    static let tls = 8443
    static let refusing = 8081

    var core: String { "\(prefix)-core" }

    static var isPossible: Bool { Lab.isPossible && FileManager.default.fileExists(atPath: "/usr/sbin/nft") }

    init() async throws {
        folder = FileManager.default.temporaryDirectory.appending(path: prefix)
        try FileManager.default.createDirectory(
            at: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
        await Self.removeStale()
        let core = "\(prefix)-core"
        try await Self.must(["ip", "netns", "add", core])
        try await Self.batch(
            core,
            [
                "link set lo up", "link add br0 type bridge", "link set br0 mtu 1500 up",
                "address add \(Self.relay.v4)/24 dev br0", "address add \(Self.relay.second)/24 dev br0",
                "-6 address add \(Self.relay.v6)/64 dev br0 nodad",
            ])
        try await Self.setForwarding(core)
        hasNginx = FileManager.default.fileExists(atPath: "/usr/sbin/nginx")
        var servers = [
            try Command(
                ["ip", "netns", "exec", core] + Self.relayCommand(),
                environment: ["HOME": folder.path])
        ]
        if hasNginx { servers.append(try await Self.nginx(core, folder)) }
        self.servers = servers
        let server = servers[0]
        let url = "http://\(Self.relay.v4):\(Self.relay.port)/derp/latency-check"
        let isUp = try await Command.eventually(within: 60) {
            try await Command.run([
                "ip", "netns", "exec", core, "python3", "-c",
                "import urllib.request as r; r.urlopen('\(url)', timeout=1)",
            ]).status == 0
        }
        guard isUp else {
            throw LabError(what: "the relay does not start", outcome: try await server.finish(timeout: 0))
        }
    }

    /// The relay under test.
    private static func relayCommand() -> [String] {
        [
            Deployment.binary, "relay", "--standalone", "--http-address", "[::]:\(relay.port)",
            "--stun-address",
            ":3478",
        ]
    }

    /// TLS in front of the relay, and a proxy that lets WebSockets through but not `Upgrade: DERP`.
    private static func nginx(_ core: String, _ folder: URL) async throws -> Command {
        let base = folder.path
        try await must([
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", "\(base)/key.pem", "-out", "\(base)/cert.pem", "-days", "2", "-subj", "/CN=relay.lab",
            "-addext", "subjectAltName=DNS:relay.lab", "-addext", "basicConstraints=critical,CA:TRUE",
        ])
        let proxying = """
            proxy_pass http://127.0.0.1:\(relay.port); proxy_http_version 1.1; proxy_buffering off;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_word;
            proxy_set_header Host $host; proxy_read_timeout 1h;
            """
        let configuration = """
            daemon off; worker_processes 1; pid \(base)/nginx.pid; error_log stderr warn;
            events { worker_connections 256; }
            http {
                access_log off;
                client_body_temp_path \(base)/nginx-body; proxy_temp_path \(base)/nginx-proxy;
                fastcgi_temp_path \(base)/nginx-f; uwsgi_temp_path \(base)/nginx-u; scgi_temp_path \(base)/nginx-s;
                map $http_upgrade $connection_word { default upgrade; '' close; }
                server {
                    listen \(tls) ssl;
                    ssl_certificate \(base)/cert.pem; ssl_certificate_key \(base)/key.pem;
                    location / { \(proxying) }
                }
                server {
                    listen \(refusing);
                    location / { if ($http_upgrade = "DERP") { return 426; } \(proxying) }
                }
            }
            """
        try Data(configuration.utf8).write(to: folder.appending(path: "nginx.conf"))
        return try Command(["ip", "netns", "exec", core, "nginx", "-p", base, "-c", "\(base)/nginx.conf"])
    }

    /// Ends everything. Called once.
    func demolish() async {
        for server in servers { server.signal(SIGTERM) }
        _ = try? await servers[0].finish(timeout: 10)
        await Lab.demolish(prefix: prefix)
        try? FileManager.default.removeItem(at: folder)
    }

    /// A test run that was killed leaves its namespaces behind.
    private static func removeStale() async {
        let list = (try? await Command.run(["ip", "netns", "list"]))?.text ?? ""
        let prefixes = Set(
            list.split(separator: "\n").compactMap { $0.split(separator: "-").first.map(String.init) })
        for name in prefixes where name.hasPrefix("nat") {
            guard let pid = Int32(name.dropFirst(3)), kill(pid, 0) != 0 else { continue }
            await Lab.demolish(prefix: name)
        }
    }

    // MARK: Tools

    static func must(_ arguments: [String], input: String? = nil) async throws {
        let outcome = try await Command.run(arguments, input: input.map { Data($0.utf8) })
        guard outcome.status == 0 else {
            throw LabError(what: arguments.joined(separator: " ") + (input ?? ""), outcome: outcome)
        }
    }

    /// Several `ip` commands in one namespace.
    static func batch(_ namespace: String, _ lines: [String]) async throws {
        // Words before the object select the family, which a batch takes per file.
        for (flag, chosen) in [
            ("-4", lines.filter { !$0.hasPrefix("-6 ") }), ("-6", lines.filter { $0.hasPrefix("-6 ") }),
        ]
        where !chosen.isEmpty {
            let text = chosen.map { $0.hasPrefix("-6 ") ? String($0.dropFirst(3)) : $0 }.joined(
                separator: "\n")
            try await must(["ip", flag, "-n", namespace, "-batch", "-"], input: text + "\n")
        }
    }

    static func rules(_ namespace: String, _ text: String) async throws {
        try await must(["ip", "netns", "exec", namespace, "nft", "-f", "-"], input: text)
    }

    static func setForwarding(_ namespace: String) async throws {
        try await must([
            "ip", "netns", "exec", namespace, "sh", "-c",
            """
            echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
            echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
            """,
        ])
    }
}
