// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// `coder netcheck --record <workspace>`: connects, and prints what the flight recorders of both sides hold of that.
/// The record of a connection that is running comes from its own process: `RecordOnSignal`.
enum NetcheckRecord {
    static func run(_ invocation: Invocation, _ client: APIClient) async throws -> Int32 {
        let name = try WorkspaceName(invocation.words[0])
        let workspace = try await client.workspace(name)
        let agent = try workspace.agent(named: name.agent)
        let link = try await AgentLink.open(invocation, client, agent)
        do {
            do {
                try await link.reach(agent.name, invocation.console, within: .seconds(15))
                // Long enough for probes, their repetition and the choice.
                try await Task.sleep(for: .seconds(3))
            } catch is CancellationError {
                throw CancellationError()
            } catch {
                invocation.console.note("\(error)")
            }
            invocation.console.say(try await link.records.json { invocation.console.note($0) }.compact)
            await link.close()
            return 0
        } catch {
            await link.close()
            throw error
        }
    }
}
