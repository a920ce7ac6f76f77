// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Synchronization
internal import Tailnet

/// While the path to an agent is lost, asks the server now and then whether there is still something to wait for: an
/// agent that was stopped, deleted or built anew does not come back, however patient its streams are. One per stream;
/// any task may use it.
package final class ReturnWatch: Sendable {
    private struct State {
        var stream: AgentStream?
        var task: Task<Void, Never>?
        var reason: String?
    }

    private let client: APIClient
    private let workspace: Workspace
    /// 15 s between questions, the first after 5 s: short losses cost nothing.
    private let first = Duration.seconds(5), later = Duration.seconds(15)
    private let state = Mutex(State())

    init(_ client: APIClient, _ workspace: Workspace) {
        self.client = client
        self.workspace = workspace
    }

    deinit { state.withLock { $0.task }?.cancel() }

    /// The stream to end.
    func guards(_ stream: AgentStream) {
        let isOver = state.withLock { state in
            state.stream = stream
            return state.reason != nil
        }
        if isOver { stream.stop() }
    }

    /// Why the stream was ended; nil when it was not by this.
    var reason: String? { state.withLock { $0.reason } }

    func show(_ status: ResumingStream.Status) {
        state.withLock { state in
            switch status {
            case .lost:
                guard state.task == nil else { return }
                let pauses = (first, later)
                state.task = Task { [weak self] in
                    do {
                        try await Task.sleep(for: pauses.0)
                        while let self, await !self.mayStop() { try await Task.sleep(for: pauses.1) }
                    } catch { return }
                }
            case .connected:
                state.task?.cancel()
                state.task = nil
            case .peerFinished: break
            }
        }
    }

    /// Asks once. True: the stream was stopped.
    private func mayStop() async -> Bool {
        guard let reason = await verdict() else { return false }
        let stream = state.withLock { state in
            state.reason = reason
            return state.stream
        }
        stream?.stop()
        return true
    }

    private func verdict() async -> String? {
        do {
            let answer = try await client.raw("GET", "workspaces/\(workspace.id)")
            return Self.verdict(
                answer.status, try JSON.parse(answer.body), sessionBuild: workspace.build["id"].text)
        } catch {
            return nil  // the server is out of reach too, or a proxy answers for it: nothing is known
        }
    }

    /// What an answer about a workspace means for a session that began with this build; nil: it may come back. A
    /// workspace that is stopping is none of these: its agent ends the session when it is ready to.
    package static func verdict(_ status: Int, _ workspace: JSON, sessionBuild: String) -> String? {
        switch status {
        case 404 where workspace["message"].string != nil, 410: return "the workspace was deleted"
        case 200: break
        default: return nil
        }
        let build = workspace["latest_build"]
        switch build["status"].text {
        case "stopped": return "the workspace was stopped"
        case "deleted": return "the workspace was deleted"
        default: break
        }
        let isAnother = build["transition"].text == "start" && build["id"].text != sessionBuild
        return isAnother ? "the workspace was started anew" : nil
    }
}
