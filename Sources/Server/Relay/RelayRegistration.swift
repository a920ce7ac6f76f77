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

    /// The server refuses this relay: trying again is of no use.
    struct Refused: Error, CustomStringConvertible {
        var description: String
    }

    private let primary: HTTPURL
    private let token: String
    private let http: HTTPClient
    private let logger: Logger
    private let accessURL: String
    private let relayURL: String
    private let version: String
    private let interval: Duration
    private let replica = Identifier.random()

    init(_ options: RelayOptions, port: Int?, http: HTTPClient, logger: Logger) throws {
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
        version = options.version
        interval = .seconds(max(1, options.registrationSeconds))
    }

    /// The first registration: waits for the server for as long as it takes, unless it refuses.
    func first() async throws -> Answer {
        var isKnown = false
        while true {
            do {
                return try await register(trouble: "")
            } catch let error as Refused {
                throw error
            } catch {
                if !isKnown {
                    logger.warning(
                        "the server cannot be reached; waiting for it", metadata: ["error": "\(error)"])
                }
                isKnown = true
                try await Task.sleep(for: .seconds(2))
            }
        }
    }

    /// Registers again and again until cancelled. A server that is away changes nothing: packets go on.
    func keep(
        since first: Answer, known: (Answer) async -> Void, trouble: (_ failures: Int) -> Void,
        changed: (String) -> Void
    ) async {
        var failures = 0
        while !Task.isCancelled {
            // Cancelled: the loop ends.
            try? await Task.sleep(for: interval)
            guard !Task.isCancelled else { return }
            do {
                let answer = try await register(trouble: "")
                guard answer.meshKey == first.meshKey, answer.regionID == first.regionID else {
                    return changed("the server changed this relay's mesh key or region: start it again")
                }
                if failures > 0 { logger.info("the server is there again") }
                failures = 0
                trouble(0)
                await known(answer)
            } catch let error as Refused {
                return changed("the server refuses this relay: \(error)")
            } catch {
                failures += 1
                if failures == 1 {
                    logger.warning(
                        "the server cannot be reached; relaying goes on", metadata: ["error": "\(error)"])
                }
                trouble(failures)
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
            ], timeout: .seconds(10))
        let text = String(decoding: response.body.prefix(300), as: UTF8.self)
        guard response.status == 201 else {
            if [400, 401, 403, 404].contains(response.status) {
                throw Refused(description: "status \(response.status) \(text)")
            }
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
