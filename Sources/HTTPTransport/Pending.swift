// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import Synchronization

/// A value that the event loop produces for one waiting task, once: the first of answer, failure, time-out and
/// cancellation wins, and the losers' channel is closed. Any thread may call it.
final class Pending<Value: Sendable>: Sendable {
    private struct State {
        var waiter: CheckedContinuation<Result<Value, HTTPError>, Never>?
        var result: Result<Value, HTTPError>?
        var isDone = false
        var channel: (any Channel)?
        var timer: Scheduled<Void>?
    }

    let origin: String
    private let state = Mutex(State())

    init(origin: String) { self.origin = origin }

    /// The channel to close when the attempt is given up. Closes it at once when that has happened already.
    func attach(_ channel: any Channel) {
        let isGivenUp = state.withLock { state in
            guard !state.isDone else { return true }
            state.channel = channel
            return false
        }
        if isGivenUp { channel.close(promise: nil) }
    }

    /// Fails with a time-out after `timeout`.
    func expire(after timeout: Duration, on loop: any EventLoop, doing what: String) {
        let timer = loop.scheduleTask(in: TimeAmount(timeout)) {
            self.fail(HTTPError(.timedOut, origin: self.origin, detail: what))
        }
        let isDone = state.withLock { state in
            if !state.isDone { state.timer = timer }
            return state.isDone
        }
        if isDone { timer.cancel() }
    }

    /// Delivers the value. False when the attempt was given up before: the caller then drops what it holds.
    @discardableResult
    func succeed(_ value: Value) -> Bool { finish(.success(value)) != nil }

    /// Delivers a failure, and closes the channel.
    func fail(_ error: any Error) {
        guard let channel = finish(.failure(HTTPError.wrapping(error, origin: origin))) else { return }
        channel.value?.close(promise: nil)
    }

    /// Waits. To be called once; cancellation of the task gives the attempt up.
    func value() async throws(HTTPError) -> Value {
        let result = await withTaskCancellationHandler {
            await withCheckedContinuation { waiter in
                let ready = state.withLock { state in
                    if state.result == nil { state.waiter = waiter }
                    return state.result
                }
                if let ready { waiter.resume(returning: ready) }
            }
        } onCancel: {
            fail(HTTPError(.cancelled, origin: origin))
        }
        return try result.get()
    }

    private struct Loser { var value: (any Channel)? }

    private func finish(_ result: Result<Value, HTTPError>) -> Loser? {
        let outcome = state.withLock {
            state -> (Loser, CheckedContinuation<Result<Value, HTTPError>, Never>?)? in
            guard !state.isDone else { return nil }
            state.isDone = true
            state.timer?.cancel()
            let outcome = (Loser(value: state.channel), state.waiter)
            if state.waiter == nil { state.result = result }
            state.channel = nil
            state.waiter = nil
            return outcome
        }
        outcome?.1?.resume(returning: result)
        return outcome?.0
    }
}

extension TimeAmount {
    init(_ duration: Duration) {
        let parts = duration.components
        self = .nanoseconds(
            Int64(clamping: parts.seconds).multipliedClamping(1_000_000_000)
                &+ parts.attoseconds / 1_000_000_000)
    }
}

extension Int64 {
    fileprivate func multipliedClamping(_ factor: Int64) -> Int64 {
        let (product, overflow) = multipliedReportingOverflow(by: factor)
        return overflow || product > .max / 2 ? .max / 2 : product
    }
}
