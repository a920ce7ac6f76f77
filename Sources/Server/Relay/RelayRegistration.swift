// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import Logging

/// An edge relay's side of its registration with the server: what upstream calls a DERP-only workspace proxy.
/// `coordinator.md` §8.2.
struct RelayRegistration: Sendable {
    /// What the server told.
    struct Answer: Sendable {
        var meshKey: String
        var regionID: Int
        /// Other relays of the same region.
        var siblings: [HTTPURL]
    }

    /// The server itself refuses this relay; what stands before it may have similar words, but not in JSON.
    struct Refused: Error, CustomStringConvertible {
        var status: Int
        var message: String

        var description: String { "status \(status) \(message)" }
    }

    /// How registrations go on.
    enum Event: Sendable {
        case registered(Answer)
        /// So many in a row failed.
        case failed(Int)
        /// It is of no use to go on, for this reason.
        case over(String)
    }

    private let primary: HTTPURL
    private let token: String
    private let http: HTTPClient
    private let logger: Logger
    private let accessURL: String
    private let relayURL: String
    /// Of the STUN responder beside the relay.
    private let stunPort: Int?
    private let version: String
    private let interval: Duration
    private let replica = Identifier.random()
    /// Between attempts while the server has not answered once.
    private static let impatience: Duration = .seconds(2)

    init(
        _ options: RelayOptions, port: Int?, stunPort: Int?, http: HTTPClient, logger: Logger
    ) throws {
        guard let primary = HTTPURL(options.primaryURL) else {
            throw RelayStartError(
                description: options.primaryURL.isEmpty
                    ? "needs --primary-access-url and --proxy-session-token, or --standalone"
                    : "--primary-access-url \"\(options.primaryURL)\" is not an http or https URL")
        }
        let parts = options.proxyToken.split(separator: ":", maxSplits: 1)
        guard parts.count == 2, Identifier(parts[0]) != nil else {
            throw RelayStartError(
                description: "--proxy-session-token is not of the form <uuid>:<secret>")
        }
        if options.accessURL.isEmpty {
            let isSecure = options.httpAddress.isEmpty
            let host = HostPort.split(isSecure ? options.tlsAddress : options.httpAddress)?.host ?? ""
            let name = ["", "0.0.0.0", "::"].contains(host) ? "127.0.0.1" : host
            accessURL = AccessURL(isSecure: isSecure, host: name, port: port).text
        } else if let url = AccessURL(options.accessURL) {
            accessURL = url.text
        } else {
            throw RelayStartError(
                description: "--access-url \"\(options.accessURL)\" is not an http or https URL")
        }
        self.primary = primary
        token = options.proxyToken
        self.http = http
        self.logger = logger
        relayURL = options.relayURL.isEmpty ? accessURL : options.relayURL
        self.stunPort = stunPort
        version = options.version
        interval = .seconds(max(1, options.registrationSeconds))
    }

    /// The first registration, nil when the server cannot be reached. Throws when it refuses.
    func first() async throws -> Answer? {
        do {
            return try await register(trouble: "")
        } catch let error as Refused {
            throw error
        } catch {
            logger.warning("the server cannot be reached; waiting for it", metadata: ["error": "\(error)"])
            try Task.checkCancellation()
            return nil
        }
    }

    /// Registers again and again until cancelled. A server that is away changes nothing: packets go on. `known`: what
    /// the first registration gave. `trouble`: what to tell the server.
    func keep(
        after known: Answer?, trouble: () async -> String, tell: (Event) async -> Void
    ) async {
        var known = known
        var failures = known == nil ? 1 : 0
        var refusals = 0
        while !Task.isCancelled {
            // Cancelled: the loop ends.
            try? await Task.sleep(for: known == nil ? min(interval, Self.impatience) : interval)
            guard !Task.isCancelled else { return }
            do {
                let answer = try await register(trouble: await trouble())
                if let known, answer.meshKey != known.meshKey || answer.regionID != known.regionID {
                    return await tell(
                        .over("the server changed this relay's mesh key or region: start it again"))
                }
                if failures > 0 { logger.info("the server is there again") }
                known = answer
                (failures, refusals) = (0, 0)
                await tell(.registered(answer))
            } catch {
                let refused = error as? Refused
                // Once may be a mistake of something that is just being replaced.
                refusals = refused?.status == 401 ? refusals + 1 : 0
                if let refused, refusals > 1 {
                    return await tell(.over("the server refuses this relay: \(refused)"))
                }
                failures += 1
                if failures == 1 {
                    logger.warning(
                        "the server cannot be reached; relaying goes on", metadata: ["error": "\(error)"])
                }
                await tell(.failed(failures))
            }
        }
    }

    /// Tells the server that this relay leaves. Best effort: the server notices anyway.
    func deregister() async {
        do {
            _ = try await post("deregister", ["replica_id": JSON(replica)], timeout: .seconds(3))
        } catch {
            logger.info("could not tell the server that we stop", metadata: ["error": "\(error)"])
        }
    }

    private func register(trouble: String) async throws -> Answer {
        let response = try await post(
            "register",
            [
                "access_url": .string(accessURL), "wildcard_hostname": "", "derp_enabled": true,
                "derp_only": true, "replica_id": JSON(replica), "hostname": .string(Self.hostName),
                "replica_error": .string(trouble), "replica_relay_address": .string(relayURL),
                "version": .string(version),
                // Not upstream's, whose server ignores it.
                "derp_stun_port": JSON(stunPort ?? -1),
            ], timeout: .seconds(10))
        guard response.status == 201 else {
            if [400, 401, 403, 404].contains(response.status),
                let message = (try? JSON(parsing: response.body))?["message"]?.text
            {
                throw Refused(status: response.status, message: message)
            }
            let text = String(decoding: response.body.prefix(300), as: UTF8.self)
            throw RelayStartError(description: "status \(response.status) \(text)")
        }
        let json = try JSON(parsing: response.body)
        guard let region = json["derp_region_id"]?.integer, let key = json["derp_mesh_key"]?.text else {
            throw RelayStartError(description: "an answer without region and mesh key")
        }
        let siblings = (json["sibling_replicas"]?.elements ?? []).compactMap {
            $0["relay_address"]?.text.flatMap { HTTPURL($0) }
        }
        return Answer(meshKey: key, regionID: Int(region), siblings: siblings)
    }

    private func post(_ door: String, _ body: JSON, timeout: Duration) async throws -> HTTPResponse {
        var url = primary
        url.path = (primary.path == "/" ? "" : primary.path) + "/api/v2/workspaceproxies/me/" + door
        return try await http.request(
            "POST", url,
            headers: ["Content-Type": "application/json", "Coder-External-Proxy-Token": token],
            body: body.encoded, bodyLimit: 4 << 20, timeout: timeout)
    }

    private static var hostName: String {
        var name = [CChar](repeating: 0, count: 256)
        guard gethostname(&name, name.count - 1) == 0 else { return "" }
        return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
