// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import SSH

/// A forward whose answer is awaited.
struct AskedForward {
    var forward: RemoteForward
    /// Whether the session is of no use without it: its user counts on what the command line asked for.
    var isVital = true
    var isCancel = false
}

// Channels that the workspace opens: the user's ssh-agent, and remote forwards.
extension SSHSession {
    mutating func askForForwards() {
        for forward in request.remoteForwards where connection.requestGlobal(forward.request) {
            askedForwards.append(AskedForward(forward: forward))
        }
    }

    mutating func forwardAnswered(_ success: Bool, _ port: UInt32?) {
        guard !askedForwards.isEmpty else { return }
        let asked = askedForwards.removeFirst()
        var forward = asked.forward
        if asked.isCancel { return isInBackground ? () : tell("Canceled.\n") }
        guard success || asked.isVital else {
            return tell("The workspace cannot forward \(forward.description).\n")
        }
        guard success else {
            end = .refused("the workspace cannot forward \(forward.description): is it in use there?")
            return
        }
        if let port, let port = UInt16(exactly: port), forward.listener == .port(0) {
            forward.listener = .port(port)
        }
        forwards.append(forward)
        if !asked.isVital { tell("Forwarding \(forward.description).\n") }
    }

    mutating func open(_ id: ChannelID, _ type: ChannelType) {
        switch type {
        case .agent:
            guard let path = request.agentSocket,
                let socket = try? StreamSocket.connect(toPath: Array(path.utf8))
            else { return connection.refuse(id, .connectFailed, message: "no agent") }
            connection.accept(id)
            relays.add(ClientRelay(id, consume socket))
        case .forwardedTCPIP(_, let port, _, _): connect(id) { $0 == .port(UInt16(clamping: port)) }
        case .forwardedStreamLocal(let path): connect(id) { $0 == .socket(path.description) }
        default: connection.refuse(id, .administrativelyProhibited)
        }
    }

    private mutating func connect(_ id: ChannelID, _ matches: (RemoteForward.Listener) -> Bool) {
        guard let forward = forwards.first(where: { matches($0.listener) }) else {
            return connection.refuse(id, .administrativelyProhibited, message: "not asked for")
        }
        relays.add(ClientRelay(id, ForwardDial(forward.target, wakeUp: wakeUp)))
    }

    /// For `~#`.
    var relayList: String {
        let lines = relays.channels.map { "  #\($0) forwarded connection" }
        return "The following connections are open:\n" + (["  session"] + lines).joined(separator: "\n")
            + "\n"
    }
}
