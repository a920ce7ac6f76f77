// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Logging

/// What routes need, made once by the composition root. Everything in it may be used from any task.
final class Services: Sendable {
    let options: ServerOptions
    let accessURL: AccessURL
    let deploymentID: String
    let store: Store
    let passwords = Passwords()
    /// Logins whose password is being checked, or waits for it: more of them would wait for many seconds.
    let checking = ConnectionCount(limit: 32)
    let events = Events()
    let loginLimiter: RateLimiter
    let mesh: MeshServices
    let agentSessions: AgentSessions
    let proxies: ProxyRegistry
    let logger: Logger

    init(
        options: ServerOptions, accessURL: AccessURL, deploymentID: String, store: Store, mesh: MeshServices,
        logger: Logger
    ) {
        self.options = options
        self.accessURL = accessURL
        self.deploymentID = deploymentID
        self.store = store
        self.mesh = mesh
        agentSessions = AgentSessions(store: store, events: events, logger: logger)
        proxies = ProxyRegistry(
            store: store, maps: mesh.maps,
            http: HTTPClient(configuration: .init(environment: options.environment)), logger: logger)
        self.logger = logger
        loginLimiter = RateLimiter(limit: options.disableRateLimits ? 0 : 60)
    }

    /// The store as the caller may see it.
    func store(for call: Call) throws(APIError) -> GuardedStore {
        GuardedStore(store: store, subject: try call.subject())
    }

    /// Where the client of this call, and others near it, reach the server: the access URL, or, when that is good for
    /// this machine only, what the client used itself.
    func publicURL(for call: Call) -> String {
        guard accessURL.isLoopback, let host = call.head.first("host"),
            host.utf8.allSatisfy({ Names.isLetterOrDigit($0) || "-.:[]".utf8.contains($0) }),
            let used = AccessURL((call.isEncrypted ? "https://" : "http://") + host), !used.isLoopback
        else { return accessURL.text }
        return used.text
    }

    /// Seconds; owners' tokens live shorter.
    func maximumTokenLifetime(of subject: Subject) -> Int64 {
        subject.isOwner ? options.maximumAdminTokenSeconds : options.maximumTokenSeconds
    }
}
