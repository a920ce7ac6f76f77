// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Synchronization
internal import Tailnet

/// What a person reads while a connection is lost: the first line of the terminal, as prompts are mostly in the last;
/// or, where there is no terminal, one line when it is lost and one when it is back. Any task may call `show`. A
/// terminal is written to by the session alone, which is woken up and asks for `next`: nobody else knows when the
/// program's output may be interrupted.
final class LossNotice: Sendable {
    private enum Place {
        case lines(Console)
        case screen(WakeUp)
    }

    private struct State {
        var line = LossLine()
        var ticker: Task<Void, Never>?
    }

    private let place: Place
    private let state = Mutex(State())

    /// Lines on standard error.
    init(_ console: Console) { place = .lines(console) }

    /// The first line of a terminal that a program draws on.
    init(screenOf wakeUp: WakeUp) { place = .screen(wakeUp) }

    func show(_ status: ResumingStream.Status) {
        let now = Clock.monotonicNanoseconds()
        state.withLock { state in
            switch status {
            case .lost: state.line.lost(now)
            case .connected: state.line.connected(now)
            case .peerFinished: return
            }
        }
        switch place {
        case .screen(let wakeUp): wakeUp.signal()
        case .lines(let console): write(to: console)
        }
    }

    /// What is to be drawn now, for the session; `isSafe`: whether the program's output can be interrupted here.
    func next(_ now: UInt64, isSafe: Bool) -> LossLine.Text? {
        state.withLock { $0.line.next(now, isSafe: isSafe) }
    }

    /// When `next` has more to say.
    func deadline(isSafe: Bool) -> UInt64? { state.withLock { $0.line.deadline(isSafe: isSafe) } }

    /// Without a terminal: the first of the lost lines, and the one when it is back.
    private func write(to console: Console) {
        let text = state.withLock { state -> LossLine.Text? in
            if state.line.isLost {
                if state.ticker == nil { state.ticker = Task { await self.tick(console) } }
                return nil
            }
            state.ticker?.cancel()
            state.ticker = nil
            return state.line.next(Clock.monotonicNanoseconds(), isSafe: true)
        }
        if let text { console.note(text.words) }
    }

    private func tick(_ console: Console) async {
        do { try await Task.sleep(for: .nanoseconds(Int64(LossLine.patience))) } catch { return }
        let text = state.withLock { $0.line.next(Clock.monotonicNanoseconds(), isSafe: true) }
        if text != nil { console.note("connection lost, waiting…") }
    }
}

/// When which notice of a lost connection is due. Pure; times are nanoseconds.
package struct LossLine {
    /// A text, and whether the connection is there again.
    package struct Text: Equatable {
        package var words: String
        package var isBack: Bool
    }

    /// 500 ms: most losses are over before anybody noticed.
    package static let patience: UInt64 = 500_000_000
    private static let second: UInt64 = 1_000_000_000
    /// 2 s: a program that stopped in the middle of a sequence for longer than this gets its screen spoilt.
    private static let longestWait = 2 * second

    private enum State {
        case fine
        case lost(since: UInt64, due: UInt64, isTold: Bool)
        case back(since: UInt64, at: UInt64)
    }

    private var state = State.fine

    package init() {}

    package var isLost: Bool {
        if case .lost = state { return true }
        return false
    }

    package mutating func lost(_ now: UInt64) {
        guard !isLost else { return }
        state = .lost(since: now, due: now + Self.patience, isTold: false)
    }

    package mutating func connected(_ now: UInt64) {
        guard case .lost(let since, _, let isTold) = state else { return }
        state = isTold ? .back(since: since, at: now) : .fine
    }

    /// What to say now. `isSafe`: whether nothing is spoilt by it; else it waits for a while.
    package mutating func next(_ now: UInt64, isSafe: Bool) -> Text? {
        switch state {
        case .fine: return nil
        case .lost(let since, let due, _):
            guard now >= due, isSafe || now >= since + Self.longestWait else { return nil }
            state = .lost(since: since, due: now + Self.second, isTold: true)
            return Text(words: "connection lost, waiting \((now - since) / Self.second) s…", isBack: false)
        case .back(let since, let at):
            guard isSafe || now >= at + Self.longestWait else { return nil }
            state = .fine
            return Text(words: "connection is back after \((at - since) / Self.second) s", isBack: true)
        }
    }

    /// When `next` is to be asked at the latest.
    package func deadline(isSafe: Bool) -> UInt64? {
        switch state {
        case .fine: nil
        case .lost(let since, let due, _): isSafe ? due : max(due, since + Self.longestWait)
        case .back(_, let at): isSafe ? at : at + Self.longestWait
        }
    }
}
