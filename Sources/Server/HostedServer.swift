// SPDX-License-Identifier: Apache-2.0

/// A server inside another program, without signals and terminal: for tests.
package final class HostedServer: Sendable {
    private let server: RunningServer

    /// Starts it, or throws what `coder server` would complain about.
    package init(_ options: ServerOptions) async throws {
        server = try await RunningServer.start(
            options, logger: ServerProgram.makeLogger("critical"), say: { _ in })
    }

    /// TCP ports that were bound: HTTP first, then HTTPS.
    package var ports: [Int] { server.ports }

    /// Stops it as `coder server` does at a signal.
    package func stop() async { await server.stop() }

    /// Runs a statement on its database, to set up what no request can: time passed, for one.
    package func execute(_ sql: String) async throws { try await server.execute(sql) }

    /// Deletes records that are old enough now.
    package func purge() async throws { try await server.purge() }

    /// Connections of relayed clients, and bad ones that were dropped.
    package var relay: (clients: Int, refused: UInt64) { server.relayState }

    /// Asks all edge relays now how they are.
    package func checkRelays() async { await server.checkRelays() }

    /// Open RPC sessions.
    package var sessionCount: Int { server.sessionCount }
}
