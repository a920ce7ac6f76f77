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

    /// Seconds; owners' tokens live shorter.
    func maximumTokenLifetime(of subject: Subject) -> Int64 {
        subject.isOwner ? options.maximumAdminTokenSeconds : options.maximumTokenSeconds
    }
}
