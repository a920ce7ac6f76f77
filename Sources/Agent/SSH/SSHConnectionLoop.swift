// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// One SSH connection on one thread: its socket, and everything behind its channels, in one `poll(2)` loop.
/// Nothing in here waits for anything else: reading stops where the other side has no room, and host names
/// are looked up on threads of their own.
final class SSHConnectionLoop {
    /// Bounds on what one client can make us hold.
    private static let listenerLimit = 128, lookupLimit = 32

    private let socket: OwnedDescriptor
    private let configuration: SSHService.Configuration
    private let control: ConnectionControl
    private let orphans: OrphanReaper
    private let remoteAddress: String

    private var ssh: SSHConnection
    private var parts: [ChannelID: any ChannelPart] = [:]
    private var listeners: [ForwardListener] = []
    /// Relays whose host name is being looked up.
    private var lookups: [UInt64: RelayChannel] = [:]
    private var nextNumber: UInt64 = 1
    private var list = PollList()
    private var peerIsGone = false
    /// Nothing has moved in the last wait.
    private var isIdle = false
    private var rotation: Int = 0

    private static let socketTag: UInt8 = 0, wakeUpTag: UInt8 = 1, listenerTag: UInt8 = 2

    init(
        _ socket: consuming OwnedDescriptor, _ configuration: SSHService.Configuration,
        _ control: ConnectionControl,
        _ orphans: OrphanReaper, _ remoteAddress: String
    ) {
        self.socket = socket
        self.configuration = configuration
        self.control = control
        self.orphans = orphans
        self.remoteAddress = remoteAddress
        var random = SystemRandomNumberGenerator()
        ssh = SSHConnection(
            serverWith: configuration.hostKey, limits: configuration.limits, seed: EntropySeed(using: &random)
        )
        ssh.setKeepalive(intervalNanoseconds: configuration.silenceLimitNanoseconds / 3, limit: 3)
    }

    /// Runs until the connection is over, then gives everything back. False: it ended by a fault.
    func run() -> Bool {
        var isSound = true
        ChildProcess.blockBrokenPipeSignal()
        do {
            try Descriptor.setNonBlocking(socket.number)
            while !peerIsGone, !control.isStopped { try turn() }
            if control.isStopped { ssh.disconnect(description: "the agent stops") }
            flush()
        } catch let error as SSHError {
            flush()
            if case .disconnected = error {
            } else {
                isSound = false
                configuration.log("ssh: \(remoteAddress): \(error)")
            }
        } catch {
            isSound = false
            configuration.log("ssh: \(remoteAddress): \(error)")
        }
        for part in parts.values { part.closed() }
        parts = [:]
        listeners = []
        lookups = [:]
        return isSound
    }

    /// Moves all that can move, then waits.
    private func turn() throws {
        try readSocket()
        try handleEvents()
        pumpAll()
        flush()
        // What was sent makes room for packets that waited.
        try handleEvents()
        try ssh.handleTimeout(nowNanoseconds: Clock.monotonicNanoseconds())
        if peerIsGone { return }
        collectInterests()
        let ready = list.wait(milliseconds: timeout())
        if ready.isEmpty, !isIdle { ssh.releaseSpareMemory() }
        isIdle = ready.isEmpty
        // Each turn begins with another one: room is scarce when the client is slow, and a bulk transfer must
        // not keep a keystroke's echo out of it for ever.
        rotation = (rotation + 1) % 65_536
        for offset in ready.indices { self.ready(ready[(offset + rotation) % ready.count]) }
        pumpAll()
    }

    private func pumpAll() {
        for (channel, part) in parts {
            part.pump(&ssh)
            if part.isRefused { parts[channel] = nil }
        }
    }

