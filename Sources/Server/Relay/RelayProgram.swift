// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Logging
internal import Mesh
internal import NIOPosix

/// `coder relay`: a relay without a server around it, until SIGINT or SIGTERM.
public enum RelayProgram {
    /// Runs it. Returns the exit status: 0 after an orderly stop, 1 when it could not start.
    public static func run(
        _ options: RelayOptions, say: @escaping @Sendable (String) -> Void,
        complain: @escaping @Sendable (String) -> Void
    ) async -> Int32 {
        let logger = ServerProgram.makeLogger(options.logLevel)
        // One descriptor per client, two for each with TLS.
        DescriptorLimit.raise()
        do {
            let signals = StopSignals()
            let relay = try await RunningRelay.start(options, logger: logger, say: say)
            await withTaskGroup(of: Void.self) { group in
                group.addTask { await signals.wait() }
                group.addTask { await relay.failed() }
                await group.next()
                group.cancelAll()
            }
            say("Stopping: clients are told to connect elsewhere; press ctrl+c to end at once.")
            signals.endAtOnceNextTime()
            await relay.stop()
            say("Stopped.")
            return relay.hasFailed ? 1 : 0
        } catch {
            complain("error: \(error)")
            return 1
        }
    }
}
