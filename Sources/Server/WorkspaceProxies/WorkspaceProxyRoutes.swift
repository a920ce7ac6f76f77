// SPDX-License-Identifier: Apache-2.0

/// `workspaceproxies`, as administrators and users see it. `rest/08-secondary.md`.
struct WorkspaceProxyRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "workspaceproxies", .user) { call in
            let rows = try await services.store(for: call).workspaceProxies()
            var known: [JSON] = [services.primaryProxy]
            for row in rows { known.append(await services.proxies.known(row).json) }
            return .json(["regions": .array(known)])
        }
        routes.api(.post, "workspaceproxies", .user) { try await create($0) }
        routes.api(.get, "workspaceproxies/{workspaceproxy}", .user) { call in
            let store = try services.store(for: call)
            let name = call.parameter("workspaceproxy")
            if name == "primary" { return .json(services.primaryProxy) }
            return .json(await services.proxies.known(try await store.workspaceProxy(name)).json)
        }
        routes.api(.patch, "workspaceproxies/{workspaceproxy}", .user) { try await update($0) }
        routes.api(.delete, "workspaceproxies/{workspaceproxy}", .user) { call in
            let store = try services.store(for: call)
            let proxy = try await store.workspaceProxy(call.parameter("workspaceproxy"), .delete)
            try await store.deleteWorkspaceProxy(proxy, now: .now())
            await services.proxies.reload()
            return .message("Proxy has been deleted!")
        }
    }

    private func create(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let body = try call.json()
        let name = try Self.name(body)
        let (proxy, token) = try await store.createWorkspaceProxy(
            name: name, displayName: body["display_name"]?.text ?? "", icon: body["icon"]?.text ?? "",
            now: .now())
        await services.proxies.reload()
        return .json(
            ["proxy": await services.proxies.known(proxy).json, "proxy_token": JSON(token)], status: 201)
    }

    private func update(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let body = try call.json()
        let before = try await store.workspaceProxy(call.parameter("workspaceproxy"), .update)
        let (proxy, token) = try await store.updateWorkspaceProxy(
            before, name: try Self.name(body), displayName: body["display_name"]?.text ?? "",
            icon: body["icon"]?.text ?? "", regeneratesToken: body["regenerate_token"]?.flag ?? false,
            now: .now())
        await services.proxies.reload()
        return .json(["proxy": await services.proxies.known(proxy).json, "proxy_token": JSON(token)])
    }

    private static func name(_ body: JSON) throws(APIError) -> String {
        let name = body["name"]?.text ?? ""
        guard !name.isEmpty else { throw Names.refusal("name", tag: "required", value: "") }
        guard Names.isPlain(name) else { throw Names.refusal("name", tag: "workspace_name", value: name) }
        guard name.lowercased() != "primary" else {
            throw APIError.invalid("name", "The name \"primary\" is reserved.")
        }
        return name
    }
}

extension Services {
    /// The server itself, as the first of all regions: `codersdk.Region`.
    var primaryRegion: JSON {
        [
            "id": JSON(deploymentID), "name": "primary", "display_name": "Default",
            "icon_url": "/emojis/1f3e1.png", "healthy": true, "path_app_url": JSON(accessURL.text),
            "wildcard_hostname": "",
        ]
    }

    /// The same as `codersdk.WorkspaceProxy`.
    var primaryProxy: JSON {
        var result = primaryRegion
        result.add("derp_enabled", .bool(options.derpEnable))
        result.add("derp_only", false)
        result.add(
            "status",
            [
                "status": "ok", "report": ["errors": [], "warnings": []], "checked_at": JSON(Timestamp.now()),
            ])
        result.add("created_at", JSON(Timestamp.zero))
        result.add("updated_at", JSON(Timestamp.zero))
        result.add("deleted", false)
        result.add("version", JSON(options.version))
        return result
    }
}

