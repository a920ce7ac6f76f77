// SPDX-License-Identifier: Apache-2.0

internal import CLI
internal import Server

/// `coder server`: its option table, and the way from values to the server's options.
/// Names and defaults: `server-config.md` §3.
enum ServerCommand {
    static let hook = ServerHook(options: options, run: run)

    private static let networking = "Networking"
    private static let relay = "Networking / DERP"
    private static let prometheus = "Introspection / Prometheus"
    private static let tls = "Networking / TLS"

    private static let options: [CommandOption] = [
        CommandOption(
            "http-address", env: "CODER_HTTP_ADDRESS", default: "127.0.0.1:3000", group: networking,
            help: "Address of the plain HTTP listener; empty for none."),
        CommandOption(
            "access-url", env: "CODER_ACCESS_URL", .url, group: networking,
            help: "URL under which users and workspaces reach the server. Default: made from the listener."),
        CommandOption(
            "secure-auth-cookie", env: "CODER_SECURE_AUTH_COOKIE", .bool, group: networking,
            help: "Set the Secure attribute on cookies."),
        CommandOption(
            "proxy-trusted-headers", env: "CODER_PROXY_TRUSTED_HEADERS", .stringArray, group: networking,
            help: "Fields in which reverse proxies name their client, such as X-Forwarded-For."),
        CommandOption(
            "proxy-trusted-origins", env: "CODER_PROXY_TRUSTED_ORIGINS", .stringArray, group: networking,
            help: "Ranges of the addresses of those proxies, such as 10.0.0.0/8."),
        CommandOption("tls-enable", env: "CODER_TLS_ENABLE", .bool, group: tls, help: "Serve HTTPS too."),
        CommandOption(
            "tls-address", env: "CODER_TLS_ADDRESS", default: "127.0.0.1:3443", group: tls,
            help: "Address of the HTTPS listener."),
        CommandOption(
            "tls-cert-file", env: "CODER_TLS_CERT_FILE", .stringArray, group: tls,
            help: "PEM files of certificate chains, leaf first."),
        CommandOption(
            "tls-key-file", env: "CODER_TLS_KEY_FILE", .stringArray, group: tls,
            help: "PEM files of their keys."),
        CommandOption(
            "derp-server-enable", env: "CODER_DERP_SERVER_ENABLE", .bool, default: "true", group: relay,
            help: "Run the relay inside the server."),
        CommandOption(
            "derp-server-region-id", env: "CODER_DERP_SERVER_REGION_ID", .int, default: "999", group: relay,
            help: "Region number of the relay."),
        CommandOption(
            "derp-server-region-code", env: "CODER_DERP_SERVER_REGION_CODE", default: "coder", group: relay,
            help: "Region code of the relay."),
        CommandOption(
            "derp-server-region-name", env: "CODER_DERP_SERVER_REGION_NAME", default: "Coder Embedded Relay",
            group: relay, help: "Region name of the relay."),
        CommandOption(
            "derp-server-stun-addresses", env: "CODER_DERP_SERVER_STUN_ADDRESSES", .stringArray, group: relay,
            help: "Other STUN servers, host:port; the word disable turns all of them off."),
        CommandOption(
            "stun-address", env: "CODER_STUN_ADDRESS", default: ":3478", group: relay,
            help: "Address of the server's own STUN responder; empty for none."),
        CommandOption(
            "derp-config-url", env: "CODER_DERP_CONFIG_URL", .url, group: relay,
            help: "URL of a DERP map in JSON, whose relays are used as well. Read when the server starts."),
        CommandOption(
            "derp-config-path", env: "CODER_DERP_CONFIG_PATH", group: relay,
            help: "File with such a map."),
        CommandOption(
            "derp-force-websockets", env: "CODER_DERP_FORCE_WEBSOCKETS", .bool, group: relay,
            help: "Reach relays by WebSocket only."),
        CommandOption(
            "block-direct-connections", env: "CODER_BLOCK_DIRECT", .bool, group: relay,
            help: "Only relayed connections to workspaces."),
        CommandOption(
            "prometheus-enable", env: "CODER_PROMETHEUS_ENABLE", .bool, group: prometheus,
            help: "Serve metrics on a listener of their own."),
        CommandOption(
            "prometheus-address", env: "CODER_PROMETHEUS_ADDRESS", default: "127.0.0.1:2112",
            group: prometheus, help: "Address of that listener."),
        CommandOption(
            "postgres-url", env: "CODER_PG_CONNECTION_URL",
            help: "URL of a PostgreSQL database. Default: a private one in the configuration directory."),
        CommandOption(
            "postgres-conn-max-open", env: "CODER_PG_CONN_MAX_OPEN", .int, default: "10",
            help: "Connections to the database."),
        CommandOption(
            "session-duration", env: "CODER_SESSION_DURATION", .duration, default: "24h0m0s",
            help: "How long a browser's session lives without use."),
        CommandOption(
            "default-token-lifetime", env: "CODER_DEFAULT_TOKEN_LIFETIME", .duration, default: "168h0m0s",
            help: "How long a token lives when nothing else is asked for."),
        CommandOption(
            "max-token-lifetime", env: "CODER_MAX_TOKEN_LIFETIME", .duration, default: "876000h0m0s",
            help: "How long a token may live."),
        CommandOption(
            "max-admin-token-lifetime", env: "CODER_MAX_ADMIN_TOKEN_LIFETIME", .duration, default: "168h0m0s",
            help: "How long an administrator's token may live."),
        CommandOption(
            "disable-session-expiry-refresh", env: "CODER_DISABLE_SESSION_EXPIRY_REFRESH", .bool,
            help: "Sessions are not prolonged by use."),
        CommandOption(
            "api-rate-limit", env: "CODER_API_RATE_LIMIT", .int, default: "512", hidden: true,
            help: "Requests per minute; negative for no limit."),
        CommandOption(
            "dangerous-disable-rate-limits", env: "CODER_DANGEROUS_DISABLE_RATE_LIMITS", .bool, hidden: true,
            help: "No rate limits at all."),
        CommandOption(
            "ssh-hostname-prefix", env: "CODER_SSH_HOSTNAME_PREFIX", default: "coder.", group: "Client",
            help: "Prefix of host names in the SSH configuration."),
        CommandOption(
            "workspace-hostname-suffix", env: "CODER_WORKSPACE_HOSTNAME_SUFFIX", default: "coder",
            group: "Client",
            help: "Suffix of host names in the SSH configuration."),
        CommandOption(
            "ssh-config-options", env: "CODER_SSH_CONFIG_OPTIONS", .stringArray, group: "Client",
            help: "Options for the SSH configuration of clients, Key=value."),
        CommandOption(
            "docs-url", env: "CODER_DOCS_URL", .url, hidden: true, help: "Where the documentation is."),
        CommandOption(
            "agent-stats-refresh-interval", env: "CODER_AGENT_STATS_REFRESH_INTERVAL", .duration,
            default: "30s",
            hidden: true, help: "How often agents report statistics."),
    ]

