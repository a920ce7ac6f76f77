// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import SSH

// Channels that the workspace opens: the user's ssh-agent, and remote forwards.
extension SSHSession {
    mutating func askForForwards() {
        for forward in request.remoteForwards where connection.requestGlobal(forward.request) {
            askedForwards.append(forward)
        }
    }

    /// A forward that was asked for and cannot be had ends the session, as its user counts on it.
    mutating func forwardAnswered(_ success: Bool, _ port: UInt32?) {
        guard !askedForwards.isEmpty else { return }
        var forward = askedForwards.removeFirst()
        guard success else {
            end = .refused("the workspace cannot forward \(forward.description): is it in use there?")
            return
        }
        if let port, let port = UInt16(exactly: port), forward.listener == .port(0) {
            forward.listener = .port(port)
        }
        forwards.append(forward)
    }

    mutating func open(_ id: ChannelID, _ type: ChannelType) {
        switch type {
        case .agent:
            guard let path = request.agentSocket,
                let socket = try? StreamSocket.connect(toPath: Array(path.utf8))
            else { return connection.refuse(id, .connectFailed, message: "no agent") }
            connection.accept(id)
            relays[id] = ClientRelay(id, consume socket, isConnecting: false)
        case .forwardedTCPIP(_, let port, _, _): connect(id) { $0 == .port(UInt16(clamping: port)) }
        case .forwardedStreamLocal(let path): connect(id) { $0 == .socket(path.description) }
        default: connection.refuse(id, .administrativelyProhibited)
        }
    }

    private mutating func connect(_ id: ChannelID, _ matches: (RemoteForward.Listener) -> Bool) {
        guard let forward = forwards.first(where: { matches($0.listener) }) else {
            return connection.refuse(id, .administrativelyProhibited, message: "not asked for")
        }
        guard let socket = forward.connect() else {
            return connection.refuse(id, .connectFailed, message: "nobody listens")
        }
        switch forward.target {
        case .host: relays[id] = ClientRelay(id, consume socket, isConnecting: true)
        case .socket:
            connection.accept(id)
            relays[id] = ClientRelay(id, consume socket, isConnecting: false)
        }
    }

    mutating func settleRelays() {
        for (id, relay) in relays where !relay.settle(&connection) { relays[id] = nil }
    }

    /// For `~#`.
    var relayList: String {
        let lines = relays.keys.map { "  #\($0) forwarded connection" }.sorted()
        return "The following connections are open:\n" + (["  session"] + lines).joined(separator: "\n")
            + "\n"
    }
}
