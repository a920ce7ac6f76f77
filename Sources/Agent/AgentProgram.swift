// SPDX-License-Identifier: Apache-2.0

public import HTTPTransport
internal import Logging
internal import Synchronization
internal import Tailnet

/// `coder agent`: connects for ever, and ends cleanly at SIGTERM or SIGINT.
public enum AgentProgram {
    /// Runs until a stop signal has been dealt with. Makes logger and HTTP client; everything else hangs on them.
    public static func run(_ options: AgentOptions, proxies: ProxySettings = .none) async {
        let file = RotatingFile(path: "\(options.logDirectory)/coder-agent.log")
        let level: Logger.Level = options.isVerbose ? .debug : .info
        let logger = Logger(label: "agent") { _ in AgentLogHandler(file: file, level: level) }
        logger.info(
            "starting agent", metadata: ["version": "\(options.version)", "url": "\(options.serverURL)"])
        for option in options.ignored {
            logger.warning("option is accepted but does nothing here", metadata: ["option": "\(option)"])
        }
        var configuration = HTTPClient.Configuration()
        configuration.headers = options.headers
        configuration.proxies = proxies
        let client = HTTPClient(configuration: configuration)
        let runtime = AgentRuntime(options: options, client: client, logger: logger)
        await run(runtime, logger)
        await client.shutDown()
        logger.info("agent stopped")
    }

    private static func run(_ runtime: AgentRuntime, _ logger: Logger) async {
        let signals = StopSignals()
        await withDiscardingTaskGroup { group in
            group.addTask {
                await withDiscardingTaskGroup { jobs in
                    for await job in runtime.jobs { jobs.addTask { await job() } }
                    jobs.cancelAll()
                }
            }
            group.addTask { await stayConnected(runtime, logger) }
            await signals.wait()
            logger.info("stopping")
            await runtime.shutDown()
            await runtime.close()
            group.cancelAll()
        }
    }

    /// Connects again and again; pauses of 100 ms to 10 s start over only after the server took the agent in.
    private static func stayConnected(_ runtime: AgentRuntime, _ logger: Logger) async {
        var generator = SystemRandomNumberGenerator()
        var backoff = Backoff(from: .milliseconds(100), to: .seconds(10), seed: generator.next())
        while !Task.isCancelled {
            let worked = WorkFlag()
            do {
                try await AgentSession(runtime: runtime).run { worked.raise() }
            } catch {
                if Task.isCancelled { return }
                logger.warning("connection to the server lost", metadata: ["error": "\(error)"])
            }
            if worked.isRaised { backoff.reset() }
            do { try await Task.sleep(for: backoff.next()) } catch { return }
        }
    }
}

/// Raised once.
private final class WorkFlag: Sendable {
    private let flag = Atomic<Bool>(false)
    var isRaised: Bool { flag.load(ordering: .relaxed) }
    func raise() { flag.store(true, ordering: .relaxed) }
}