    /// Until the next deadline; a connection that has just been busy looks again after a second, to tidy up.
    private func timeout() -> Int32? {
        let limit: Int32? = isIdle ? nil : 1_000
        guard let deadline = ssh.nextDeadlineNanoseconds else { return limit }
        let now = Clock.monotonicNanoseconds()
        let wait = deadline <= now ? 0 : Int32(clamping: (deadline - now + 999_999) / 1_000_000)
        return min(wait, limit ?? .max)
    }

    // MARK: Socket

    private func readSocket() throws {
        var total = 0
        while ssh.wantsInput, !peerIsGone, total < 1 << 20 {
            var result = TransferResult.wouldBlock
            _ = ssh.receive(upTo: 256 * 1024) { space in
                result = Descriptor.read(socket.number, into: space)
                if case .moved(let count) = result { return count }
                return 0
            }
            switch result {
            case .moved(let count): total += count
            case .wouldBlock: return
            case .end, .failed: peerIsGone = true
            }
            try handleEvents()
        }
    }

    private func flush() {
        while ssh.outgoingCount > 0 {
            switch Descriptor.write(socket.number, ssh.outgoing, isSocket: true) {
            case .moved(let count): ssh.consumeOutgoing(count)
            case .wouldBlock: return
            case .end, .failed:
                peerIsGone = true
                ssh.consumeOutgoing(ssh.outgoingCount)
            }
        }
    }

    // MARK: Readiness

    private func collectInterests() {
        list.removeAll()
        list.add(
            socket.number, (ssh.wantsInput ? POLLIN : 0) | (ssh.outgoingCount > 0 ? POLLOUT : 0), nil,
            tag: Self.socketTag)
        list.add(control.wakeUp.number, POLLIN, nil, tag: Self.wakeUpTag)
        for listener in listeners where ssh.channelCount < configuration.limits.channels {
            list.add(listener.descriptor.number, POLLIN, nil, tag: Self.listenerTag)
        }
        for part in parts.values { part.addInterests(ssh, to: &list) }
    }

    private func ready(_ index: Int) {
        let (part, tag) = list.targets[index]
        if let part { return part.ready(tag, &ssh) }
        switch tag {
        case Self.wakeUpTag:
            control.wakeUp.drain()
            for (number, addresses) in control.takeLookups() {
                lookups.removeValue(forKey: number)?.connect(to: addresses, &ssh)
            }
        case Self.listenerTag: accept(list.descriptors[index].fd)
        default: break  // the socket is read and written in each turn
        }
    }

    private func accept(_ number: Int32) {
        guard let listener = listeners.first(where: { $0.descriptor.number == number }),
            let accepted = StreamSocket.accept(number),
            let channel = ssh.openChannel(listener.channelType(for: accepted.peer))
        else { return }
        parts[channel] = RelayChannel(channel: channel, accepted: accepted.take())
        if case .x11(_, isSingle: true) = listener.target {
            listeners.removeAll { $0.descriptor.number == number }
        }
    }

    // MARK: Events

    private func handleEvents() throws(SSHError) {
        while let event = try ssh.nextEvent() { handle(event) }
    }

    private func handle(_ event: SSHEvent) {
        switch event {
        case .data(let channel, _, let count):
            guard let part = parts[channel] else { return ssh.consumed(channel, count) }
            let taken = ssh.withData { part.received($0) }
            ssh.consumed(channel, taken)
        case .endOfData(let channel): parts[channel]?.endOfData(&ssh)
        case .channelRequested(let channel, let type): open(channel, type)
        case .opened(let channel): (parts[channel] as? RelayChannel)?.opened()
        case .openFailed(let channel, _, _), .closed(let channel):
            guard let part = parts.removeValue(forKey: channel) else { return }
            part.closed()
            guard let session = part as? SessionChannel else { return }
            listeners.removeAll { listener in
                switch listener.target {
                case .agent(let path): path == session.agentSocket
                case .x11(let display, _): display == session.display?.number
                default: false
                }
            }
        case .request(let channel, let request, let wantsReply): serve(channel, request, wantsReply)
        case .globalRequest(let request, _): serve(request)
        case .authenticated, .authenticationRequested, .hostKey, .reply, .globalReply, .writable: break
        }
    }