/// What edge relays themselves call, with their token in `Coder-External-Proxy-Token`. `coordinator.md` §8.2.
struct ProxySideRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.post, "workspaceproxies/me/register", .anonymous) { try await enlist($0) }
        routes.api(.post, "workspaceproxies/me/deregister", .anonymous) { call in
            let proxy = try await proxy(call)
            guard let replica = Identifier(try call.json()["replica_id"]?.text ?? "") else {
                throw APIError.invalid("replica_id", "must be a UUID")
            }
            guard try await services.proxies.deregister(replica, of: proxy.id, now: .now()) else {
                throw APIError.notFound
            }
            return .noContent
        }
        // Signing keys of applications, and the way to their workspaces: there are no applications here.
        routes.api(.get, "workspaceproxies/me/crypto-keys", .anonymous) { call in
            _ = try await proxy(call)
            return .json(["crypto_keys": []])
        }
        for (method, door) in [(HTTPMethod.post, "issue-signed-app-token"), (.get, "coordinate")] {
            routes.api(method, "workspaceproxies/me/\(door)", .anonymous) { call in
                _ = try await proxy(call)
                throw APIError(400, "This server has no application proxies: run the proxy with derp-only.")
            }
        }
        // Only proxies that serve applications have something to report.
        routes.api(.post, "workspaceproxies/me/app-stats", .anonymous) { call in
            _ = try await proxy(call)
            return .noContent
        }
    }

    private func proxy(_ call: Call) async throws -> WorkspaceProxyRecord {
        guard let token = call.head.first("coder-external-proxy-token"), !token.isEmpty else {
            throw APIError(401, "Missing external proxy token")
        }
        guard let proxy = try await services.store.workspaceProxy(token: token) else {
            throw APIError(401, "Invalid external proxy token")
        }
        return proxy
    }

    private func enlist(_ call: Call) async throws -> Reply {
        let proxy = try await proxy(call)
        let now = Timestamp.now()
        let told = try Self.registration(call, now: now)
        let siblings = try await services.proxies.register(told.replica, of: proxy.id, now: now)
        let isNew =
            proxy.url != told.accessURL.text || proxy.isDERPEnabled != told.isDERPEnabled
            || proxy.isDERPOnly != told.isDERPOnly || proxy.version != told.version
        if isNew { try await services.store.registerProxy(proxy.id, told, now: now) }
        let registry = services.proxies
        let status = await registry.known(proxy).health.status
        if isNew || status != "ok" {
            // The relay answers the question about its health beside this answer.
            Task { await registry.check(proxy.id) }
        }
        let region = await registry.regionID(of: proxy)
        return .json(
            [
                "derp_mesh_key": JSON(try await Seed.value("derp_mesh_key", services.store.database)),
                "derp_region_id": JSON(region), "derp_map": services.mesh.maps.current.json,
                "derp_force_websockets": .bool(services.options.derpForceWebSockets),
                "sibling_replicas": .array(siblings.map { $0.json(region: region) }),
            ], status: 201)
    }

    private static func registration(_ call: Call, now: Timestamp) throws(APIError) -> ProxyRegistration {
        let body = try call.json()
        guard let url = AccessURL(body["access_url"]?.text ?? "") else {
            throw APIError.invalid("access_url", "must be an http or https URL")
        }
        guard let replica = Identifier(body["replica_id"]?.text ?? ""), replica != .zero else {
            throw APIError.invalid("replica_id", "must be a UUID")
        }
        let isDERPEnabled = body["derp_enabled"]?.flag ?? false
        let isDERPOnly = body["derp_only"]?.flag ?? false
        guard isDERPEnabled || !isDERPOnly else {
            throw APIError.invalid("derp_only", "needs derp_enabled")
        }
        func short(_ key: String) -> String { String((body[key]?.text ?? "").prefix(1_024)) }
        let address = short("replica_relay_address")
        return ProxyRegistration(
            accessURL: url, wildcardHostname: short("wildcard_hostname"), isDERPEnabled: isDERPEnabled,
            isDERPOnly: isDERPOnly, version: short("version"),
            replica: ProxyReplica(
                id: replica, hostname: short("hostname"),
                relayAddress: AccessURL(address) == nil ? "" : address,
                stunPort: body["derp_stun_port"]?.integer.flatMap { UInt16(exactly: $0) }.map(Int.init) ?? -1,
                error: short("replica_error"),
                createdAt: now, seenAt: now))
    }
}
