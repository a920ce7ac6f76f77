// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import HTTPTransport
internal import LinuxIO
internal import Logging
internal import Mesh
internal import NIOCore
internal import NIOPosix

extension RunningRelay {
    /// What it is made of.
    struct Parts {
        var group: MultiThreadedEventLoopGroup
        var http: HTTPClient
        var fronts: [Front]
        var relay: Relay
        var stun: STUNListener?
        var registration: RelayRegistration?
        var counters: HTTPCounters
        var certificates: Certificates?
        var verifier: RelayVerifier?
        var meshWith: [HTTPURL]
    }

    /// What listens on one address.
    enum Front {
        case door(FrontDoor.Listener)
        /// For names, which may mean several addresses.
        case server(HTTPServer)

        var port: Int {
            switch self {
            case .door(let listener): listener.port
            case .server(let server): server.port
            }
        }
    }

    /// Most connections that are not the relay's: all of them, if some 1,600 come per second and say nothing.
    static let maximumConnections = 16_384

    /// Starts everything, or throws one describable error and leaves nothing behind.
    static func start(
        _ options: RelayOptions, logger: Logger, say: @escaping @Sendable (String) -> Void
    ) async throws -> RunningRelay {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: max(2, min(8, System.coreCount)))
        var configuration = HTTPClient.Configuration(environment: options.environment)
        configuration.headers = ["User-Agent": "coder-relay/\(options.version)"]
        let http = HTTPClient(configuration: configuration)
        let running: RunningRelay
        do {
            let counters = HTTPCounters()
            let urls = try options.meshWith.map(url)
            var certificates: Certificates?
            if !options.tlsAddress.isEmpty {
                certificates = try Certificates.load(
                    chains: options.certificateFiles, keys: options.keyFiles,
                    groups: Certificates.quickGroups, logger: logger)
            }
            let fronts = try await bind(
                options, certificates, group: group, counters: counters, logger: logger)
            let stun = try STUNListener.bound(options.stunAddress)
            let registration =
                options.isStandalone
                ? nil
                : try RelayRegistration(
                    options, port: fronts.first?.port, stunPort: stun?.port, http: http,
                    logger: logger)
            let verifier =
                options.verifyURL.isEmpty
                ? nil
                : RelayVerifier(
                    url: try url(options.verifyURL), failsOpen: options.verifyFailsOpen, http: http,
                    logger: logger)
            let relay = try makeRelay(options, meshKey: try meshKey(options), verifier)
            let parts = Parts(
                group: group, http: http, fronts: fronts, relay: relay, stun: stun,
                registration: registration, counters: counters, certificates: certificates,
                verifier: verifier, meshWith: urls)
            running = try await RunningRelay(parts, options: options, logger: logger, say: say)
        } catch {
            await http.shutDown()
            // The first error is the one to tell.
            try? await group.shutdownGracefully()
            throw error
        }
        announce(running, options, say)
        do {
            try await running.register()
        } catch {
            await running.stop()
            throw error
        }
        return running
    }

    private static func announce(
        _ running: RunningRelay, _ options: RelayOptions, _ say: (String) -> Void
    ) {
        for (address, scheme, port) in zip3(options, running.ports) {
            let host = HostPort.split(address)?.host ?? ""
            let name = ["", "0.0.0.0", "::"].contains(host) ? "127.0.0.1" : host
            say("Relay at: \(scheme)://\(name.contains(":") ? "[\(name)]" : name):\(port)/derp")
        }
        if let stun = running.stun { say("STUN on UDP port \(stun.port)") }
        say("Key: \(running.relay.publicKey.hex)")
    }

    /// Addresses that were asked for, with the ports that were bound.
    private static func zip3(_ options: RelayOptions, _ ports: [Int]) -> [(String, String, Int)] {
        let asked = [(options.httpAddress, "http"), (options.tlsAddress, "https")].filter { !$0.0.isEmpty }
        return zip(asked, ports).map { ($0.0.0, $0.0.1, $0.1) }
    }

    private static func makeRelay(
        _ options: RelayOptions, meshKey: String, _ verifier: RelayVerifier?
    ) throws -> Relay {
        var generator = SystemRandomNumberGenerator()
        var configuration = Relay.Configuration(privateKey: PrivateKey(using: &generator))
        configuration.meshKey = meshKey
        configuration.limits.bytesPerSecond = max(0, options.clientRate)
        configuration.limits.connections = LifeCycle.relayConnections
        configuration.limits.connectionsPerAddress = max(0, options.connectionsPerAddress)
        // A packet of the largest size must fit, or it would never be sent.
        configuration.limits.burstBytes = max(65_573, options.clientBurst)
        configuration.verify = verifier?.hook
        return try Relay(configuration, generator: &generator)
    }

    private static func meshKey(_ options: RelayOptions) throws -> String {
        guard !options.meshKeyFile.isEmpty else {
            guard options.meshWith.isEmpty || !options.isStandalone else {
                throw RelayStartError(description: "--mesh-with needs --mesh-key-file")
            }
            return ""
        }
        var reader = try FileReader(path: options.meshKeyFile, offset: 0)
        let bytes = try reader.read(upTo: 4_096)
        let key = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isWhitespace)
        guard key.count == 1, key[0].utf8.count >= 16 else {
            throw RelayStartError(
                description:
                    "\(options.meshKeyFile) holds no mesh key: one word of 16 characters or more, such as that of"
                    + " `openssl rand -hex 32`")
        }
        return String(key[0])
    }

    private static func url(_ text: String) throws -> HTTPURL {
        guard let url = HTTPURL(text) else {
            throw RelayStartError(description: "\"\(text)\" is not an http or https URL")
        }
        return url
    }

    private static func bind(
        _ options: RelayOptions, _ certificates: Certificates?, group: MultiThreadedEventLoopGroup,
        counters: HTTPCounters, logger: Logger
    ) async throws -> [Front] {
        var fronts: [Front] = []
        func listen(_ text: String, _ tls: Certificates?) async throws {
            guard let (host, port) = HostPort.split(text), let port else {
                throw RelayStartError(description: "\"\(text)\" is not an address of the form host:port")
            }
            let name = host.isEmpty ? "0.0.0.0" : host
            do {
                if let door = try FrontDoor.Listener(host: name, port: port, certificates: tls) {
                    fronts.append(.door(door))
                    return
                }
            } catch {
                throw RelayStartError(description: "cannot listen on \(text): \(error)")
            }
            let server = try await HTTPServer(
                host: name, port: port, tls: tls, group: group, logger: logger, counters: counters,
                maximumConnections: maximumConnections)
            fronts.append(.server(server))
        }
        if !options.httpAddress.isEmpty { try await listen(options.httpAddress, nil) }
        if let certificates { try await listen(options.tlsAddress, certificates) }
        guard !fronts.isEmpty else {
            throw RelayStartError(
                description: "neither --http-address nor --tls-address: nothing to listen on")
        }
        return fronts
    }
}
