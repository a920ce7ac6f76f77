// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
public import Mesh
internal import Resume
internal import Synchronization

/// A client's resumable stream to a port of an agent: it dials again for as long as its patience lasts. Any task may
/// use it.
public final class ResumingStream: Sendable {
    /// The agent's port for resumable streams. Ports below 9 are the agent's own; nobody listens there in a workspace.
    public static let port: UInt16 = 8
    /// 8 s for one attempt to dial.
    private static let dialLimit = Duration.seconds(8)
    /// A carrier that breaks before the answer is a lost datagram or a restarted relay; three in a row are not.
    private static let attemptLimit = 3

    /// For people.
    public enum Status: Hashable, Sendable {
        /// Bytes flow.
        case connected
        /// The carrier was lost; another one is being made, for the how manieth time.
        case lost(attempt: Int)
        /// The agent's side has ended, and all that it said was delivered.
        case peerFinished
    }

    /// What became of the wish for a stream.
    public enum Opening: Sendable {
        case stream(ResumingStream)
        /// The agent knows no resumable streams: it need not be asked again.
        case unknown
        /// The agent has no room for one, or did not answer: a plain stream will do this time.
        case unavailable
    }

    private let loop: Mutex<ResumeLoop?>
    private let outcome = Outcome()
    private let events: AsyncStream<ResumeLoop.Event>.Continuation
    private let work = Mutex<Task<Void, Never>?>(nil)

    /// Asks the agent for a stream to `port` and moves bytes between it and the local descriptors: a socket, or one
    /// to read and one to write. Without a stream, `unused` has the descriptors back, untouched.
    ///
    /// - Parameters:
    ///   - address: the agent in the mesh.
    ///   - status: told on each change, in order.
    public static func open(
        _ node: Node, _ address: IPAddress, port: UInt16, local: [Int32],
        patience: ResumeLoop.Patience = .init(), unused: inout [Int32],
        status: @escaping @Sendable (Status) -> Void = { _ in }
    ) async throws -> Opening {
        unused = local
        for attempt in 1...attemptLimit {
            guard let carrier = try await firstCarrier(node, address) else { return .unknown }
            let (events, continuation) = AsyncStream.makeStream(
                of: ResumeLoop.Event.self, bufferingPolicy: .bufferingNewest(64))
            let loop = try ResumeLoop(.client(port: port), patience: patience) { continuation.yield($0) }
            let descriptors = unused
            unused = []
            try loop.start(
                reading: OwnedDescriptor(taking: descriptors[0]),
                writing: descriptors.count > 1 ? OwnedDescriptor(taking: descriptors[1]) : nil)
            loop.give(consume carrier)
            switch await firstNews(events) {
            case .attached?:
                let stream = ResumingStream(loop, continuation)
                stream.follow(events, node, address, status)
                return .stream(stream)
            case .ended(.notResumable)?:
                unused = loop.takeBack()
                return .unknown
            case .ended(.busy)?:
                unused = loop.takeBack()
                return .unavailable
            case .ended(.unanswered)?:
                unused = loop.takeBack()
                if attempt == attemptLimit { return .unavailable }
            case .ended(.refused)?: throw NodeError.refused
            case nil:
                loop.stop()
                throw CancellationError()
            default: throw NodeError.closed
            }
        }
        return .unavailable
    }

    /// The event that decides about a new stream; nil when its task was cancelled.
    private static func firstNews(_ events: AsyncStream<ResumeLoop.Event>) async -> ResumeLoop.Event? {
        for await event in events {
            switch event {
            case .attached, .ended: return event
            case .detached, .peerFinished: continue
            }
        }
        return nil
    }

    private init(_ loop: ResumeLoop, _ events: AsyncStream<ResumeLoop.Event>.Continuation) {
        self.loop = Mutex(loop)
        self.events = events
    }

    /// Waits until it is over.
    public func ended() async -> ResumeLoop.End { await outcome.value() }

