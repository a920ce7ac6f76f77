// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import LinuxIO
internal import Logging
internal import Mesh
internal import RPC
internal import SSH
internal import SwiftProtobuf
internal import Synchronization
internal import Tailnet

/// A running agent: what lives longer than one connection to the server. Owns the tailnet, the SSH server and the
/// queues of reports; made by the first manifest, kept over reconnects, ended by `shutDown`.
actor AgentRuntime {
    /// What runs until the agent ends.
    typealias Job = @Sendable () async -> Void

    nonisolated let options: AgentOptions
    nonisolated let client: HTTPClient
    nonisolated let logger: Logger
    nonisolated let lifecycle = LifecycleReports()
    nonisolated let connections = ConnectionReports()
    nonisolated let logs = LogSender()
    nonisolated let statsBaseline = StatsBaseline()
    nonisolated let scripts: ScriptRunner
    /// Jobs for the agent's task group, in the order of their start.
    nonisolated let jobs: AsyncStream<Job>
    private nonisolated let newJobs: AsyncStream<Job>.Continuation
    private nonisolated let environment: Mutex<SSHEnvironment>
    private nonisolated let ownNode = Mutex<OwnNode?>(nil)
    private var manifest: AgentManifest?
    private var tailnet: Tailnet?
    private var ssh: SSHService?
    private var terminals: TerminalService?

    init(options: AgentOptions, client: HTTPClient, logger: Logger) {
        self.options = options
        self.client = client
        self.logger = logger
        (jobs, newJobs) = AsyncStream.makeStream(of: Job.self, bufferingPolicy: .bufferingOldest(64))
        let dataDirectory = ScriptRunner.makeDataDirectory(in: options.scriptDataDirectory)
        if dataDirectory == nil { logger.warning("there is no place for scripts' data") }
        scripts = ScriptRunner(
            logs: logs, timings: Outbox(limit: 1_024), logger: logger, logDirectory: options.logDirectory,
            dataDirectory: dataDirectory ?? options.scriptDataDirectory)
        let process = Dictionary(options.environment.map { ($0.name, $0.value) }) { first, _ in first }
        var environment = SSHEnvironment(account: UserAccount.current(environment: process))
        environment.agentBinary = options.binaryPath
        environment.agentToken = options.token
        environment.processVariables = Self.withBinaryDirectory(options)
        environment.scriptBinDirectory = dataDirectory.map(ScriptRunner.binDirectory) ?? ""
        environment.blocksFileTransfer = options.blocksFileTransfer
        self.environment = Mutex(environment)
    }

    /// The directory of the program is the last in PATH. agent.md §4.2.
    private static func withBinaryDirectory(_ options: AgentOptions) -> [(name: String, value: String)] {
        guard let slash = options.binaryPath.lastIndex(of: "/") else { return options.environment }
        let directory = options.binaryPath[..<slash]
        var variables = options.environment
        if let index = variables.firstIndex(where: { $0.name == "PATH" }) {
            if !variables[index].value.split(separator: ":").contains(directory) {
                variables[index].value += ":\(directory)"
            }
        } else {
            variables.append(("PATH", "/usr/local/bin:/usr/bin:/bin:\(directory)"))
        }
        return variables
    }

    /// What sessions and scripts get.
    nonisolated var currentEnvironment: SSHEnvironment { environment.withLock { $0 } }

    /// Messages for new terminals.
    nonisolated func setBanners(_ banners: [AgentBannerConfig]) {
        environment.withLock { $0.banners = banners.filter(\.enabled).map(\.message) }
    }

    // MARK: - Manifest

    /// Takes the manifest of a new connection: makes everything at the first time, updates it later. Returns the
    /// tailnet to run on the connection.
    func accept(_ manifest: AgentManifest) throws -> Tailnet {
        guard let id = RawUUID(manifest.agentID), id != .zero else { throw AgentError.noAgentID }
        self.manifest = manifest
        let directory = expandedDirectory(manifest.directory)
        environment.withLock { environment in
            environment.ownerName = manifest.ownerUsername
            environment.workspaceName = manifest.workspaceName
            environment.agentName = manifest.agentName
            environment.workspaceID = RawUUID(manifest.workspaceID)?.description ?? ""
            environment.portProxyURI = manifest.vsCodePortProxyUri
            environment.manifestVariables = manifest.environmentVariables
            environment.directory = directory
            environment.motdPath = manifest.motdPath
        }
        if let tailnet {
            tailnet.setDERPMap(DERPMap(manifest.derpMap))
            tailnet.setForcesWebSockets(manifest.derpForceWebsockets)
            tailnet.node.setDirectBlocked(manifest.disableDirectConnections)
            return tailnet
        }
        let tailnet = try makeTailnet(id, manifest)
        self.tailnet = tailnet
        return tailnet
    }

    /// `~` is the home; `$VAR` comes from the agent's environment; what is relative starts at the home.
    func expandedDirectory(_ directory: String) -> String {
        let environment = currentEnvironment
        let home = environment.account.home
        guard !directory.isEmpty else { return home }
        let process = Dictionary(environment.processVariables.map { ($0.name, $0.value) }) { first, _ in first
        }
        var path = SSHEnvironment.expand(directory) { $0 == "HOME" ? home : process[$0] ?? "" }
        if path == "~" { path = home }
        if path.hasPrefix("~/") { path = home + path.dropFirst() }
        return path.hasPrefix("/") ? path : "\(home)/\(path)"
    }

    private func makeTailnet(_ id: RawUUID, _ manifest: AgentManifest) throws -> Tailnet {
        var configuration = Tailnet.Configuration.agent(
            id, client: client, serverURL: options.serverURL, logger: logger)
        configuration.derpMap = DERPMap(manifest.derpMap)
        configuration.forcesWebSockets = manifest.derpForceWebsockets
        configuration.blocksDirect = manifest.disableDirectConnections
        configuration.listenPort = options.listenPort
        let tailnet = try Tailnet(configuration)
        let ssh = SSHService(sshConfiguration(manifest))
        self.ssh = ssh
        let terminals = TerminalService(terminalConfiguration())
        self.terminals = terminals
        let http = AgentHTTP(
            home: currentEnvironment.account.home, own: { [self] in ownNode.withLock { $0 } },
            status: { try? await tailnet.node.status() },
            recordings: { (try? await tailnet.node.recordings()) ?? [] })
        let listeners = MeshListeners(
            node: tailnet.node, departures: tailnet.departures, ssh: ssh, terminals: terminals, http: http,
            logger: logger)
        newJobs.yield { await tailnet.run() }
        newJobs.yield { await listeners.run() }
        newJobs.yield { await IdleMemory(node: tailnet.node).run() }
        newJobs.yield { [self] in
            for await own in tailnet.node.ownNodeUpdates() {
                logger.debug(
                    "own node", metadata: ["home": "\(own.homeRegion)", "endpoints": "\(own.endpoints)"])
                ownNode.withLock { $0 = own }
            }
        }
        return tailnet
    }

    private func sshConfiguration(_ manifest: AgentManifest) -> SSHService.Configuration {
        let key = HostKey(
            owner: manifest.ownerUsername, workspace: manifest.workspaceName, agent: manifest.agentName)
        var configuration = SSHService.Configuration(hostKey: key) { [self] in currentEnvironment }
        let (connections, logger) = (connections, logger)
        configuration.report = { connections.report($0) }
        configuration.log = { logger.info("\($0)") }
        let seconds = max(0, min(options.sshMaxTimeout.components.seconds, 1 << 30))
        configuration.silenceLimitNanoseconds = UInt64(seconds) * 1_000_000_000
        return configuration
    }

    private func terminalConfiguration() -> TerminalService.Configuration {
        var configuration = TerminalService.Configuration { [self] in currentEnvironment }
        let (connections, logger) = (connections, logger)
        configuration.report = { connections.report($0) }
        configuration.log = { logger.info("\($0)") }
        return configuration
    }

    // MARK: - Scripts

    /// The first manifest was accepted by the server: run the start scripts, once in the agent's life.
    func start() {
        guard let manifest, !hasStarted else { return }
        hasStarted = true
        lifecycle.set(.starting)
        if manifest.gitAuthConfigs > 0 {
            let environment = currentEnvironment
            EditorSettings.preferAskpass(
                home: environment.account.home,
                dataHome: environment.processVariables.first { $0.name == "XDG_DATA_HOME" }?.value)
        }
        let set = manifest.scripts.filter(\.runOnStart)
        let cron = CronRunner(manifest.scripts) { [logger] script in
            logger.warning("schedule cannot be read", metadata: ["cron": "\(script.cron)"])
        }
        newJobs.yield { [self] in
            let outcome = await scripts.run(set, .start, currentEnvironment)
            switch outcome {
            case .ok: lifecycle.set(.ready)
            case .timedOut: lifecycle.set(.startTimeout)
            case .failed: lifecycle.set(.startError)
            }
            await cron.run { [self] script in _ = await scripts.run([script], .cron, currentEnvironment) }
        }
    }

    private var hasStarted = false

    // MARK: - End

    /// Says goodbye, runs the stop scripts, and waits up to 5 s until the server knows. agent.md §4.6.
    func shutDown() async {
        lifecycle.set(.shuttingDown)
        ssh?.stop()
        terminals?.stop()
        let stopped = ContinuousClock.now + .seconds(5)
        while (ssh?.connectionCount ?? 0) + (terminals?.count ?? 0) > 0, ContinuousClock.now < stopped {
            do { try await Task.sleep(for: .milliseconds(20)) } catch { break }
        }
        await tailnet?.leave()
        let set = manifest?.scripts.filter(\.runOnStop) ?? []
        switch await scripts.run(set, .stop, currentEnvironment) {
        case .ok: lifecycle.set(.off)
        case .timedOut: lifecycle.set(.shutdownTimeout)
        case .failed: lifecycle.set(.shutdownError)
        }
        guard manifest != nil else { return }  // never connected: nobody to tell
        let end = ContinuousClock.now + .seconds(5)
        while !(lifecycle.isDelivered && logs.isEmpty), ContinuousClock.now < end {
            do { try await Task.sleep(for: .milliseconds(20)) } catch { break }
        }
    }

    /// Ends what `shutDown` left.
    func close() async {
        newJobs.finish()
        await tailnet?.close()
    }
}

/// Why an agent cannot go on with a connection.
enum AgentError: Error, Hashable, CustomStringConvertible {
    case noAgentID

    var description: String { "the manifest has no agent id" }
}
