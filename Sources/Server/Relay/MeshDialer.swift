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
    private let logger: Logger
    private var tasks: [HTTPURL: Task<Void, Never>] = [:]

    init(relay: Relay, http: HTTPClient, logger: Logger) {
        self.relay = relay
        self.http = http
        self.logger = logger
    }

    /// Connects to these relays and to no others. A URL without path means `/derp` there.
    func connect(to urls: [HTTPURL]) {
        let wanted = Set(
            urls.map { url in
                var url = url
                if url.path == "/" { url.path = "/derp" }
                return url
            })
        for (url, task) in tasks where !wanted.contains(url) {
            task.cancel()
            tasks[url] = nil
        }
        for url in wanted where tasks[url] == nil {
            tasks[url] = Task { [relay, http, logger] in await Self.keep(url, relay, http, logger) }
        }
    }

    /// Opens no more connections. Those that are open stay until the relay ends them.
    func stop() { connect(to: []) }

    private static func keep(_ url: HTTPURL, _ relay: Relay, _ http: HTTPClient, _ logger: Logger) async {
        var isKnownToFail = false
        while !Task.isCancelled {
            do {
                let number = try await http.upgrade(url, protocol: "DERP").release()
                logger.debug("connected to a relay of the mesh", metadata: ["url": "\(url)"])
                let end = await withCheckedContinuation { continuation in
                    relay.link(OwnedDescriptor(taking: number)) { continuation.resume(returning: $0) }
                }
                switch end {
                case .isSelf, .stopped: return
                case .closed:
                    if !isKnownToFail {
                        logger.warning(
                            "another relay does not accept us: is the mesh key the same?",
                            metadata: ["url": "\(url)"])
                    }
                    isKnownToFail = true
                case .lost:
                    logger.info("connection to another relay lost", metadata: ["url": "\(url)"])
                    isKnownToFail = false
                }
            } catch {
                if !isKnownToFail {
                    logger.warning(
                        "another relay cannot be reached", metadata: ["url": "\(url)", "error": "\(error)"])
                }
                isKnownToFail = true
            }
            // Cancelled: the loop ends.
            try? await Task.sleep(for: .milliseconds(Int.random(in: 4_500...5_500)))
        }
    }
}