    @Sendable private static func run(_ invocation: ServerInvocation) async throws -> Int32 {
        let console = invocation.console
        return await ServerProgram.run(
            try options(invocation),
            say: { line in
                console.out(line + "\n")
                storeURL(line, invocation)
            }, complain: { console.error($0 + "\n") })
    }

    /// The commands on this machine find the server without being told: best effort, as in the original.
    private static func storeURL(_ line: String, _ invocation: ServerInvocation) {
        let marker = "log in at: "
        guard let start = line.split(separator: "\n").first(where: { $0.contains(marker) }) else { return }
        let url = start.split(separator: " ").last.map(String.init) ?? ""
        do {
            try invocation.storeURL(url)
        } catch {
            invocation.console.error("cannot store the URL for other commands: \(error)\n")
        }
    }

    private static func options(_ invocation: ServerInvocation) throws -> ServerOptions {
        let values = invocation.values
        var options = ServerOptions(configDirectory: invocation.configDirectory)
        let text = { (flag: String) in values.string(flag).isEmpty ? nil : values.string(flag) }
        let seconds = { (flag: String, fallback: Int64) in
            values.duration(flag)?.components.seconds ?? fallback
        }
        options.httpAddress = values.string("http-address")
        options.accessURL = text("access-url")
        options.postgresURL = text("postgres-url")
        options.postgresConnections = values.int("postgres-conn-max-open") ?? options.postgresConnections
        options.tlsEnable = values.bool("tls-enable")
        options.tlsAddress = values.string("tls-address")
        options.tlsCertificateFiles = values.list("tls-cert-file")
        options.tlsKeyFiles = values.list("tls-key-file")
        options.sessionSeconds = seconds("session-duration", options.sessionSeconds)
        options.tokenSeconds = seconds("default-token-lifetime", options.tokenSeconds)
        options.maximumTokenSeconds = seconds("max-token-lifetime", options.maximumTokenSeconds)
        options.maximumAdminTokenSeconds = seconds(
            "max-admin-token-lifetime", options.maximumAdminTokenSeconds)
        options.disableSessionExpiryRefresh = values.bool("disable-session-expiry-refresh")
        options.trustedProxyHeaders = values.list("proxy-trusted-headers")
        options.trustedProxyOrigins = values.list("proxy-trusted-origins")
        options.secureAuthCookie = values.bool("secure-auth-cookie")
        options.apiRateLimit = values.int("api-rate-limit") ?? options.apiRateLimit
        options.disableRateLimits = values.bool("dangerous-disable-rate-limits")
        options.derpEnable = values.bool("derp-server-enable")
        options.derpRegionID = values.int("derp-server-region-id") ?? options.derpRegionID
        options.derpRegionCode = values.string("derp-server-region-code")
        options.derpRegionName = values.string("derp-server-region-name")
        options.stunAddresses = values.list("derp-server-stun-addresses")
        options.stunListenAddress = values.string("stun-address")
        options.derpConfigURL = values.string("derp-config-url")
        options.derpConfigPath = values.string("derp-config-path")
        options.prometheusEnable = values.bool("prometheus-enable")
        options.prometheusAddress = values.string("prometheus-address")
        options.derpForceWebSockets = values.bool("derp-force-websockets")
        options.blockDirect = values.bool("block-direct-connections")
        options.sshHostnamePrefix = values.string("ssh-hostname-prefix")
        options.hostnameSuffix = values.string("workspace-hostname-suffix")
        options.sshConfigOptions = values.list("ssh-config-options").compactMap { option in
            guard let mark = option.firstIndex(where: { $0 == "=" || $0 == " " }) else { return nil }
            return (String(option[..<mark]), String(option[option.index(after: mark)...]))
        }
        if let docs = text("docs-url") { options.docsURL = docs }
        options.agentStatsSeconds = seconds("agent-stats-refresh-interval", options.agentStatsSeconds)
        options.environment = invocation.environment
        options.version = invocation.version
        options.logLevel = values.bool("verbose") ? "debug" : "info"
        return options
    }
}
