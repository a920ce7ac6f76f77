// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import RPC
internal import SwiftProtobuf

/// Service `coder.agent.v2.Agent` for one agent. `agent.md` §3. Sub-agents are not served: code 12.
struct AgentService {
    let services: Services
    let agent: AgentIdentity
    /// What the agent dialled with, such as `2.7`.
    let apiVersion: String

    func register(_ handlers: inout RPCHandlers) {
        let service = self
        handlers.unary(AgentMethods.getManifest) { _ in try await service.manifest() }
        handlers.unary(AgentMethods.getServiceBanner) { _ in AgentServiceBanner() }
        handlers.unary(AgentMethods.getAnnouncementBanners) { _ in AgentGetAnnouncementBannersResponse() }
        handlers.unary(AgentMethods.updateStartup) { try await service.startup($0.startup) }
        handlers.unary(AgentMethods.updateLifecycle) { try await service.lifecycle($0.lifecycle) }
        handlers.unary(AgentMethods.updateStats) { try await service.stats($0) }
        handlers.unary(AgentMethods.batchCreateLogs) { try await service.logs($0) }
        handlers.unary(AgentMethods.batchUpdateMetadata) { request in
            // External workspaces describe no metadata; values of unknown keys are dropped.
            guard request.metadata.map(\.key.utf8.count).reduce(0, +) <= 6144 else {
                throw RPCError.failed(code: 0, message: "metadata keys exceed 6144 bytes")
            }
            return AgentBatchUpdateMetadataResponse()
        }
        handlers.unary(AgentMethods.batchUpdateAppHealths) { request in
            guard request.updates.isEmpty else {
                throw RPCError.failed(code: 0, message: "workspace app not found")
            }
            return AgentBatchUpdateAppHealthResponse()
        }
        handlers.unary(AgentMethods.scriptCompleted) { request in
            guard request.hasTiming, request.timing.hasStart, request.timing.hasEnd,
                request.timing.start.seconds <= request.timing.end.seconds
            else { throw RPCError.failed(code: 0, message: "script timing is incomplete") }
            return AgentWorkspaceAgentScriptCompletedResponse()
        }
        handlers.unary(AgentMethods.getResourcesMonitoringConfiguration) { _ in
            var response = AgentGetResourcesMonitoringConfigurationResponse()
            response.config.numDatapoints = 20
            response.config.collectionIntervalSeconds = 10
            return response
        }
        handlers.unary(AgentMethods.pushResourcesMonitoringUsage) { _ in
            AgentPushResourcesMonitoringUsageResponse()
        }
        handlers.unary(AgentMethods.reportConnection) { try await service.connection($0.connection) }
        handlers.unary(AgentMethods.reportBoundaryLogs) { _ in AgentReportBoundaryLogsResponse() }
    }

    // MARK: Start

    private func manifest() async throws -> AgentManifest {
        let row = try await services.store.database.first(
            "SELECT directory, environment_variables, motd_file, parent_id FROM workspace_agents WHERE id = $1",
            [SQLValue(agent.agentID)])
        guard let row else { throw RPCError.failed(code: 0, message: "agent not found") }
        var manifest = AgentManifest()
        manifest.agentID = Data(agent.agentID.bytes)
        manifest.agentName = agent.agentName
        manifest.ownerUsername = agent.ownerName
        manifest.workspaceID = Data(agent.workspaceID.bytes)
        manifest.workspaceName = agent.workspaceName
        manifest.directory = row.text("directory")
        manifest.motdPath = row.text("motd_file")
        for member in row.json("environment_variables").members ?? [] {
            manifest.environmentVariables[member.key] = member.value.text ?? ""
        }
        manifest.disableDirectConnections = services.options.blockDirect
        manifest.derpForceWebsockets = services.options.derpForceWebSockets
        manifest.derpMap = services.mesh.maps.current.message
        if let parent = row.optionalIdentifier("parent_id") { manifest.parentID = Data(parent.bytes) }
        return manifest
    }

    private func startup(_ startup: AgentStartup) async throws -> AgentStartup {
        guard Self.isVersion(startup.version) else {
            throw RPCError.failed(code: 0, message: "invalid agent semver version \"\(startup.version)\"")
        }
        var names: Set<String> = []
        for subsystem in startup.subsystems {
            switch subsystem {
            case .envbox: names.insert("envbox")
            case .envbuilder: names.insert("envbuilder")
            case .exectrace: names.insert("exectrace")
            default: throw RPCError.failed(code: 0, message: "invalid agent subsystem")
            }
        }
        try await services.store.database.query(
            """
            UPDATE workspace_agents SET version = $2, expanded_directory = $3, subsystems = $4, api_version = $5,
                updated_at = $6 WHERE id = $1
            """,
            [
                SQLValue(agent.agentID), SQLValue(String(startup.version.prefix(128))),
                SQLValue(String(startup.expandedDirectory.prefix(4096))), SQLValue(names.sorted()),
                SQLValue(apiVersion), SQLValue(Timestamp.now()),
            ])
        services.events.publish(.workspace(agent.workspaceID))
        return startup
    }

