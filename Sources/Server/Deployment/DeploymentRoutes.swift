// SPDX-License-Identifier: Apache-2.0

/// What clients ask about the deployment itself.
struct DeploymentRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let (services, options) = (services, services.options)
        routes.root(.get, "/healthz", .anonymous) { _ in .text("OK") }
        routes.root(.get, "/latency-check", .anonymous) { _ in
            var reply = Reply.text("OK")
            reply.fields = [("Access-Control-Allow-Origin", "*"), ("Timing-Allow-Origin", "*")]
            return reply
        }
        routes.root(.get, "/api/v2", .anonymous) { _ in .message("👋") }
        routes.api(.get, "buildinfo", .anonymous) { _ in .json(buildInfo()) }
        routes.api(.get, "updatecheck", .anonymous) { _ in
            .json(["current": true, "version": JSON(options.version), "url": JSON(options.externalURL)])
        }
        routes.api(.get, "entitlements", .anonymous) { _ in .json(entitlements()) }
        routes.api(.get, "appearance", .userOrAgent) { _ in
            .json([
                "application_name": "", "logo_url": "", "docs_url": JSON(options.docsURL),
                "service_banner": ["enabled": false], "announcement_banners": [], "support_links": [],
            ])
        }
        routes.api(.get, "deployment/ssh", .user) { _ in
            let settings = options.sshConfigOptions.map { JSON.Member(key: $0.name, value: JSON($0.value)) }
            return .json([
                "hostname_prefix": JSON(options.sshHostnamePrefix),
                "hostname_suffix": JSON(options.hostnameSuffix),
                "ssh_config_options": .object(settings),
            ])
        }
        routes.api(.get, "deployment/config", .user) { call in
            let store = try services.store(for: call)
            guard store.subject.may(.read, .init(type: "deployment_config")) else { throw APIError.forbidden }
            return .json(["config": config(), "options": []])
        }
        routes.api(.get, "experiments", .user) { _ in .json([]) }
        routes.api(.get, "experiments/available", .user) { _ in .json(["safe": []]) }
        routes.api(.get, "applications/host", .user) { _ in .json(["host": ""]) }
        routes.api(.get, "licenses", .user) { _ in .json([]) }
        routes.api(.get, "regions", .user) { call in
            _ = try services.store(for: call)
            let proxies = await services.proxies.all.filter { $0.health.status == "ok" && !$0.row.isDERPOnly }
            return .json(["regions": .array([services.primaryRegion] + proxies.map(\.regionJSON))])
        }
        routes.api(.post, "authcheck", .user) { try await authCheck($0) }
        routes.api(.post, "csp/reports", .anonymous) { _ in .message("ok") }
    }

    private func buildInfo() -> JSON {
        [
            "external_url": JSON(services.options.externalURL), "version": JSON(services.options.version),
            "dashboard_url": JSON(services.accessURL.text), "telemetry": false, "workspace_proxy": false,
            "agent_api_version": "1.0", "provisioner_api_version": "1.15", "upgrade_message": "",
            "deployment_id": JSON(services.deploymentID),
        ]
    }

    /// There are no licences: everything is entitled. What needs a setting that we do not have is not enabled.
    private static let features = [
        "user_limit", "audit_log", "connection_log", "browser_only", "scim", "template_rbac",
        "user_role_management",
        "high_availability", "multiple_external_auth", "external_provisioner_daemons", "appearance",
        "advanced_template_scheduling", "workspace_proxy", "external_token_encryption",
        "workspace_batch_actions",
        "task_batch_actions", "access_control", "control_shared_ports", "custom_roles",
        "multiple_organizations",
        "workspace_prebuilds", "managed_agent_limit", "workspace_external_agent", "aibridge", "boundary",
        "ai_governance_user_limit",
    ]
    private static let notEnabled: Set<String> = [
        "browser_only", "scim", "high_availability", "external_token_encryption", "aibridge",
        "boundary",
    ]

    private func entitlements() -> JSON {
        let features = Self.features.map { name in
            JSON.Member(
                key: name,
                value: ["entitlement": "entitled", "enabled": .bool(!Self.notEnabled.contains(name))])
        }
        return [
            "features": .object(features), "warnings": [], "errors": [], "has_license": true, "trial": false,
            "require_telemetry": false, "refreshed_at": JSON(Timestamp.now()),
        ]
    }

    /// The settings that are in force, in the shape of `codersdk.DeploymentValues`; secrets are left out.
    private func config() -> JSON {
        let options = services.options
        return [
            "access_url": JSON(services.accessURL.text), "http_address": JSON(options.httpAddress),
            "derp": [
                "server": [
                    "enable": .bool(options.derpEnable), "region_id": JSON(options.derpRegionID),
                    "region_code": JSON(options.derpRegionCode), "region_name": JSON(options.derpRegionName),
                    "stun_addresses": JSON(options.stunAddresses),
                ],
                "config": [
                    "block_direct": .bool(options.blockDirect),
                    "force_websockets": .bool(options.derpForceWebSockets), "url": "", "path": "",
                ],
            ],
            "tls": ["enable": .bool(options.tlsEnable), "address": JSON(options.tlsAddress)],
            "session_lifetime": [
                "default_duration": JSON(options.sessionSeconds * 1_000_000_000),
                "default_token_lifetime": JSON(options.tokenSeconds * 1_000_000_000),
                "max_token_lifetime": JSON(options.maximumTokenSeconds * 1_000_000_000),
            ],
            "rate_limit": [
                "api": JSON(options.apiRateLimit), "disable_all": .bool(options.disableRateLimits),
            ],
            "workspace_hostname_suffix": JSON(options.hostnameSuffix), "docs_url": JSON(options.docsURL),
        ]
    }

    private func authCheck(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let checks = try call.json()["checks"]?.members ?? []
        let named = checks.filter { !($0.value["object"]?["resource_id"]?.text ?? "").isEmpty }
        guard named.count <= 10 else {
            throw APIError(400, "Endpoint only supports using \"resource_id\" field up to 10 times.")
        }
        var result: [JSON.Member] = []
        for check in checks {
            guard let asked = check.value["object"] else { continue }
            let word = check.value["action"]?.text ?? ""
            let action = Subject.Action(rawValue: word) ?? .update
            var object = Subject.Object(type: asked["resource_type"]?.text ?? "")
            object.owner = asked["owner_id"]?.text.flatMap {
                $0 == "me" ? store.subject.userID : Identifier($0)
            }
            object.organization = asked["organization_id"]?.text.flatMap { Identifier($0) }
            var isKnown = true
            if let text = asked["resource_id"]?.text, !text.isEmpty {
                object.id = Identifier(text)
                isKnown = try await resolve(&object, store)
            }
            result.append(.init(key: check.key, value: .bool(isKnown && store.subject.may(action, object))))
        }
        return .json(.object(result))
    }

    /// Fills in who owns a named object. False when there is none of that name.
    private func resolve(_ object: inout Subject.Object, _ store: GuardedStore) async throws -> Bool {
        guard let id = object.id else { return false }
        let table = ["workspace": "workspaces", "template": "templates", "user": "users"][object.type]
        guard let table else { return false }
        guard
            let row = try await services.store.database.first(
                "SELECT * FROM \(table) WHERE id = $1", [SQLValue(id)])
        else { return false }
        if object.type == "workspace" { object.owner = row.identifier("owner_id") }
        if object.type != "user" { object.organization = row.identifier("organization_id") }
        return true
    }
}
