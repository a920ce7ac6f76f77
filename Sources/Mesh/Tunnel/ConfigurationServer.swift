// SPDX-License-Identifier: Apache-2.0

package import LinuxIO
internal import Synchronization

/// Whoever owns a WireGuard device and lets it be configured. Called on the server's thread; each call waits
/// until the tunnel's thread has done it, between two bursts.
package protocol ConfigurableTunnel: Sendable {
    /// Carries out settings of one operation and moves its cursor on.
    func apply(_ settings: [UAPI.Setting], _ cursor: UAPI.Cursor) -> (UAPI.Cursor, UAPI.Failure?)
    /// Ends the operation.
    func finish(_ cursor: UAPI.Cursor)
    /// All that `get` tells; nil when the tunnel has ended.
    func status() -> UAPI.Status?
}

/// Serves `/var/run/wireguard/NAME.sock` to `wg` and its like, on a thread of its own: a client that is slow to
/// read or write holds up nobody. Owns the socket and the connections. Any thread may call `close`.
package final class ConfigurationServer: Sendable {
    /// Where `wg` looks.
    package static let directory = "/var/run/wireguard"

    /// Bounds; the defaults are for use.
    package struct Limits: Sendable {
        /// Connections at once; the one that has been silent longest is closed for a new one.
        package var clients = 64
        /// Of each connection.
        package var session = UAPI.Limits()

        /// The usual bounds.
        package init() {}
    }

    /// The socket's name.
    package let path: String
    private let file: FileIdentity?
    private let wakeUp: WakeUp
    private let thread: DedicatedThread
    private let isClosed = Mutex(false)

    /// Listens. `onRemoved` is called, on the server's thread, when somebody removes the socket: the way to stop
    /// an interface.
    package init(
        name: String, tunnel: any ConfigurableTunnel, directory: String = ConfigurationServer.directory,
        adopting listener: consuming OwnedDescriptor? = nil, limits: Limits = Limits(),
        onRemoved: @escaping @Sendable () -> Void
    ) throws(SystemError) {
        path = "\(directory)/\(name).sock"
        wakeUp = try WakeUp()
        let socket: OwnedDescriptor
        if let listener {
            try Descriptor.setNonBlocking(listener.number)
            socket = listener
        } else {
            try UnixService.makeDirectory(directory)
            socket = try UnixService.listen(onPath: path)
        }
        // Nil when an adopted listener has no name, or another one.
        file = UnixService.file(path)
        let box = LoopBox(
            try ServerLoop(listener: socket, path: path, tunnel: tunnel, wakeUp: wakeUp, limits: limits))
        thread = try DedicatedThread(name: "wg-config") {
            guard var loop = box.take(), loop.run() else { return }
            onRemoved()
        }
    }

    /// Stops listening, closes all connections and removes the socket. Call once, not from `onRemoved`.
    package func close() {
        let isFirst = isClosed.withLock { isClosed in
            defer { isClosed = true }
            return !isClosed
        }
        guard isFirst else { return }
        wakeUp.signal()
        thread.join()
        UnixService.remove(path, ifStill: file)
    }
}

/// Hands the loop to its thread.
private final class LoopBox: Sendable {
    private let cell: Mutex<ServerLoop?>

    init(_ loop: consuming sending ServerLoop) { cell = Mutex(loop) }

    func take() -> ServerLoop? { cell.withLock { $0.take() } }
}

/// The server's thread.
private struct ServerLoop: ~Copyable {
    private enum Token {
        static let listener: UInt64 = 0
        static let wakeUp: UInt64 = 1
        static let removal: UInt64 = 2
        static let firstClient: UInt64 = 3
    }

    private let listener: OwnedDescriptor
    private let path: String
    private let tunnel: any ConfigurableTunnel
    private let wakeUp: WakeUp
    private let limits: ConfigurationServer.Limits
    private let epoll: Epoll
    private let removal: RemovalWatch?
    private let file: FileIdentity?
    private var clients: [UInt64: Client] = [:]
    private var nextToken = Token.firstClient
    private var buffer = [UInt8](repeating: 0, count: 16_384)

    init(
        listener: consuming OwnedDescriptor, path: String, tunnel: any ConfigurableTunnel, wakeUp: WakeUp,
        limits: ConfigurationServer.Limits
    ) throws(SystemError) {
        let epoll = try Epoll()
        try epoll.add(listener.number, .read, token: Token.listener)
        try epoll.add(wakeUp.number, .read, token: Token.wakeUp)
        // An adopted listener may have another name, or none here: then nobody can remove it.
        var removal: RemovalWatch?
        if UnixService.file(path) != nil {
            let watch = try RemovalWatch(path: path)
            try epoll.add(watch.number, .read, token: Token.removal)
            removal = consume watch
        }
        self.removal = removal.take()
        file = UnixService.file(path)
        self.epoll = epoll
        self.listener = listener
        self.path = path
        self.tunnel = tunnel
        self.wakeUp = wakeUp
        self.limits = limits
    }