    /// Gives it up.
    public func stop() { loop.withLock { $0 }?.stop() }

    // MARK: Details

    /// A refusal means a peer without such streams; everything else is an error of the way to it.
    private static func firstCarrier(_ node: Node, _ address: IPAddress) async throws -> OwnedDescriptor? {
        do {
            return try await node.dial(SocketAddress(address, port: port))
        } catch NodeError.refused {
            return nil
        }
    }

    /// One task per stream; ends with it.
    private func follow(
        _ events: AsyncStream<ResumeLoop.Event>, _ node: Node, _ address: IPAddress,
        _ status: @escaping @Sendable (Status) -> Void
    ) {
        let task = Task {
            var attempts = 0
            for await event in events {
                switch event {
                case .attached:
                    attempts = 0
                    status(.connected)
                case .peerFinished: status(.peerFinished)
                case .detached:
                    attempts += 1
                    status(.lost(attempt: attempts))
                    await redial(node, address, &attempts, status)
                case .ended(let end):
                    outcome.set(end)
                    loop.withLock { $0 = nil }
                    return
                }
            }
        }
        work.withLock { $0 = task }
    }

    /// Dials until there is a carrier. The loop says `.detached` again when its greeting is not answered.
    private func redial(
        _ node: Node, _ address: IPAddress, _ attempts: inout Int,
        _ status: @escaping @Sendable (Status) -> Void
    ) async {
        while let loop = loop.withLock({ $0 }), !loop.hasEnded {
            if attempts > 1 {
                let pause = min(0.25 * Double(1 << min(attempts - 2, 5)), 5)
                do { try await Task.sleep(for: .seconds(pause)) } catch { return }
            }
            if let number = await Self.dial(node, address) {
                return loop.give(OwnedDescriptor(taking: number))
            }
            attempts += 1
            status(.lost(attempt: attempts))
        }
    }

    /// One attempt. The dial itself cannot be called off; what comes of it late is closed.
    private static func dial(_ node: Node, _ address: IPAddress) async -> Int32? {
        let first = FirstAnswer()
        let late = Task {
            do { try await Task.sleep(for: dialLimit) } catch { return }
            _ = first.give(nil)
        }
        defer { late.cancel() }
        return await withCheckedContinuation { continuation in
            first.wait(continuation)
            Task {
                var number: Int32?
                do {
                    number = try await node.dial(SocketAddress(address, port: port)).release()
                } catch {
                    number = nil  // the pause before the next attempt follows, whatever the reason
                }
                if !first.give(number), let number { OwnedDescriptor(taking: number).close() }
            }
        }
    }
}

/// Resumes a continuation with the first of several answers.
private final class FirstAnswer: Sendable {
    private let continuation = Mutex<CheckedContinuation<Int32?, Never>?>(nil)

    func wait(_ continuation: CheckedContinuation<Int32?, Never>) {
        self.continuation.withLock { $0 = continuation }
    }

    /// False: it was answered before.
    func give(_ number: Int32?) -> Bool {
        let waiting = continuation.withLock { waiting in
            defer { waiting = nil }
            return waiting
        }
        waiting?.resume(returning: number)
        return waiting != nil
    }
}

/// A value that is set once and can be awaited by many.
final class Outcome: Sendable {
    private struct State {
        var value: ResumeLoop.End?
        var waiting: [CheckedContinuation<ResumeLoop.End, Never>] = []
    }

    private let state = Mutex(State())

    func set(_ value: ResumeLoop.End) {
        let waiting = state.withLock { state in
            state.value = state.value ?? value
            defer { state.waiting = [] }
            return state.waiting
        }
        for continuation in waiting { continuation.resume(returning: value) }
    }

    func value() async -> ResumeLoop.End {
        await withCheckedContinuation { continuation in
            let value = state.withLock { state in
                if state.value == nil { state.waiting.append(continuation) }
                return state.value
            }
            if let value { continuation.resume(returning: value) }
        }
    }
}
