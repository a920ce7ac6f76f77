// SPDX-License-Identifier: Apache-2.0

/// How long a command waits for an agent that is not connected. A person sees the waiting line and knows Ctrl-C; a
/// script, or an ssh that runs this program, is told after a while. `--wait=yes` waits in any case.
package struct AgentPatience {
    private let isEndless: Bool

    init(_ console: Console, wait policy: String) {
        isEndless = console.isErrorTerminal || policy == "yes"
    }

    /// Throws when it has been long enough.
    func check(_ agent: WorkspaceAgent, waited: Duration) throws {
        guard !isEndless, let limit = Self.limit(agent.status), waited >= limit else { return }
        var since = ""
        if agent.status == "disconnected", let time = Timestamp(agent.json["disconnected_at"].text) {
            since = " since \(shortDuration(time.age))"
        }
        throw CommandError(
            "the agent \"\(agent.name)\" of the workspace is not connected (\(agent.status)\(since)):"
                + " is its machine up, and does 'coder agent' run there?")
    }

    /// nil for an agent that is connected. One that has never been there may be on a machine that boots: it gets as
    /// long as the server itself gives it by default before it calls it late.
    package static func limit(_ status: String) -> Duration? {
        switch status {
        case "connecting": return .seconds(120)
        case "disconnected", "timeout": return .seconds(30)
        default: return nil
        }
    }
}
