// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Synchronization
internal import Tailnet

/// While the path to an agent is lost, asks the server now and then whether there is still something to wait for
/// (`WorkspaceEnd`). One per stream; any task may use it.
final class ReturnWatch: Sendable {
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
            let end = WorkspaceEnd(
                status: answer.status, answer.body, since: workspace.build["id"].text, when: .done)
            return end.map { "the workspace \($0.words)" }
        } catch {
            return nil  // the server is out of reach too: nothing is known
        }
    }
}
