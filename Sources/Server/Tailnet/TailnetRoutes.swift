// SPDX-License-Identifier: Apache-2.0

internal import Coordinator
internal import RPC

/// Doors of the mesh for clients: connection data, coordination, DERP map. `rpc-transport.md` §5.
struct TailnetRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "workspaceagents/connection", .user) { _ in .json(connection()) }
        routes.api(.get, "workspaceagents/{workspaceagent}/connection", .user) { call in
            _ = try await services.store(for: call).workspace(
                ofAgent: call.identifier("workspaceagent"), action: .ssh)
            return .json(connection())
        }
        routes.api(.get, "workspaceagents/{workspaceagent}/coordinate", .user) { try await coordinate($0) }
        routes.api(.get, "tailnet", .user) { try await tailnet($0) }
        routes.api(.get, "derp-map", .anonymous) { call in
            let maps = services.mesh.maps
            return try call.webSocket { socket in
                await socket.sendOnly(for: call) {
                    try await maps.stream { try await socket.send($0.json.encoded) }
                }
            }
        }
    }

    /// `workspacesdk.AgentConnectionInfo`
    private func connection() -> JSON {
        let options = services.options
        var result: JSON = [
            "derp_map": services.mesh.maps.current.json,
            "derp_force_websockets": .bool(options.derpForceWebSockets),
            "disable_direct_connections": .bool(options.blockDirect),
        ]
        result.addUnlessEmpty("hostname_suffix", options.hostnameSuffix)
        return result
    }

    /// A client of one agent.
    private func coordinate(_ call: Call) async throws -> Reply {
        try await checkDatabase()
        let agent = try call.identifier("workspaceagent")
        let store = try services.store(for: call)
        _ = try await store.workspace(ofAgent: agent, action: .ssh)
        try Self.checkVersion(call.query["version"], standard: "1.0")
        let peer = try resume(call)
        var handlers = RPCHandlers()
        TailnetService(
            services: services, peer: peer, role: .clientOfAgent(agent.raw), name: store.subject.username,
            resumingUser: store.subject.userID
        ).register(&handlers)
        return try serve(call, handlers) { [services] in
            _ = try await services.store(for: $0).workspace(ofAgent: agent, action: .ssh)
        }
    }

    /// A client of everything that its user may reach.
    private func tailnet(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        try Self.checkVersion(call.query["version"], standard: "2.0")
        let peer = try resume(call)
        var handlers = RPCHandlers()
        TailnetService(
            services: services, peer: peer, role: .clientOfUser, name: store.subject.username,
            resumingUser: store.subject.userID,
            authorize: { await Self.refusal(of: $0, store) }
        ).register(&handlers)
        let services = services
        handlers.serverStream(TailnetMethods.workspaceUpdates) { request, stream in
            guard let owner = RawUUID(request.workspaceOwnerID) else {
                let count = request.workspaceOwnerID.count
                throw RPCError.failed(
                    code: 0, message: "parse workspace owner ID: invalid UUID (got \(count) bytes)")
            }
            try await WorkspaceUpdates(services: services, store: store, owner: Identifier(owner)).run {
                try await stream.send($0)
            }
        }
        return try serve(call, handlers)
    }

    /// Why a user may not have a tunnel; nil when they may. A database that is away for a moment refuses nobody.
    private static func refusal(of target: RawUUID, _ store: GuardedStore) async -> String? {
        for _ in 0..<10 {
            do {
                _ = try await store.workspace(ofAgent: Identifier(target), action: .ssh)
                return nil
            } catch let error as DatabaseError where error.isDisconnected {
                do { try await Task.sleep(for: .seconds(1)) } catch { break }
            } catch {
                break
            }
        }
        return "workspace agent not found or you do not have permission"
    }

    /// `permission` throws an `APIError` when the key, as it is now, no longer allows what the session was opened for.
    private func serve(
        _ call: Call, _ handlers: RPCHandlers,
        permission: @escaping @Sendable (Call) async throws -> Void = { _ in }
    ) throws(APIError) -> Reply {
        let sessions = services.mesh.sessions
        return try call.webSocket { socket in
            await sessions.serve(socket, handlers: handlers) { _ in
                // Ends when the peer no longer answers or may no longer be here, or by cancellation.
                try? await socket.keepAlive(while: { await call.isStillAllowed(permission) })
            }
        }
    }

    private func checkDatabase() async throws {
        do {
            try await services.store.database.query("SELECT 1")
        } catch {
            throw APIError.databaseNotReachable
        }
    }

    /// The peer id of the client's token, or a new one.
    private func resume(_ call: Call) throws(APIError) -> Identifier {
        guard let token = call.query["resume_token"], !token.isEmpty else { return .random() }
        let user = try call.subject().userID
        do {
            return try services.mesh.resumeTokens.verify(
                token, user: user, now: .now()) ?? .random()
        } catch {
            throw APIError(
                401, "Invalid resume token", detail: "\(error)",
                validations: [.init(field: "resume_token", detail: "invalid resume token")])
        }
    }

    /// 400 with the text that clients compare.
    static func checkVersion(_ text: String?, standard: String) throws(APIError) {
        let version = text.flatMap { $0.isEmpty ? nil : $0 } ?? standard
        do {
            _ = try APIVersion.validate(version)
        } catch {
            throw APIError(
                400, "Unknown or unsupported API version",
                validations: [.init(field: "version", detail: error.detail)])
        }
    }
}