    private func serve(_ channel: ChannelID, _ request: ChannelRequest, _ wantsReply: Bool) {
        guard let session = parts[channel] as? SessionChannel else {
            return ssh.reply(channel, success: false)
        }
        let success =
            switch request {
            case .agentForwarding: openAgent(for: session)
            case .x11(let isSingle, let method, let cookie, let screen):
                openDisplay(for: session, isSingle, method, cookie, screen)
            default: session.handle(request, &ssh)
            }
        if wantsReply { ssh.reply(channel, success: success) }
    }

    private func open(_ channel: ChannelID, _ type: ChannelType) {
        switch type {
        case .session:
            parts[channel] = SessionChannel(channel: channel, context: context())
            ssh.accept(channel)
        case .directTCPIP(let host, let port, _, _):
            guard let port = UInt16(exactly: port), port > 0 else {
                return ssh.refuse(channel, .connectFailed, message: "no such port")
            }
            connect(channel, host, port)
        case .directStreamLocal(let path):
            let relay = RelayChannel(channel: channel)
            relay.connect(toPath: path, &ssh)
            if !relay.isRefused { parts[channel] = relay }
        default: ssh.refuse(channel, .unknownChannelType)
        }
    }

    private func context() -> SessionChannel.Context {
        let number = SSHSessionReport.nextNumber(), report = configuration.report
        let remoteAddress = remoteAddress
        return SessionChannel.Context(environment: configuration.environment(), orphans: orphans) {
            kind, status in
            report(
                SSHSessionReport(number: number, kind: kind, remoteAddress: remoteAddress, exitStatus: status)
            )
        }
    }

    /// Connects a relay. Only real names are looked up, away from this thread.
    private func connect(_ channel: ChannelID, _ host: String, _ port: UInt16) {
        let relay = RelayChannel(channel: channel)
        parts[channel] = relay
        if host == "localhost" || host.isEmpty {
            relay.connect(to: [.loopback(v4: true, port: port), .loopback(v4: false, port: port)], &ssh)
        } else if let address = AddressText.parse(host, port: port) {
            relay.connect(to: [address], &ssh)
        } else if lookups.count < Self.lookupLimit {
            let number = nextNumber
            nextNumber += 1
            do {
                try DedicatedThread(name: "ssh-lookup") { [control] in
                    control.deliver(number, Resolver.lookUp(host, port: port))
                }.detach()
                lookups[number] = relay
            } catch {
                relay.connect(to: [], &ssh)
            }
        } else {
            relay.connect(to: [], &ssh)
        }
        if relay.isRefused { parts[channel] = nil }
    }

    // MARK: Listeners

    private func serve(_ request: GlobalRequest) {
        do {
            switch request {
            case .tcpipForward(let host, let port):
                try checkListeners()
                let (listener, bound) = try ForwardListener.tcp(host: host, port: port)
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

    private func checkListeners() throws(SystemError) {
        guard listeners.count < Self.listenerLimit else { throw SystemError(call: "listen", code: EMFILE) }
    }

    private func cancel(_ target: ForwardListener.Target) {
        let count = listeners.count
        listeners.removeAll { $0.target == target }
        ssh.replyGlobal(success: listeners.count < count)
    }

    private func openAgent(for session: SessionChannel) -> Bool {
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

    private func openDisplay(
        for session: SessionChannel, _ isSingle: Bool, _ method: String, _ cookie: String, _ screen: UInt32
    ) -> Bool {
        guard session.wantsDisplay, let bytes = XAuthority.cookie(cookie), method.utf8.count <= 64 else {
            return false
        }
        do {
            try checkListeners()
            let (display, listener) = try XDisplay.open(screen: screen, isSingle: isSingle)
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
