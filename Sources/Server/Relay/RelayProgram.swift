// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Logging

/// `coder relay`: a relay without a server around it, until SIGINT or SIGTERM.
public enum RelayProgram {
    /// Runs it. Returns the exit status: 0 after an orderly stop, 1 when it could not start.
    public static func run(
        _ options: RelayOptions, say: @escaping @Sendable (String) -> Void,
        complain: @escaping @Sendable (String) -> Void
    ) async -> Int32 {
        let logger = ServerProgram.makeLogger(options.logLevel)
        DescriptorLimit.raise()
        return await LifeCycle.run(
            start: { try await RunningRelay.start(options, logger: logger, say: say) }, started: { _ in },
            stopping: "Stopping: clients are told to connect elsewhere; press ctrl+c to end at once.",
            say: say, complain: complain)
    }
}