    /// Serves until it is told to stop (false), or the socket is gone (true).
    mutating func run() -> Bool {
        while true {
            var events: [(token: UInt64, interest: Epoll.Interest)] = []
            do throws(SystemError) {
                try epoll.wait(timeoutNanoseconds: nil) { events.append(($0, $1)) }
            } catch {
                preconditionFailure("epoll of the configuration server: \(error)")
            }
            for event in events {
                switch event.token {
                case Token.wakeUp: return false
                case Token.removal:
                    removal?.drain()
                    if UnixService.file(path) != file { return true }
                case Token.listener: accept()
                default: serve(event.token)
                }
            }
        }
    }

    private mutating func accept() {
        while let accepted = StreamSocket.accept(listener.number) {
            if clients.count >= limits.clients,
                let oldest = clients.min(by: { $0.value.used < $1.value.used })
            {
                drop(oldest.key)
            }
            let client = Client(accepted.take(), limits: limits.session)
            let token = nextToken
            nextToken += 1
            guard (try? epoll.add(client.number, .read, token: token)) != nil else { continue }
            client.used = nextToken
            clients[token] = client
        }
    }

    private mutating func drop(_ token: UInt64) {
        guard let client = clients.removeValue(forKey: token) else { return }
        client.endOperation(tunnel)
        epoll.remove(client.number)
    }

    private mutating func serve(_ token: UInt64) {
        guard let client = clients[token] else { return }
        client.used = nextToken
        nextToken += 1
        guard client.advance(tunnel, &buffer) else { return drop(token) }
        let interest: Epoll.Interest = client.isWriting ? .write : .read
        guard interest != client.interest else { return }
        client.interest = interest
        if (try? epoll.modify(client.number, interest, token: token)) == nil { drop(token) }
    }
}

/// One connection. Either there is an answer to write, or more is read: an answer that is not taken stops the
/// client's further operations, and nothing else.
private final class Client {
    private let descriptor: OwnedDescriptor
    private var session: UAPI.Session
    private var cursor = UAPI.Cursor()
    private var isInOperation = false
    private var failure: UAPI.Failure?
    private var answer: [UInt8] = []
    private var written = 0
    /// When it was last heard of, as a running number.
    var used: UInt64 = 0
    var interest = Epoll.Interest.read

    init(_ descriptor: consuming OwnedDescriptor, limits: UAPI.Limits) {
        self.descriptor = descriptor
        session = UAPI.Session(limits: limits)
    }

    var number: Int32 { descriptor.number }
    var isWriting: Bool { written < answer.count }

    /// Does what can be done now. False: the connection is over.
    func advance(_ tunnel: any ConfigurableTunnel, _ buffer: inout [UInt8]) -> Bool {
        while true {
            switch write() {
            case .moved: break
            case .wouldBlock: return true
            case .end, .failed: return false
            }
            while !isWriting, let event = session.nextEvent() {
                guard handle(event, tunnel) else { return false }
            }
            guard !isWriting else { continue }
            let result = unsafe buffer.withUnsafeMutableBytes { unsafe Descriptor.read(number, into: $0) }
            switch result {
            case .moved(let count):
                session.receive(buffer[..<count])
                buffer.wipe(first: count)
            case .wouldBlock: return true
            case .end, .failed: return false
            }
        }
    }

    private func write() -> TransferResult {
        while isWriting {
            let result = unsafe answer.withUnsafeBytes {
                unsafe Descriptor.write(
                    number, UnsafeRawBufferPointer(rebasing: $0[written...]), isSocket: true)
            }
            guard case .moved(let count) = result else { return result }
            written += count
        }
        // Keys are in it, and much memory.
        answer.wipe()
        answer = []
        written = 0
        return .moved(0)
    }

    private func handle(_ event: UAPI.Session.Event, _ tunnel: any ConfigurableTunnel) -> Bool {
        switch event {
        case .get: answer = tunnel.status()?.answer ?? UAPI.answer(.ended)
        case .begin:
            cursor = UAPI.Cursor()
            failure = nil
            isInOperation = true
        case .settings(let settings):
            if failure == nil { (cursor, failure) = tunnel.apply(settings, cursor) }
        case .end(let problem):
            endOperation(tunnel)
            answer = UAPI.answer(failure ?? problem)
        case .refuse: return false
        }
        return true
    }

    /// The lines that came are in force, also when the client went away in the middle.
    func endOperation(_ tunnel: any ConfigurableTunnel) {
        guard isInOperation else { return }
        isInOperation = false
        tunnel.finish(cursor)
    }
}
