// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import HTTPTransport
internal import Logging
internal import Mesh

/// Asks a URL whether a client may use the relay. `derp.md` §6.6.
struct RelayVerifier: Sendable {
    let url: HTTPURL
    /// What counts when the URL gives no answer.
    let failsOpen: Bool
    let http: HTTPClient
    let logger: Logger

    /// For `Relay.Configuration.verify`.
    var hook: Relay.Configuration.Verify {
        { key, source, answer in
            Task { answer(await isWelcome(key, source)) }
        }
    }

    private func isWelcome(_ key: NodePublicKey, _ source: String) async -> Bool {
        let question: JSON = ["NodePublic": .string("nodekey:\(key.hex)"), "Source": .string(source)]
        do {
            let response = try await http.request(
                "POST", url, headers: ["Content-Type": "application/json"], body: question.encoded,
                bodyLimit: 64 << 10, timeout: .seconds(5))
            if response.status == 200, case .bool(let allow) = try JSON(parsing: response.body)["Allow"] {
                return allow
            }
            logger.warning("no answer about a client", metadata: ["status": "\(response.status)"])
        } catch {
            logger.warning("no answer about a client", metadata: ["error": "\(error)"])
        }
        return failsOpen
    }
}
