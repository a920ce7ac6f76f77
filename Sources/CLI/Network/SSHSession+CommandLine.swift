// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import SSH

/// What is typed behind `~C`: forwards that come and go while the session runs, in OpenSSH's words.
package enum SessionCommand: Equatable {
    /// `-L`: a port or socket of this side leads into the workspace.
    case local(RemoteForward)
    /// `-R`: one of the workspace's leads here.
    case remote(RemoteForward)
    /// `-KL`, `-KR`
    case cancelLocal(UInt16)
    case cancelRemote(UInt16)
    case help
    case nothing

    /// Shown by `-h`.
    package static let helpText = """
        Commands:
          -L <port>:<host>:<port>   lead a port of this machine to a host of the workspace
          -R <port>:<host>:<port>   lead a port of the workspace to a host of this machine
          -KL <port>, -KR <port>    stop that
        Sockets are written as <path>:<path>.

        """

    /// Reads a line.
    package init(_ line: String) throws {
        let text = line.trimmed
        let flag = ["-KL", "-KR", "-L", "-R", "-h", "?"].first { text.hasPrefix($0) }
        let rest = String(text.dropFirst(flag?.count ?? 0)).trimmed
        let port = UInt16(rest)
        switch (flag, port) {
        case ("-L", _): self = .local(try RemoteForward(rest))
        case ("-R", _): self = .remote(try RemoteForward(rest))
        case ("-KL", let port?): self = .cancelLocal(port)
        case ("-KR", let port?): self = .cancelRemote(port)
        case ("-h", _), ("?", _): self = .help
        case (nil, _) where text.isEmpty: self = .nothing
        default: throw CommandError("invalid command: write -L, -R, -KL or -KR; -h helps")
        }
    }
}

/// A port or socket of this side that leads into the workspace.
final class LocalListener {
    let forward: RemoteForward
    private let descriptor: OwnedDescriptor
    var number: Int32 { descriptor.number }

    init(_ forward: RemoteForward) throws {
        self.forward = forward
        switch forward.listener {
        case .port(let port):
            descriptor = try StreamSocket.listen(on: .loopback(v4: true, port: port), bothFamilies: false)
        case .socket(let path): descriptor = try StreamSocket.listen(onPath: Array(path.utf8))
        }
    }

    deinit {
        if case .socket(let path) = forward.listener { TextFile.remove(path) }
    }

    /// What the workspace is asked for.
    var channel: ChannelType {
        switch forward.target {
        case .host(let host, let port):
            .directTCPIP(host: host, port: UInt32(port), originHost: "127.0.0.1", originPort: 0)
        case .socket(let path): .directStreamLocal(path: ByteString(path))
        }
    }
}

extension SSHSession {
    /// 64: a person types them.
    private static let listenerLimit = 64

    mutating func run(_ line: String) {
        do {
            switch try SessionCommand(line) {
            case .local(let forward):
                guard listeners.count < Self.listenerLimit else { throw CommandError("too many forwards") }
                listeners.append(try LocalListener(forward))
                tell("Forwarding.\n")
            case .remote(let forward): try ask(forward)
            case .cancelLocal(let port):
                let count = listeners.count
                listeners.removeAll { $0.forward.listener == .port(port) }
                tell(listeners.count < count ? "Canceled.\n" : "There is no such forward.\n")
            case .cancelRemote(let port): try cancel(port)
            case .help: tell(SessionCommand.helpText)
            case .nothing: tell("")
            }
        } catch {
            tell("\(error)\n")
        }
    }

    private mutating func ask(_ forward: RemoteForward) throws {
        guard connection.requestGlobal(forward.request) else { throw CommandError("too many requests wait") }
        askedForwards.append(.init(forward: forward, isVital: false))
    }

    private mutating func cancel(_ port: UInt16) throws {
        guard let index = forwards.firstIndex(where: { $0.listener == .port(port) }) else {
            throw CommandError("There is no such forward.")
        }
        guard stop(forwards[index]) else { throw CommandError("too many requests wait") }
        forwards.remove(at: index)
    }

    /// Asks the workspace to listen no more. False: it cannot be asked now.
    mutating func stop(_ forward: RemoteForward) -> Bool {
        guard connection.requestGlobal(forward.cancelRequest) else { return false }
        askedForwards.append(.init(forward: forward, isVital: false, isCancel: true))
        return true
    }

    /// Opens a channel for each connection that waits.
    mutating func accept(_ listener: LocalListener) {
        while let accepted = StreamSocket.accept(listener.number) {
            // Refused by a limit: the connection is closed here.
            guard let id = connection.openChannel(listener.channel) else { return }
            relays.add(ClientRelay(id, accepted.take()))
        }
    }
}
