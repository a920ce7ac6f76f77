// SPDX-License-Identifier: Apache-2.0

internal import Dispatch
internal import Glibc
internal import LinuxIO
internal import Logging
internal import NIOPosix
internal import NIOSSL

/// `coder server`: makes everything, runs until SIGINT or SIGTERM, and takes it down again in reverse order.
public enum ServerProgram {
    /// Runs the server. Returns the exit status: 0 after an orderly stop, 1 when it could not start.
    /// `say` gets the lines for people (standard output), `complain` those about failures (standard error).
    public static func run(
        _ options: ServerOptions, say: @escaping @Sendable (String) -> Void,
        complain: @escaping @Sendable (String) -> Void
    ) async -> Int32 {
        let logger = makeLogger(options.logLevel)
        DescriptorLimit.raise()
        return await LifeCycle.run(
            start: { try await RunningServer.start(options, logger: logger, say: say) },
            started: { server in
                say("\nView the Web UI and log in at: \(server.accessURL)\n")
                say("==> Logs will stream in below (press ctrl+c to gracefully exit):")
            }, stopping: "Stopping; press ctrl+c again to end at once.", say: say, complain: complain)
    }

    static func makeLogger(_ level: String) -> Logger {
        var logger = Logger(label: "coder", factory: { StreamLogHandler.standardError(label: $0) })
        logger.logLevel = Logger.Level(rawValue: level) ?? .info
        return logger
    }
}

/// SIGINT and SIGTERM as something to wait for.
final class StopSignals: @unchecked Sendable {
    // The sources are made once and only resumed and cancelled afterwards.
    private let sources: [any DispatchSourceSignal]
    private let stream: AsyncStream<Void>
    private let continuation: AsyncStream<Void>.Continuation

    init() {
        let (stream, continuation) = AsyncStream.makeStream(
            of: Void.self, bufferingPolicy: .bufferingNewest(1))
        self.stream = stream
        self.continuation = continuation
        sources = [SIGINT, SIGTERM].map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler { continuation.yield() }
            source.resume()
            return source
        }
        signal(SIGPIPE, SIG_IGN)
    }

    /// Returns at the first signal.
    func wait() async {
        var iterator = stream.makeAsyncIterator()
        await iterator.next()
    }

    /// Gives the signals their usual effect back, for people who do not want to wait.
    func endAtOnceNextTime() {
        for source in sources { source.cancel() }
        signal(SIGINT, SIG_DFL)
        signal(SIGTERM, SIG_DFL)
    }
}
