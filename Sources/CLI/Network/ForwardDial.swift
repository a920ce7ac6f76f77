// SPDX-License-Identifier: Apache-2.0

internal import Glibc
package import LinuxIO
internal import Synchronization

/// Connects to what a remote forward leads to, in a thread of its own: a name may take long to look up, and each of
/// its addresses is tried in turn. The session is woken up when it knows.
package final class ForwardDial: Sendable {
    enum Outcome {
        case pending
        /// The descriptor, once, for the caller to own.
        case connected(Int32)
        case failed(String)
    }

    /// 10 s for one address: a host behind this machine that takes longer is not there.
    private static let limitMilliseconds: Int32 = 10_000

    /// Where the thread leaves what it got, for a dial that may have been given up meanwhile.
    private final class Box: Sendable {
        struct State {
            var number: Int32?
            var failure: String?
            var isAbandoned = false
        }

        let state = Mutex(State())

        func put(_ number: Int32) {
            let isAbandoned = state.withLock { state in
                if !state.isAbandoned { state.number = number }
                return state.isAbandoned
            }
            if isAbandoned { OwnedDescriptor(taking: number).close() }
        }
    }

    private let box = Box()

    init(_ target: RemoteForward.Target, wakeUp: WakeUp) {
        let box = box
        do {
            try DedicatedThread(name: "forward") {
                do {
                    box.put(try Self.connect(target).release())
                } catch {
                    box.state.withLock { $0.failure = "\(error)" }
                }
                wakeUp.signal()
            }.detach()
        } catch {
            box.state.withLock { $0.failure = "\(error)" }
        }
    }

    deinit {
        let number = box.state.withLock { state in
            state.isAbandoned = true
            return state.number.take()
        }
        if let number { OwnedDescriptor(taking: number).close() }
    }

    func outcome() -> Outcome {
        box.state.withLock { state in
            if let number = state.number.take() { return .connected(number) }
            return state.failure.map { .failed($0) } ?? .pending
        }
    }

    private static func connect(_ target: RemoteForward.Target) throws -> OwnedDescriptor {
        switch target {
        case .socket(let path): return try StreamSocket.connect(toPath: Array(path.utf8))
        case .host(let host, let port): return try connect(toFirstOf: Resolver.lookUp(host, port: port))
        }
    }

    /// A connection to the first address that takes one. Blocks.
    package static func connect(toFirstOf addresses: [KernelAddress]) throws -> OwnedDescriptor {
        var failure: any Error = CommandError("the host has no address")
        for address in addresses {
            do {
                let socket = try StreamSocket.connect(to: address)
                var wait = pollfd(fd: socket.number, events: Int16(POLLOUT), revents: 0)
                guard poll(&wait, 1, limitMilliseconds) > 0 else { throw CommandError("no answer") }
                try StreamSocket.outcome(socket.number)
                return socket
            } catch {
                failure = error
            }
        }
        throw failure
    }
}
