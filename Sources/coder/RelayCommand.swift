// SPDX-License-Identifier: Apache-2.0

internal import CLI
internal import Server

/// `coder relay`: its option table, and the way from values to the relay's options. The edge relay's options are those
/// of upstream's `wsproxy server --derp-only`.
enum RelayCommand {
    static let hook = ServerHook(options: options, run: run)

    private static let edge = "Edge relay"
    private static let mesh = "Mesh"
    private static let clients = "Clients"

    private static let options: [CommandOption] = [
        CommandOption("standalone", .bool, help: "Run without any server, as derper does."),
        CommandOption(
            "http-address", env: "CODER_HTTP_ADDRESS", default: "127.0.0.1:3340",
            help: "Address of the plain HTTP listener; empty for none."),
        CommandOption(
            "tls-address", env: "CODER_TLS_ADDRESS",
            help:
                "Address of the HTTPS listener. Needs certificate and key, which may be replaced at any time."
        ),
        CommandOption(
            "tls-cert-file", env: "CODER_TLS_CERT_FILE", .stringArray,
            help: "PEM file of the certificate chain, leaf first."),
        CommandOption(
            "tls-key-file", env: "CODER_TLS_KEY_FILE", .stringArray, help: "PEM file of its key."),
        CommandOption(
            "stun-address", env: "CODER_STUN_ADDRESS",
            help: "UDP address of the STUN responder, such as :3478; empty for none."),
        CommandOption(
            "drain-time", env: "CODER_RELAY_DRAIN_TIME", .duration, default: "5s",
            help: "How long clients may take to leave when the relay stops."),
        CommandOption(
            "primary-access-url", env: "CODER_PRIMARY_ACCESS_URL", .url, group: edge,
            help: "URL of the server to register with."),
        CommandOption(
            "proxy-session-token", env: "CODER_PROXY_SESSION_TOKEN", group: edge,
            help: "Token that the server gave for this relay. The variable keeps it out of the process list."),
        CommandOption(
            "access-url", env: "CODER_ACCESS_URL", .url, group: edge,
            help: "URL under which clients reach this relay. Default: made from the listener."),
        CommandOption(
            "derp-server-relay-url", env: "CODER_DERP_SERVER_RELAY_URL", .url, group: edge,
            help: "URL under which other relays of the region reach this one. Default: the access URL."),
        CommandOption(
            "derp-only", env: "CODER_PROXY_DERP_ONLY", .bool, default: "true", group: edge, hidden: true,
            help: "Always so: a relay serves no applications."),
        CommandOption(
            "mesh-key-file", env: "CODER_RELAY_MESH_KEY_FILE", group: mesh,
            help: "File with the secret that the relays of one region share."),
        CommandOption(
            "mesh-with", env: "CODER_RELAY_MESH_WITH", .stringArray, group: mesh,
            help: "URLs of the other relays of the region. Its own may be among them."),
        CommandOption(
            "verify-client-url", env: "CODER_RELAY_VERIFY_CLIENT_URL", .url, group: clients,
            help: "URL that is asked whether a client may use the relay, as derper asks."),
        CommandOption(
            "verify-client-url-fail-open", env: "CODER_RELAY_VERIFY_CLIENT_URL_FAIL_OPEN", .bool,
            default: "true", group: clients, help: "Admit clients when that URL does not answer."),
        CommandOption(
            "client-rate", env: "CODER_RELAY_CLIENT_RATE", .int, default: "0", group: clients,
            help: "Bytes per second that each client may send; 0 for no limit."),
        CommandOption(
            "client-burst", env: "CODER_RELAY_CLIENT_BURST", .int, default: "1048576", group: clients,
            help: "Bytes that it may send at once."),
        CommandOption(
            "max-connections-per-address", env: "CODER_RELAY_MAX_CONNECTIONS_PER_ADDRESS", .int, default: "0",
            group: clients,
            help: "Connections that may come from one address; 0 for no limit, as behind a proxy."),
    ]

    @Sendable private static func run(_ invocation: ServerInvocation) async throws -> Int32 {
        let console = invocation.console
        return await RelayProgram.run(
            options(invocation), say: { console.out($0 + "\n") }, complain: { console.error($0 + "\n") })
    }

    private static func options(_ invocation: ServerInvocation) -> RelayOptions {
        let values = invocation.values
        var options = RelayOptions()
        options.isStandalone = values.bool("standalone")
        options.httpAddress = values.string("http-address")
        options.tlsAddress = values.string("tls-address")
        options.certificateFiles = values.list("tls-cert-file")
        options.keyFiles = values.list("tls-key-file")
        options.stunAddress = values.string("stun-address")
        options.drainSeconds = values.duration("drain-time")?.components.seconds ?? options.drainSeconds
        options.primaryURL = values.string("primary-access-url")
        options.proxyToken = values.string("proxy-session-token")
        options.accessURL = values.string("access-url")
        options.relayURL = values.string("derp-server-relay-url")
        options.meshKeyFile = values.string("mesh-key-file")
        options.meshWith = values.list("mesh-with")
        options.verifyURL = values.string("verify-client-url")
        options.verifyFailsOpen = values.bool("verify-client-url-fail-open")
        options.clientRate = values.int("client-rate") ?? 0
        options.clientBurst = values.int("client-burst") ?? 1 << 20
        options.connectionsPerAddress = values.int("max-connections-per-address") ?? 0
        options.environment = invocation.environment
        options.version = invocation.version
        options.logLevel = values.bool("verbose") ? "debug" : "info"
        return options
    }
}
