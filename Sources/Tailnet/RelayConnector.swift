// SPDX-License-Identifier: Apache-2.0

public import HTTPTransport
public import LinuxIO
public import Mesh
internal import Synchronization

/// Connects the mesh to relays by HTTP: `Upgrade: DERP`, or a WebSocket where a proxy in between refuses that or the
/// deployment says so. What was learned about a region is kept. derp.md §4, §5, §7.1.
public final class RelayConnector: RelayDialer {
    private let client: HTTPClient
    private let state: Mutex<State>

    private struct State {
        var forcesWebSockets: Bool
        var reasons: [Int: String] = [:]
    }

    /// Uses this client, and with it its proxies and extra headers.
    public init(client: HTTPClient, forcesWebSockets: Bool = false) {
        self.client = client
        state = Mutex(State(forcesWebSockets: forcesWebSockets))
    }

    /// WebSockets to all relays from the next connection on, as the deployment says.
    public func setForcesWebSockets(_ isForced: Bool) { state.withLock { $0.forcesWebSockets = isForced } }

    /// For all nodes of a region together, and for a node's TCP connection while there is another node. derp.md §7.1.
    private static let attemptLimit: Duration = .seconds(10)
    private static let nodeLimit: Duration = .milliseconds(1_500)

    public func connect(region: DERPMap.Region) async throws -> OwnedDescriptor {
        var failure: (any Error)?
        let deadline = ContinuousClock.now + Self.attemptLimit
        let nodes = region.nodes.filter { !$0.isSTUNOnly }
        for (index, node) in nodes.enumerated() {
            let isLast = index == nodes.count - 1
            do {
                return try await connect(node, of: region.id, within: isLast ? nil : Self.nodeLimit, deadline)
            } catch {
                failure = error
            }
            try Task.checkCancellation()
        }
        throw failure ?? RelayError.noRelay(region: region.id)
    }

    private func connect(
        _ node: DERPMap.Node, of region: Int, within limit: Duration?, _ deadline: ContinuousClock.Instant
    ) async throws(HTTPError) -> OwnedDescriptor {
        let (url, base) = Self.target(node, path: "/derp")
        var options = base
        options.connectTimeout = limit
        // Each node gets some time, however long the others took.
        var rest: Duration { max(Self.nodeLimit, deadline - ContinuousClock.now) }
        guard !usesWebSocket(region) else {
            return try await client.derpWebSocket(url, timeout: rest, options: options)
        }
        do throws(HTTPError) {
            return try await client.upgrade(url, protocol: "DERP", timeout: rest, options: options)
        } catch {
            // 4xx: something in between does not let the upgrade through. 200 or 5xx say nothing about that.
            guard error.kind == .upgradeRefused, let response = error.response, 400..<500 ~= response.status
            else {
                throw error
            }
            let text =
                "GET failed with status code \(response.status) "
                + "(a proxy could be disallowing the use of 'Upgrade: derp'): \(response.text.prefix(256))"
            state.withLock { $0.reasons[region] = text }
            return try await client.derpWebSocket(url, timeout: rest, options: options)
        }
    }

    public func measureLatency(region: DERPMap.Region) async throws -> RelayLatency {
        guard let node = region.nodes.first(where: { !$0.isSTUNOnly }) else {
            throw RelayError.noRelay(region: region.id)
        }
        let (url, options) = Self.target(node, path: "/derp/latency-check")
        // The first request opens the connection, which is kept; the second one is measured.
        _ = try await client.request("GET", url, bodyLimit: 4_096, timeout: .seconds(5), options: options)
        let start = Clock.monotonicNanoseconds()
        _ = try await client.request("GET", url, bodyLimit: 4_096, timeout: .seconds(5), options: options)
        let isV6 = node.hostName.contains(":") || (node.ipv4 == "none" && !node.ipv6.isEmpty)
        return RelayLatency(
            roundTrip: Interval(nanoseconds: Clock.monotonicNanoseconds() - start), isV4: !isV6)
    }

    public func forcedWebSocketReasons() -> [Int: String] { state.withLock { $0.reasons } }

    private func usesWebSocket(_ region: Int) -> Bool {
        state.withLock { $0.forcesWebSockets || $0.reasons[region] != nil }
    }

    private static func target(_ node: DERPMap.Node, path: String) -> (HTTPURL, ConnectOptions) {
        // The same without TLS. derp.md §7.1.
        let port = node.derpPort == 0 ? 443 : node.derpPort
        let url = HTTPURL(
            scheme: node.forcesHTTP ? .http : .https, host: node.hostName, port: port, path: path)
        var options = ConnectOptions()
        options.addresses = [node.ipv4, node.ipv6].filter { IPAddress($0) != nil }
        options.serverName = node.certName.isEmpty ? nil : node.certName
        options.acceptsAnyCertificate = node.isInsecureForTests
        return (url, options)
    }
}

/// Why a relay cannot be used at all.
public enum RelayError: Error, Hashable, Sendable {
    /// The region has STUN servers only.
    case noRelay(region: Int)
}
