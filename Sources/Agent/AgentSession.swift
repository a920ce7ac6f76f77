// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Logging
internal import RPC
internal import SwiftProtobuf
internal import Tailnet

/// One connection of the agent to the server: everything in parallel, the first failure ends all. agent.md §4.4.
struct AgentSession: Sendable {
    /// 2 min between looks at the banners.
    private static let bannerInterval = Duration.seconds(120)

    let runtime: AgentRuntime

    /// Runs until the connection fails or the task is cancelled. `onWork` is called when the server has taken the
    /// agent in, which is when pauses between attempts start over.
    func run(_ onWork: @escaping @Sendable () -> Void) async throws {
        let options = runtime.options
        let url = options.serverURL.appending(
            "/api/v2/workspaceagents/me/rpc", query: [("version", APIVersion.current.description)])
        let headers: HeaderFields = [
            "Cookie": "coder_session_token=\(options.token)", "Coder-Session-Token": options.token,
        ]
        try await RPCSession.with(runtime.client, url, headers: headers) { connection in
            runtime.logger.info("connected to the server", metadata: ["url": "\(options.serverURL)"])
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { try await followBanners(connection) }
                group.addTask { try await runtime.lifecycle.deliver(on: connection) }
                group.addTask { try await runtime.connections.deliver(on: connection) }
                group.addTask { try await runtime.logs.deliver(on: connection) }
                group.addTask { try await runtime.scripts.deliverTimings(on: connection) }
                group.addTask { try await takeManifest(connection, onWork) }
                defer { group.cancelAll() }
                try await group.next()
            }
        }
    }

    private func takeManifest(_ connection: RPCConnection, _ onWork: @Sendable () -> Void) async throws {
        let manifest = try await connection.unary(AgentMethods.getManifest)
        let tailnet = try await runtime.accept(manifest)
        var request = AgentUpdateStartupRequest()
        request.startup.version = runtime.options.version
        request.startup.expandedDirectory = await runtime.expandedDirectory(manifest.directory)
        request.startup.subsystems = runtime.options.subsystems.compactMap(Self.subsystem)
        _ = try await connection.unary(AgentMethods.updateStartup, request)
        await runtime.start()
        onWork()
        let stats = StatsReporter(
            node: tailnet.node, reports: runtime.connections, baseline: runtime.statsBaseline)
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask {
                try await tailnet.coordinate(on: connection)
                // After a goodbye the connection stays for the last reports.
                try await Task.sleep(for: .seconds(1 << 30))
            }
            group.addTask { try await tailnet.followDERPMaps(on: connection) }
            group.addTask { try await stats.run(on: connection) }
            if !manifest.metadata.isEmpty {
                group.addTask { try await reportMetadata(manifest.metadata, connection) }
            }
            if !AppHealthReporter.checked(manifest.apps).isEmpty {
                group.addTask { try await reportHealth(manifest.apps, connection) }
            }
            defer { group.cancelAll() }
            try await group.next()
        }
    }

    private func reportMetadata(
        _ descriptions: [AgentWorkspaceAgentMetadata.Description], _ connection: RPCConnection
    ) async throws {
        let runtime = runtime
        let reporter = MetadataReporter { script, seconds in
            await runtime.scripts.output(of: script, timeoutSeconds: seconds, runtime.currentEnvironment)
        }
        try await reporter.run(descriptions, on: connection)
    }

    private func reportHealth(_ apps: [AgentWorkspaceApp], _ connection: RPCConnection) async throws {
        // Its own client: apps do not get what is sent to the server.
        let client = HTTPClient()
        do {
            let reporter = AppHealthReporter { await AppHealthReporter.ask(client, $0, $1) }
            try await reporter.run(apps, on: connection)
        } catch {
            await client.shutDown()
            throw error
        }
    }

    private func followBanners(_ connection: RPCConnection) async throws {
        while true {
            do throws(RPCError) {
                let response = try await connection.unary(AgentMethods.getAnnouncementBanners)
                runtime.setBanners(response.announcementBanners)
            } catch {
                // An older server: no banners. Other failures are the connection's.
                guard case .failed = error else { throw error }
                runtime.logger.debug("no banners", metadata: ["error": "\(error)"])
            }
            try await Task.sleep(for: Self.bannerInterval)
        }
    }

    private static func subsystem(_ name: String) -> AgentStartup.Subsystem? {
        switch name.lowercased() {
        case "envbox": .envbox
        case "envbuilder": .envbuilder
        case "exectrace": .exectrace
        default: nil
        }
    }
}
