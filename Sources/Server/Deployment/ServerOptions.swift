// SPDX-License-Identifier: Apache-2.0

/// What `coder server` was asked to do. The composition root fills it from flags, environment and files; each field
/// names its flag.
public struct ServerOptions: Sendable {
    /// `--http-address`: `host:port`; empty turns plain HTTP off.
    public var httpAddress = "127.0.0.1:3000"
    /// `--access-url`: where users and agents reach the server. Nil: made from the address that is bound.
    public var accessURL: String?
    /// `--postgres-url`: a database of one's own. Nil: the server runs a private PostgreSQL.
    public var postgresURL: String?
    /// `--postgres-conn-max-open`
    public var postgresConnections = 10
    /// `--global-config`: where data is kept. Must be given.
    public var configDirectory: String
    /// `--tls-enable`
    public var tlsEnable = false
    /// `--tls-address`
    public var tlsAddress = "127.0.0.1:3443"
    /// `--tls-cert-file`: PEM chains, leaf first.
    public var tlsCertificateFiles: [String] = []
    /// `--tls-key-file`: PEM keys, one for each chain.
    public var tlsKeyFiles: [String] = []
    /// `--session-duration`, in seconds.
    public var sessionSeconds: Int64 = 86_400
    /// `--default-token-lifetime`, in seconds.
    public var tokenSeconds: Int64 = 604_800
    /// `--max-token-lifetime`, in seconds.
    public var maximumTokenSeconds: Int64 = 3_153_600_000
    /// `--max-admin-token-lifetime`, in seconds.
    public var maximumAdminTokenSeconds: Int64 = 604_800
    /// `--disable-session-expiry-refresh`
    public var disableSessionExpiryRefresh = false
    /// `--proxy-trusted-headers`: fields in which reverse proxies name their client.
    public var trustedProxyHeaders: [String] = []
    /// `--proxy-trusted-origins`: ranges of the addresses of those proxies.
    public var trustedProxyOrigins: [String] = []
    /// `--secure-auth-cookie`
    public var secureAuthCookie = false
    /// `--api-rate-limit`: requests per minute, address and path; negative: no limit.
    public var apiRateLimit = 512
    /// `--dangerous-disable-rate-limits`
    public var disableRateLimits = false
    /// `--derp-server-enable`
    public var derpEnable = true
    /// `--derp-server-region-id`
    public var derpRegionID = 999
    /// `--derp-server-region-code`
    public var derpRegionCode = "coder"
    /// `--derp-server-region-name`
    public var derpRegionName = "Coder Embedded Relay"
    /// `--derp-server-stun-addresses`: other people's STUN servers, `host:port`. None by default: a deployment
    /// depends on nobody else, and our own responder does the same. The word `disable` turns all of them off.
    public var stunAddresses: [String] = []
    /// `--stun-address`: our own STUN responder, UDP `host:port`; without a host on all addresses of IPv4 and IPv6;
    /// empty turns it off. The port behind it answers too, if it is free.
    public var stunListenAddress = ":3478"
    /// `--derp-config-url`: a map of other relays, read once.
    public var derpConfigURL = ""
    /// `--derp-config-path`: the same as a file.
    public var derpConfigPath = ""
    /// `--derp-force-websockets`
    public var derpForceWebSockets = false
    /// `--block-direct-connections`
    public var blockDirect = false
    /// `--prometheus-enable`
    public var prometheusEnable = false
    /// `--prometheus-address`
    public var prometheusAddress = "127.0.0.1:2112"
    /// `--ssh-hostname-prefix`
    public var sshHostnamePrefix = "coder."
    /// `--workspace-hostname-suffix`
    public var hostnameSuffix = "coder"
    /// `--ssh-config-options`
    public var sshConfigOptions: [(name: String, value: String)] = []
    /// `--docs-url`
    public var docsURL = "https://coder.com/docs"
    /// `--agent-stats-refresh-interval`, in seconds.
    public var agentStatsSeconds: Int64 = 30
    /// The process's environment: proxies and certificates of requests to edge relays.
    public var environment: [String: String] = [:]
    /// Version of this program, such as `v2.30.0-swift+abc1234`.
    public var version = "v2.30.0-swift"
    /// Where the source of this build is, for `buildinfo`.
    public var externalURL = "https://github.com/coder/coder"
    /// Log level word: trace, debug, info, notice, warning, error.
    public var logLevel = "info"

    /// Defaults, with data below `configDirectory`.
    public init(configDirectory: String) { self.configDirectory = configDirectory }
}
