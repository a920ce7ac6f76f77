// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh
internal import Synchronization
internal import Tailnet

/// A stream to a port of the agent: one that outlives its connections where the agent knows how, a plain one else.
enum AgentStream: Sendable {
    case resuming(ResumingStream)
    case plain(MeshStream)

    var isResuming: Bool {
        if case .resuming = self { return true }
        return false
    }

    /// Waits until it is over, and says why when not every byte arrived.
    func ended() async -> String? {
        switch self {
        case .resuming(let stream):
            switch await stream.ended() {
            case .finished, .reset: return nil
            case .forgotten: return "the workspace's agent was restarted, or gave the session up"
            case .abandoned: return "the workspace was out of reach for too long"
            case .refused, .notResumable, .unanswered, .busy: return "the workspace refused it"
            case .failed(let error): return "\(error)"
            }
        case .plain(let stream):
            switch await stream.ended() {
            case .finished, .closed: return nil
            case .reset: return "the workspace closed it"
            case .timedOut: return "the workspace does not answer"
            }
        }
    }

    /// Ends it at once.
    func stop() {
        switch self {
        case .resuming(let stream): stream.stop()
        case .plain(let stream): stream.abort()
        }
    }

    /// Waits a moment for the last bytes, so that the agent is not left with half a stream.
    func settle(within limit: Duration) async {
        guard isResuming else { return }
        await withTaskGroup(of: Void.self) { group in
            group.addTask { _ = await ended() }
            group.addTask {
                do { try await Task.sleep(for: limit) } catch { return }
                stop()
            }
            await group.next()
            group.cancelAll()
        }
    }
}

/// Remembers that an agent knows no resumable streams, so that it is asked once.
final class PlainAgent: Sendable {
    private let flag: Atomic<Bool>
    init(_ isPlain: Bool) { flag = Atomic(isPlain) }
    var isPlain: Bool {
        get { flag.load(ordering: .relaxed) }
        set { flag.store(newValue, ordering: .relaxed) }
    }
}

extension AgentLink {
    /// Opens a stream between `port` of the agent and local descriptors: a socket, or one to read and one to write.
    /// Takes them over even on failure.
    func stream(
        to port: UInt16, local: [Int32],
        status: @escaping @Sendable (ResumingStream.Status) -> Void = { _ in }
    ) async throws -> AgentStream {
        var left = local
        do {
            if !plainAgent.isPlain {
                switch try await ResumingStream.open(
                    node, address, port: port, local: local, unused: &left, status: status)
                {
                case .stream(let stream): return .resuming(stream)
                case .unknown: plainAgent.isPlain = true
                case .unavailable: break
                }
            }
        } catch {
            for number in left { OwnedDescriptor(taking: number).close() }
            throw error
        }
        let writing = left.count > 1 ? OwnedDescriptor(taking: left[1]) : nil
        return .plain(
            try await node.dial(
                SocketAddress(address, port: port), bridging: OwnedDescriptor(taking: left[0]),
                writing: writing))
    }
}