    /// `v` and three numbers, then anything.
    static func isVersion(_ text: String) -> Bool {
        guard text.hasPrefix("v") else { return false }
        let core = text.dropFirst().prefix { $0 != "-" && $0 != "+" }
        let parts = core.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 3
            && parts.allSatisfy { !$0.isEmpty && $0.utf8.allSatisfy { (48...57).contains($0) } }
    }

    private static let states: [AgentLifecycle.State: String] = [
        .created: "created", .starting: "starting", .startTimeout: "start_timeout",
        .startError: "start_error",
        .ready: "ready", .shuttingDown: "shutting_down", .shutdownTimeout: "shutdown_timeout",
        .shutdownError: "shutdown_error", .off: "off",
    ]

    private func lifecycle(_ lifecycle: AgentLifecycle) async throws -> AgentLifecycle {
        guard let state = Self.states[lifecycle.state] else {
            throw RPCError.failed(code: 0, message: "unknown lifecycle state: \(lifecycle.state.rawValue)")
        }
        let changed = Timestamp(lifecycle.changedAt) ?? .now()
        let isStarted = ["ready", "start_timeout", "start_error"].contains(state)
        try await services.store.database.query(
            """
            UPDATE workspace_agents SET lifecycle_state = $2, updated_at = now(),
                started_at = CASE WHEN $4 THEN $3 WHEN $5 THEN coalesce(started_at, $3) ELSE started_at END,
                ready_at = CASE WHEN $4 THEN NULL WHEN $5 THEN $3 ELSE ready_at END
            WHERE id = $1
            """,
            [
                SQLValue(agent.agentID), SQLValue(state), SQLValue(changed), SQLValue(state == "starting"),
                SQLValue(isStarted),
            ])
        services.events.publish(.workspace(agent.workspaceID))
        var answer = lifecycle
        answer.changedAt = Google_Protobuf_Timestamp(changed)
        return answer
    }

    // MARK: Reports

    private func stats(_ request: AgentUpdateStatsRequest) async throws -> AgentUpdateStatsResponse {
        var response = AgentUpdateStatsResponse()
        response.reportInterval = Google_Protobuf_Duration(seconds: services.options.agentStatsSeconds)
        if request.hasStats, request.stats.connectionCount > 0 {
            try await services.store.database.query(
                """
                UPDATE workspaces SET last_used_at = $2
                WHERE id = $1 AND last_used_at < $2::timestamptz - interval '1 min'
                """,
                [SQLValue(agent.workspaceID), SQLValue(Timestamp.now())])
        }
        return response
    }

    private func logs(_ request: AgentBatchCreateLogsRequest) async throws -> AgentBatchCreateLogsResponse {
        let source = Identifier(bytes: request.logSourceID)?.unlessZero
        let lines = request.logs.map { log in
            AgentLogLine(output: log.output, level: Self.levels[log.level] ?? "info")
        }
        var response = AgentBatchCreateLogsResponse()
        response.logLimitExceeded = try await !services.store.appendAgentLogs(
            agent.agentID, source: source, lines: lines, now: .now())
        services.events.publish(.agentLogs(agent.agentID))
        return response
    }

    private static let levels: [AgentLog.Level: String] = [
        .trace: "trace", .debug: "debug", .info: "info", .warn: "warn", .error: "error",
    ]

    private func connection(_ report: AgentConnection) async throws -> Google_Protobuf_Empty {
        guard let id = Identifier(bytes: report.id)?.unlessZero else {
            throw RPCError.failed(code: 0, message: "connection ID is required")
        }
        let kinds: [AgentConnection.TypeEnum: String] = [
            .ssh: "ssh", .vscode: "vscode", .jetbrains: "jetbrains", .reconnectingPty: "reconnecting_pty",
        ]
        guard let kind = kinds[report.type], [.connect, .disconnect].contains(report.action) else {
            throw RPCError.failed(code: 0, message: "unknown connection type or action")
        }
        let isEnd = report.action == .disconnect
        let time = Timestamp(report.timestamp) ?? .now()
        let address = report.ip == "localhost" ? "127.0.0.1" : report.ip
        try await services.store.database.query(
            """
            INSERT INTO connection_logs (id, connect_time, organization_id, workspace_owner_id, workspace_id,
                workspace_name, agent_name, type, ip, code, connection_id, disconnect_time, disconnect_reason)
            VALUES (gen_random_uuid(), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            ON CONFLICT (connection_id, workspace_id, agent_name) DO UPDATE SET
                disconnect_time = coalesce(connection_logs.disconnect_time, excluded.disconnect_time),
                disconnect_reason = coalesce(connection_logs.disconnect_reason, excluded.disconnect_reason),
                code = coalesce(connection_logs.code, excluded.code)
            """,
            [
                SQLValue(time), SQLValue(agent.organizationID), SQLValue(agent.ownerID),
                SQLValue(agent.workspaceID),
                SQLValue(agent.workspaceName), SQLValue(agent.agentName), SQLValue(kind),
                SQLValue(PeerAddress.isLiteral(address) ? address : nil as String?),
                isEnd ? SQLValue(report.statusCode) : .null, SQLValue(id), isEnd ? SQLValue(time) : .null,
                isEnd ? SQLValue(String(report.reason.prefix(1024))) : .null,
            ])
        return Google_Protobuf_Empty()
    }
}
