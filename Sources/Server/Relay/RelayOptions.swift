// SPDX-License-Identifier: Apache-2.0

/// What `coder relay` was asked to do; each field names its flag.
public struct RelayOptions: Sendable {
    /// `--standalone`: a relay of its own; otherwise it registers with a server.
    public var isStandalone = false
    /// `--http-address`: `host:port`; empty turns plain HTTP off.
    public var httpAddress = ""
    /// `--tls-address`
    public var tlsAddress = ""
    /// `--tls-cert-file`
    public var certificateFiles: [String] = []
    /// `--tls-key-file`
    public var keyFiles: [String] = []
    /// `--stun-address`: UDP `host:port`; empty for none.
    public var stunAddress = ""
    /// `--mesh-key-file`: the secret that the relays of one region share.
    public var meshKeyFile = ""
    /// `--mesh-with`: URLs of the other relays.
    public var meshWith: [String] = []
    /// `--verify-client-url`: asked for each client.
    public var verifyURL = ""
    /// `--verify-client-url-fail-open`: what counts when it does not answer.
    public var verifyFailsOpen = true
    /// `--client-rate`: bytes per second of each client; 0: no limit.
    public var clientRate = 0
    /// `--client-burst`: bytes.
    public var clientBurst = 0
    /// `--max-connections-per-address`; 0: no limit.
    public var connectionsPerAddress = 0
    /// `--drain-time`: how long clients may take to leave, in seconds.
    public var drainSeconds: Int64 = 5
    /// `--primary-access-url`: the server to register with.
    public var primaryURL = ""
    /// `--proxy-session-token`
    public var proxyToken = ""
    /// `--access-url`: where clients reach this relay.
    public var accessURL = ""
    /// `--derp-server-relay-url`: where siblings reach this relay. Empty: at the access URL.
    public var relayURL = ""
    /// Between two registrations, in seconds; the server forgets a relay after three that were missed. No flag.
    public var registrationSeconds: Int64 = 15
    /// The process's environment: proxies and certificates of requests to the server and to other relays.
    public var environment: [String: String] = [:]
    /// Version of this program.
    public var version = ""
    /// Log level word.
    public var logLevel = "info"

    /// Nothing asked for.
    public init() {}
}

/// Why a relay cannot start, for the person who started it.
struct RelayStartError: Error, CustomStringConvertible {
    var description: String
}
