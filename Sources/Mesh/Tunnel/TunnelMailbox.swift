// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Synchronization

/// Changes and questions on their way to the tunnel's thread.
final class TunnelMailbox: Sendable {
    /// Runs on the tunnel's thread.
    struct Message: Sendable {
        /// Does the work.
        let run: @Sendable (inout TunnelLoop) -> Void
        /// Called instead when the tunnel ends first.
        let cancel: @Sendable () -> Void
    }

    private struct State {
        var messages: [Message] = []
        var isStopping = false
        var isClosed = false
    }

    private let state = Mutex(State())
    /// Readable when messages wait.
    let wakeUp: WakeUp

    init() throws(SystemError) { wakeUp = try WakeUp() }

    /// False when the tunnel has ended.
    func post(_ message: Message) -> Bool {
        let isAccepted = state.withLock { state in
            guard !state.isClosed, !state.isStopping else { return false }
            state.messages.append(message)
            return true
        }
        if isAccepted { wakeUp.signal() }
        return isAccepted
    }

    /// Asks the thread to end.
    func stop() {
        state.withLock { $0.isStopping = true }
        wakeUp.signal()
    }

    /// What waits, and whether to go on afterwards.
    func takeAll() -> (messages: [Message], isStopping: Bool) {
        wakeUp.drain()
        return state.withLock { state in
            let messages = state.messages
            state.messages = []
            return (messages, state.isStopping)
        }
    }

    /// Refuses everything from now on and cancels what waits.
    func close() {
        let rest = state.withLock { state in
            state.isClosed = true
            let messages = state.messages
            state.messages = []
            return messages
        }
        for message in rest { message.cancel() }
    }
}
