// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import HTTPTransport
internal import LinuxIO
internal import Logging
internal import Mesh
internal import Synchronization

/// Asks a URL whether a client may use the relay. `derp.md` §6.6. Any thread.
final class RelayVerifier: Sendable {
    private struct Question: Sendable {
        var key: NodePublicKey
        var source: String
        var askedAt: UInt64
        var answer: @Sendable (Bool) -> Void

        /// What the answer depends on.
        var subject: String { "\(key.hex) \(source)" }
    }

    private struct State {
        var running = 0
        var waiting: [Question] = []
        /// Who was welcome lately, and until when that counts.
        var welcome: [String: UInt64] = [:]
        var allowed: UInt64 = 0
        var denied: UInt64 = 0
        var failed: UInt64 = 0
    }

    private let url: HTTPURL
    /// What counts when the URL gives no answer.
    private let failsOpen: Bool
    private let http: HTTPClient
    private let logger: Logger
    private let state = Mutex(State())

    /// Questions at a time.
    private static let parallel = 64
    /// Questions that wait for their turn; further ones count as not answered.
    private static let waitingLimit = 4_096
    /// The relay waits no longer for a login: who waited so long is gone.
    private static let patience: UInt64 = 10_000_000_000
    /// How long a good answer counts: a relay that restarts, or a network that was away, brings everybody at once.
    private static let memory: UInt64 = 60_000_000_000
    /// Good answers that are remembered.
    private static let memoryLimit = 65_536

    init(url: HTTPURL, failsOpen: Bool, http: HTTPClient, logger: Logger) {
        self.url = url
        self.failsOpen = failsOpen
        self.http = http
        self.logger = logger
    }

    /// For `Relay.Configuration.verify`.
    var hook: Relay.Configuration.Verify {
        { key, source, answer in
            self.ask(
                Question(key: key, source: source, askedAt: Clock.monotonicNanoseconds(), answer: answer))
        }
    }

    /// The answers as Prometheus text.
    var prometheusText: String {
        let (allowed, denied, failed) = state.withLock { ($0.allowed, $0.denied, $0.failed) }
        let name = "coder_relay_verify_total"
        return """
            # TYPE \(name) counter
            \(name){result="allowed"} \(allowed)
            \(name){result="denied"} \(denied)
            \(name){result="failed"} \(failed)

            """
    }

    private enum Turn { case known, now, later, never }

    private func ask(_ question: Question) {
        let turn: Turn = state.withLock { state in
            if let until = state.welcome[question.subject], until > question.askedAt {
                state.allowed += 1
                return .known
            }
            if state.running < Self.parallel {
                state.running += 1
                return .now
            }
            guard state.waiting.count < Self.waitingLimit else {
                state.failed += 1
                return .never
            }
            state.waiting.append(question)
            return .later
        }
        switch turn {
        case .known: question.answer(true)
        // One task for as many questions as there are; each has its time limit.
        case .now: Task { await work(question) }
        case .later: break
        case .never: question.answer(failsOpen)
        }
    }

    private func work(_ first: Question) async {
        var next: Question? = first
        while let question = next {
            question.answer(await isWelcome(question))
            next = takeNext()
        }
    }

    private func takeNext() -> Question? {
        let now = Clock.monotonicNanoseconds()
        return state.withLock { state in
            let isGone = { (question: Question) in now - min(now, question.askedAt) >= Self.patience }
            state.waiting.removeFirst(state.waiting.prefix(while: isGone).count)
            guard !state.waiting.isEmpty else {
                state.running -= 1
                return nil
            }
            return state.waiting.removeFirst()
        }
    }

    private func isWelcome(_ question: Question) async -> Bool {
        do {
            let isAllowed = try await answer(to: question)
            state.withLock { state in
                if isAllowed { state.allowed += 1 } else { state.denied += 1 }
                guard isAllowed else { return }
                let now = Clock.monotonicNanoseconds()
                if state.welcome.count >= Self.memoryLimit {
                    state.welcome = state.welcome.filter { $0.value > now }
                }
                guard state.welcome.count < Self.memoryLimit else { return }
                state.welcome[question.subject] = now + Self.memory
            }
            return isAllowed
        } catch {
            logger.warning("no answer about a client", metadata: ["error": "\(error)"])
            state.withLock { $0.failed += 1 }
            return failsOpen
        }
    }

    private func answer(to question: Question) async throws -> Bool {
        let body: JSON = [
            "NodePublic": .string("nodekey:\(question.key.hex)"), "Source": .string(question.source),
        ]
        let response = try await post(body.encoded)
        guard response.status == 200, case .bool(let allow) = try JSON(parsing: response.body)["Allow"] else {
            throw RelayStartError(description: "status \(response.status), or no \"Allow\" in the answer")
        }
        return allow
    }

    /// The question changes nothing, so it is asked again when a kept connection had just been closed.
    private func post(_ body: [UInt8]) async throws(HTTPError) -> HTTPResponse {
        do {
            return try await postOnce(body)
        } catch {
            guard error.kind == .connectionLost else { throw error }
            return try await postOnce(body)
        }
    }

    private func postOnce(_ body: [UInt8]) async throws(HTTPError) -> HTTPResponse {
        try await http.request(
            "POST", url, headers: ["Content-Type": "application/json"], body: body, bodyLimit: 64 << 10,
            timeout: .seconds(5))
    }
}
