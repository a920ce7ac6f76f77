// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// One SSH connection on one thread: its socket, and everything behind its channels, in one `poll(2)` loop.
/// Nothing in here waits for anything else: reading stops where the other side has no room, and host names
/// are looked up on threads of their own.
final class SSHConnectionLoop {
    /// Bounds on what one client can make us hold.
    static let listenerLimit = 128, lookupLimit = 32

    private let socket: OwnedDescriptor
    let configuration: SSHService.Configuration
    let control: ConnectionControl
    private let orphans: OrphanReaper
    private let remoteAddress: String
    /// Ports that clients of this agent listen on.
    let forwards: ForwardOwners
    private let jetBrains: JetBrainsPorts

    var ssh: SSHConnection
    private var parts: [ChannelID: any ChannelPart] = [:]
    var listeners: [ForwardListener] = []
    /// Relays whose host name is being looked up.
    private var lookups: [UInt64: RelayChannel] = [:]
    var nextNumber: UInt64 = 1
    private var late = LateInputs()
    /// No descriptor was left for a connection that waits: until then nobody looks.
    private var acceptsAgainAt: UInt64?
    private var hasToldShortage = false
    private var list = PollList()
    private var peerIsGone = false
    /// Nothing has moved in the last wait.
    private var isIdle = false
    private var rotation: Int = 0

    private static let socketTag: UInt8 = 0, wakeUpTag: UInt8 = 1, listenerTag: UInt8 = 2, lateTag: UInt8 = 3
    /// 100 ms without looking at listeners when descriptors are short: a waiting connection is reported in each turn.
    private static let shortagePause: UInt64 = 100_000_000
    /// OpenSSH's client talks of its extensions (eow@openssh.com, so that `ssh host yes | head` ends) only to servers
    /// of this name.
    private static let software = "OpenSSH_9.9-coder"
    /// Read in one call before and after the peer is let in.
    private static let firstReadBytes = 16 * 1024, readBytes = 256 * 1024

    init(
        _ socket: consuming OwnedDescriptor, _ configuration: SSHService.Configuration,
        _ control: ConnectionControl,
        _ orphans: OrphanReaper, _ forwards: ForwardOwners, _ jetBrains: JetBrainsPorts,
        _ remoteAddress: String
    ) {
        self.jetBrains = jetBrains
        self.forwards = forwards
        self.socket = socket
        self.configuration = configuration
        self.control = control
        self.orphans = orphans
        self.remoteAddress = remoteAddress
        var random = SystemRandomNumberGenerator()
        ssh = SSHConnection(
            serverWith: configuration.hostKey, limits: configuration.limits, software: Self.software,
            seed: EntropySeed(using: &random))
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
        for part in parts.values { if let input = part.closed() { late.add(input) } }
        parts = [:]
        listeners = []
        lookups = [:]
        // Nobody waits for us any more; readers of what came before may.
        shutdown(socket.number, Int32(SHUT_RDWR))
        late.deliver(until: control)
        return isSound
    }

    /// Moves all that can move, then waits.
    private func turn() throws {
        try readSocket()
        try handleEvents()
        pumpAll()
        late.flush(now: Clock.monotonicNanoseconds())
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
        if parts.values.contains(where: \.wantsTurn) { return 0 }
        let limit: Int32? = isIdle ? nil : 1_000
        let deadlines = [ssh.nextDeadlineNanoseconds, late.nextDeadline, acceptsAgainAt]
        guard let deadline = deadlines.compactMap(\.self).min() else { return limit }
        let now = Clock.monotonicNanoseconds()
        let wait = deadline <= now ? 0 : Int32(clamping: (deadline - now + 999_999) / 1_000_000)
        return min(wait, limit ?? .max)
    }

    // MARK: Socket

    private func readSocket() throws {
        var total = 0
        while ssh.wantsInput, !peerIsGone, total < 1 << 20 {
            var result = TransferResult.wouldBlock
            let capacity = ssh.isAuthenticated ? Self.readBytes : Self.firstReadBytes
            _ = ssh.receive(upTo: capacity) { space in
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
        if let time = acceptsAgainAt, Clock.monotonicNanoseconds() >= time { acceptsAgainAt = nil }
        if acceptsAgainAt == nil, ssh.channelCount < configuration.limits.channels {
            for listener in listeners {
                list.add(listener.descriptor.number, POLLIN, nil, tag: Self.listenerTag)
            }
        }
        late.addInterests(to: &list, tag: Self.lateTag)
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
            for port in control.takeReclaimed() { giveUp(port) }
            for channel in control.takeJetBrains() { report(channel) }
        case Self.listenerTag: accept(list.descriptors[index].fd)
        default: break  // the socket and late inputs are looked at in each turn
        }
    }

    private func accept(_ number: Int32) {
        guard let listener = listeners.first(where: { $0.descriptor.number == number }) else { return }
        guard let accepted = StreamSocket.accept(number) else { return pauseAccepting() }
        hasToldShortage = false
        guard let channel = ssh.openChannel(listener.channelType(for: accepted.peer)) else { return }
        parts[channel] = RelayChannel(channel: channel, accepted: accepted.take())
        guard case .x11(_, let isSingle) = listener.target else { return }
        // The most recently used display is the last.
        listeners.removeAll { $0 === listener }
        if !isSingle { listeners.append(listener) }
    }

    /// Somebody waits, and cannot be let in: mostly because there are no descriptors.
    private func pauseAccepting() {
        acceptsAgainAt = Clock.monotonicNanoseconds() &+ Self.shortagePause
        guard !hasToldShortage else { return }
        hasToldShortage = true
        configuration.log("ssh: a connection to a forward cannot be taken: no descriptors?")
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
            if let input = part.closed() { late.add(input) }
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

    func serve(_ channel: ChannelID, _ request: ChannelRequest, _ wantsReply: Bool) {
        guard let session = parts[channel] as? SessionChannel else {
            if case .endOfWrite = request { (parts[channel] as? RelayChannel)?.endOfWrite() }
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

    private func isLoopback(_ host: String) -> Bool {
        ["localhost", "", "127.0.0.1", "::1"].contains(host)
    }

    /// A forward leads to a JetBrains back end, which is counted as a session of its kind.
    private func report(_ channel: ChannelID) {
        guard let relay = parts[channel] as? RelayChannel, relay.atEnd == nil else { return }
        let report = context().report
        report(.jetbrains, nil)
        relay.atEnd = { report(.jetbrains, 0) }
    }

    /// Connects a relay. Only real names are looked up, away from this thread.
    private func connect(_ channel: ChannelID, _ host: String, _ port: UInt16) {
        let relay = RelayChannel(channel: channel)
        parts[channel] = relay
        if isLoopback(host) {
            jetBrains.look(at: port) { [control] isOne in if isOne { control.deliver(jetBrains: channel) } }
        }
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
}
