// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay

/// A relay process inside another program, without signals and terminal: for tests.
package final class HostedRelay: Sendable {
    private let relay: RunningRelay

    /// Starts it, or throws what `coder relay` would complain about.
    package init(_ options: RelayOptions) async throws {
        relay = try await RunningRelay.start(
            options, logger: ServerProgram.makeLogger("critical"), say: { _ in })
    }

    /// TCP ports that were bound: HTTP first, then HTTPS.
    package var ports: [Int] { relay.ports }

    /// Connections to other relays, and from other relays.
    package var mesh: (links: Int, watchers: Int) {
        let counters = relay.counters
        return (counters.links, counters.watchers)
    }

    /// Returns when the relay cannot go on.
    package func failed() async { await relay.failed() }

    /// Stops it as `coder relay` does at a signal.
    package func stop() async { await relay.stop() }
}
