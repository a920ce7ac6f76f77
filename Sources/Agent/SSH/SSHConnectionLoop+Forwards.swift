// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

// What the client wants us to listen on.
extension SSHConnectionLoop {
    /// Half a second, in steps, for the thread of a client that is gone to let go of its port; this connection waits.
    private static let reclaimAttempts = 50, reclaimMilliseconds: Int32 = 10

    func serve(_ request: GlobalRequest) {
        do {
            switch request {
            case .tcpipForward(let host, let port):
                try checkListeners()
                let (listener, bound) = try listen(host, port)
                listeners.append(listener)
                ssh.replyGlobal(success: true, port: port == 0 ? bound : nil)
            case .streamLocalForward(let path):
                // `agent.md` §6: a repeated request succeeds without effect.
                if !listeners.contains(where: { $0.target == .unix(path: path) }) {
                    try checkListeners()
                    listeners.append(try ForwardListener.unix(path: path))
                }
                ssh.replyGlobal(success: true)
            case .cancelTCPIPForward(let host, let port): cancel(.tcp(host: host, port: port))
            case .cancelStreamLocalForward(let path): cancel(.unix(path: path))
            }
        } catch {
            configuration.log("ssh: forward refused: \(error)")
            ssh.replyGlobal(success: false)
        }
    }

    /// Listens on a port, which another client may have to give up before.
    private func listen(
        _ host: String, _ port: UInt32
    ) throws(SystemError) -> (listener: ForwardListener, port: UInt32) {
        var attempts = 1
        while true {
            do {
                let (listener, bound) = try ForwardListener.tcp(host: host, port: port)
                forwards.add(bound, control)
                listener.atEnd = { [forwards, control] in forwards.remove(bound, control) }
                return (listener, bound)
            } catch {
                guard error.code == EADDRINUSE, attempts > 1 || forwards.reclaim(port),
                    attempts < Self.reclaimAttempts
                else { throw error }
            }
            attempts += 1
            _ = poll(nil, 0, Self.reclaimMilliseconds)
        }
    }

    /// A successor of this connection's client wants the port.
    func giveUp(_ port: UInt32) {
        let count = listeners.count
        listeners.removeAll { listener in
            if case .tcp(_, port) = listener.target { true } else { false }
        }
        if listeners.count < count { configuration.log("ssh: port \(port) goes to another client") }
    }

    private func checkListeners() throws(SystemError) {
        guard listeners.count < Self.listenerLimit else { throw SystemError(call: "listen", code: EMFILE) }
    }

    private func cancel(_ target: ForwardListener.Target) {
        let count = listeners.count
        listeners.removeAll { $0.target == target }
        ssh.replyGlobal(success: listeners.count < count)
    }

    func openAgent(for session: SessionChannel) -> Bool {
        guard session.wantsAgentSocket else { return false }
        do {
            try checkListeners()
            let listener = try ForwardListener.agent(number: nextNumber)
            nextNumber += 1
            if case .agent(let path) = listener.target { session.setAgentSocket(path) }
            listeners.append(listener)
            return true
        } catch {
            configuration.log("ssh: agent forwarding refused: \(error)")
            return false
        }
    }

    /// When no display is free, the one that was used least recently goes (`agent.md` §6).
    private func openDisplay(
        _ screen: UInt32, _ isSingle: Bool
    ) throws(SystemError) -> (XDisplay, ForwardListener) {
        do {
            return try XDisplay.open(screen: screen, isSingle: isSingle)
        } catch {
            guard error.code == EADDRINUSE, let oldest = listeners.firstIndex(where: \.isDisplay) else {
                throw error
            }
            listeners.remove(at: oldest)
            return try XDisplay.open(screen: screen, isSingle: isSingle)
        }
    }

    func openDisplay(
        for session: SessionChannel, _ isSingle: Bool, _ method: String, _ cookie: String, _ screen: UInt32
    ) -> Bool {
        guard session.wantsDisplay, let bytes = XAuthority.cookie(cookie), method.utf8.count <= 64 else {
            return false
        }
        do {
            try checkListeners()
            let (display, listener) = try openDisplay(screen, isSingle)
            let file = "\(configuration.environment().account.home)/.Xauthority"
            try XAuthority.add(display.number, method: method, cookie: bytes, file: file)
            session.setDisplay(display)
            listeners.append(listener)
            return true
        } catch {
            configuration.log("ssh: X forwarding refused: \(error)")
            return false
        }
    }
}
