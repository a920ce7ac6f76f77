// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
internal import Synchronization

/// How a bridged stream or flow ended.
public enum StreamEnd: Hashable, Sendable {
    /// Both sides said that they are done.
    case finished
    /// The peer reset it, or local data could not be delivered any more.
    case reset
    /// The peer did not answer for too long.
    case timedOut
    /// The node was closed, or the flow was idle.
    case closed
}

/// A TCP stream of the mesh whose bytes the engine moves between the peer and a descriptor. Only a name to wait
/// for: letting go of it does not close anything. Any task may use it.
public final class MeshStream: Sendable {
    /// Own address and port.
    public let local: SocketAddress
    /// The peer's address and port.
    public let remote: SocketAddress
    let token: UInt64
    private let hub: NodeHub

    init(hub: NodeHub, token: UInt64, local: SocketAddress, remote: SocketAddress) {
        self.hub = hub
        self.token = token
        self.local = local
        self.remote = remote
    }

    /// Waits until the stream is over and its descriptors are closed. Returns at once if that already happened.
    public func ended() async -> StreamEnd { await hub.replies.ended(token) }

    /// Resets the stream and closes its descriptors.
    public func abort() { hub.queue.post(.abort(token: token)) }
}

/// A TCP stream that a peer opened. Take it with `descriptor()` or `bridge`; refused with a reset otherwise, at the
/// latest when the last reference goes away.
public final class IncomingStream: Sendable {
    /// Own address and port that the peer connected to.
    public let local: SocketAddress
    /// The peer's address and port.
    public let remote: SocketAddress
    private let hub: NodeHub
    private let token: UInt64
    private let isTaken = Atomic(false)

    init(hub: NodeHub, token: UInt64, local: SocketAddress, remote: SocketAddress) {
        self.hub = hub
        self.token = token
        self.local = local
        self.remote = remote
    }

    deinit { reject() }

    /// One end of a socket pair that carries the stream's bytes.
    public func descriptor() throws(NodeError) -> OwnedDescriptor {
        let pair = try Node.socketPair()
        let (mine, theirs) = pair.release()
        try attach(theirs, theirs, orClose: mine)
        return OwnedDescriptor(taking: mine)
    }

    /// Gives the engine descriptors to move the bytes with: a connected socket, or one to read and one to write.
    @discardableResult
    public func bridge(
        reading: consuming OwnedDescriptor, writing: consuming OwnedDescriptor? = nil
    ) throws(NodeError) -> MeshStream {
        let read = reading.release()
        let write = writing.take()?.release() ?? read
        try attach(read, write, orClose: -1)
        return MeshStream(hub: hub, token: token, local: local, remote: remote)
    }

    /// Refuses the stream with a reset.
    public func reject() {
        if !isTaken.exchange(true, ordering: .acquiringAndReleasing) { hub.queue.post(.abort(token: token)) }
    }

    /// There is no room to hold it until somebody takes it.
    func postpone() {
        if !isTaken.exchange(true, ordering: .acquiringAndReleasing) {
            hub.queue.post(.postpone(token: token))
        }
    }

    private func attach(_ read: Int32, _ write: Int32, orClose other: Int32) throws(NodeError) {
        precondition(
            !isTaken.exchange(true, ordering: .acquiringAndReleasing), "an incoming stream is taken once")
        if !hub.queue.post(.attach(token: token, reading: read, writing: write)) {
            if other >= 0 { OwnedDescriptor(taking: other).close() }
            throw .closed
        }
    }
}

/// UDP datagrams between one address of a peer and one port here. Works like `IncomingStream`; the descriptor keeps
/// the borders of datagrams (`SOCK_SEQPACKET`, or a connected UDP socket given to `bridge`).
public final class IncomingFlow: Sendable {
    /// Own address and port that the peer sends to.
    public let local: SocketAddress
    /// The peer's address and port.
    public let remote: SocketAddress
    private let hub: NodeHub
    private let token: UInt64
    private let isTaken = Atomic(false)

    init(hub: NodeHub, token: UInt64, local: SocketAddress, remote: SocketAddress) {
        self.hub = hub
        self.token = token
        self.local = local
        self.remote = remote
    }

    deinit { reject() }

    /// One end of a `SOCK_SEQPACKET` pair: each read and write is one datagram.
    public func descriptor() throws(NodeError) -> OwnedDescriptor {
        let (mine, theirs) = try Node.datagramPair().release()
        if let error = attach(theirs) {
            OwnedDescriptor(taking: mine).close()
            throw error
        }
        return OwnedDescriptor(taking: mine)
    }

    /// Gives the engine a connected datagram socket.
    public func bridge(_ socket: consuming OwnedDescriptor) throws(NodeError) {
        if let error = attach(socket.release()) { throw error }
    }

    /// Forgets the flow: further datagrams make a new one.
    public func reject() {
        if !isTaken.exchange(true, ordering: .acquiringAndReleasing) { hub.queue.post(.abort(token: token)) }
    }

    private func attach(_ number: Int32) -> NodeError? {
        precondition(
            !isTaken.exchange(true, ordering: .acquiringAndReleasing), "an incoming flow is taken once")
        return hub.queue.post(.attach(token: token, reading: number, writing: number)) ? nil : .closed
    }
}
