// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import HTTPTransport
internal import LinuxIO
internal import Logging

/// Keeps a relay connected to the other relays of its region: one connection to each, opened again 5 s after it broke.
/// `derp.md` §8.
actor MeshDialer {
    private let relay: Relay
    private let http: HTTPClient
    /// Name in the certificate that siblings share.
    private let siblingName: String?
    private let logger: Logger
    private var wanted: Set<HTTPURL> = []
    private var siblings: Set<HTTPURL> = []
    /// One for each relay that is wanted, or still connected: a connection outlives the wish for it, because a server
    /// that restarts does not know all relays at once.
    private var tasks: [HTTPURL: Task<Void, Never>] = [:]
    private var failures: [HTTPURL: String] = [:]
    /// Whose failures were said.
    private var known: Set<HTTPURL> = []

    init(relay: Relay, http: HTTPClient, siblingName: String?, logger: Logger) {
        self.relay = relay
        self.http = http
        self.siblingName = siblingName
        self.logger = logger
    }

    /// Connects to these relays and to no others. A URL without path means `/derp` there. `siblings`: those that stand
    /// behind this relay's own access URL, and have its certificate, whatever their own URLs say.
    func connect(to urls: [HTTPURL], siblings: [HTTPURL]) {
        func door(_ url: HTTPURL) -> HTTPURL {
            var url = url
            if url.path == "/" { url.path = "/derp" }
            return url
        }
        self.siblings = Set(siblings.map(door))
        wanted = self.siblings.union(urls.map(door))
        for url in failures.keys where !wanted.contains(url) { failures[url] = nil }
        for url in wanted where tasks[url] == nil {
            tasks[url] = Task { await keep(url) }
        }
    }

    /// Opens no more connections. Those that are open stay until the relay ends them.
    func stop() {
        wanted = []
        for task in tasks.values { task.cancel() }
    }

    /// What is wrong with the mesh now, in words; empty when nothing is.
    var trouble: String {
        failures.map { "\($0.key): \($0.value)" }.sorted().joined(separator: "; ")
    }

    private func keep(_ url: HTTPURL) async {
        while wanted.contains(url) {
            var options = ConnectOptions()
            if siblings.contains(url) { options.serverName = siblingName }
            do {
                let number = try await http.upgrade(url, protocol: "DERP", options: options).release()
                logger.debug("connected to a relay of the mesh", metadata: ["url": "\(url)"])
                failures[url] = nil
                let end = await withCheckedContinuation { continuation in
                    relay.link(OwnedDescriptor(taking: number)) { continuation.resume(returning: $0) }
                }
                switch end {
                // Its task stays in the table, so that it is not tried again.
                case .isSelf: return
                case .stopped: break
                case .closed: note("it does not accept us: is the mesh key the same?", of: url)
                case .lost:
                    logger.info("connection to another relay lost", metadata: ["url": "\(url)"])
                    known.remove(url)
                }
            } catch {
                note("\(error)", of: url)
            }
            // Cancelled: nothing is wanted any more.
            try? await Task.sleep(for: .milliseconds(Int.random(in: 4_500...5_500)))
        }
        tasks[url] = nil
    }

    /// Says a failure once.
    private func note(_ failure: String, of url: HTTPURL) {
        guard wanted.contains(url) else { return }
        failures[url] = failure
        if known.insert(url).inserted {
            logger.warning(
                "another relay cannot be reached", metadata: ["url": "\(url)", "error": "\(failure)"])
        }
    }
}
