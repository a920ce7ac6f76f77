// SPDX-License-Identifier: Apache-2.0

public import HTTPTransport
public import LinuxIO
public import Mesh
internal import Synchronization

/// Connects the mesh to relays by HTTP: `Upgrade: DERP`, or a WebSocket where a proxy in between refuses that or the
/// deployment says so. What was learned about a region is kept for a while, as it may be a fault of the moment.
/// derp.md §4, §5, §7.1.
public final class RelayConnector: RelayDialer {
    private let client: HTTPClient
    private let state: Mutex<State>

    private struct State {
        var forcesWebSockets: Bool
        /// Why the last connection of a region took a WebSocket, and since when; 0: in another network.
        var reasons: [Int: (text: String, since: UInt64)] = [:]
    }

    /// Then the upgrade is tried again at the next connection. 30 minutes.
    private static let memory: UInt64 = 1_800_000_000_000
    /// Uses this client, and with it its proxies and extra headers.
    public init(client: HTTPClient, forcesWebSockets: Bool = false) {
        self.client = client
        state = Mutex(State(forcesWebSockets: forcesWebSockets))
    }

    /// WebSockets to all relays from the next connection on, as the deployment says.
    public func setForcesWebSockets(_ isForced: Bool) { state.withLock { $0.forcesWebSockets = isForced } }

    public func networkChanged() {
        state.withLock { state in for region in state.reasons.keys { state.reasons[region]?.since = 0 } }
    }

    /// The relays of a region in their order, and how long each may take: only the last one gets the whole time, as
    /// with the others there is somebody else to ask. 1.5 s is upstream's too.
    package static func attempts(
        _ region: DERPMap.Region, lastFor whole: Duration
    ) -> [(node: DERPMap.Node, patience: Duration)] {
        let nodes = region.nodes.filter { !$0.isSTUNOnly }
        return nodes.enumerated().map { place, node in
            (node, place + 1 < nodes.count ? min(.milliseconds(1_500), whole) : whole)
        }
    }

    public func connect(region: DERPMap.Region) async throws -> OwnedDescriptor {
        var failure: (any Error)?
        for (node, patience) in Self.attempts(region, lastFor: .seconds(10)) {
            do { return try await connect(node, of: region.id, patience) } catch { failure = error }
            try Task.checkCancellation()
        }
        throw failure ?? RelayError.noRelay(region: region.id)
    }

    private func connect(
        _ node: DERPMap.Node, of region: Int, _ timeout: Duration
    ) async throws(HTTPError) -> OwnedDescriptor {
        let (url, target) = Self.target(node, path: "/derp")
        var options = target
        options.connectTimeout = timeout
        guard !usesWebSocket(region) else {
            return try await client.derpWebSocket(url, timeout: timeout, options: options)
        }
        do throws(HTTPError) {
            let descriptor = try await client.upgrade(
                url, protocol: "DERP", timeout: timeout, options: options)
            state.withLock { $0.reasons[region] = nil }
            return descriptor
        } catch {
            // 4xx: something in between does not let the upgrade through. 200 or 5xx say nothing about that.
            guard error.kind == .upgradeRefused, let response = error.response, 400..<500 ~= response.status
            else {
                throw error
            }
            let text =
                "GET failed with status code \(response.status) "
                + "(a proxy could be disallowing the use of 'Upgrade: derp'): \(response.text.prefix(256))"
            // Where a WebSocket is refused as well, it was not about the upgrade.
            let descriptor = try await client.derpWebSocket(url, timeout: timeout, options: options)
            state.withLock { $0.reasons[region] = (text, Clock.monotonicNanoseconds()) }
            return descriptor
        }
    }

    public func measureLatency(region: DERPMap.Region) async throws -> RelayLatency {
        var failure: (any Error)?
        for (node, patience) in Self.attempts(region, lastFor: .seconds(5)) {
            do { return try await measureLatency(node, patience) } catch { failure = error }
            try Task.checkCancellation()
        }
        throw failure ?? RelayError.noRelay(region: region.id)
    }

    private func measureLatency(
        _ node: DERPMap.Node, _ timeout: Duration
    ) async throws(HTTPError) -> RelayLatency {
        let (url, options) = Self.target(node, path: "/derp/latency-check")
        // The first request opens the connection, which is kept; the second one is measured.
        _ = try await client.request("GET", url, bodyLimit: 4_096, timeout: timeout, options: options)
        let start = Clock.monotonicNanoseconds()
        let response = try await client.request(
            "GET", url, bodyLimit: 4_096, timeout: timeout, options: options)
        return RelayLatency(
            roundTrip: Interval(nanoseconds: Clock.monotonicNanoseconds() - start), isV4: !response.isOverV6)
    }

    public func forcedWebSocketReasons() -> [Int: String] {
        state.withLock { $0.reasons.mapValues(\.text) }
    }

    private func usesWebSocket(_ region: Int) -> Bool {
        let now = Clock.monotonicNanoseconds()
        return state.withLock { state in
            guard !state.forcesWebSockets, let since = state.reasons[region]?.since else {
                return state.forcesWebSockets
            }
            return since != 0 && now - since < Self.memory
        }
    }

    private static func target(_ node: DERPMap.Node, path: String) -> (HTTPURL, ConnectOptions) {
        // The same without TLS. derp.md §7.1.
        let port = node.derpPort == 0 ? 443 : node.derpPort
        let url = HTTPURL(
            scheme: node.forcesHTTP ? .http : .https, host: node.hostName, port: port, path: path)
        var options = ConnectOptions()
        // Of each family: nothing, an address, or a word that there is none. derp.md §7.1.
        options.addresses = [node.ipv4, node.ipv6].filter { IPAddress($0) != nil }
        options.usesV4 = node.ipv4.isEmpty || IPAddress(node.ipv4)?.isV4 == true
        options.usesV6 = node.ipv6.isEmpty || IPAddress(node.ipv6)?.isV4 == false
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
