// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// The thread of a `WireGuardTunnel`: owns the TUN device, the sockets and all peers, and runs each burst
/// to completion. Packets from the device are cut, sealed into the memory that the next send takes, and
/// sent; datagrams are opened where the kernel put them, joined, and written to the device. Nothing
/// allocates, locks or counts references per packet.
package struct TunnelLoop: ~Copyable {
    /// What was moved and what was lost, in packets unless said otherwise.
    package struct Counters: Sendable {
        /// Reads of the device that brought something, and the packets that they stood for.
        package var deviceReads: UInt64 = 0
        package var devicePackets: UInt64 = 0
        /// Writes to the device, and the packets that they stood for.
        package var deviceWrites: UInt64 = 0
        package var deviceWrittenPackets: UInt64 = 0
        /// Bytes of both, headers included.
        package var deviceBytes: UInt64 = 0
        /// Writes that the device refused.
        package var deviceRefused: UInt64 = 0
        /// Packets from the device that are malformed, belong to no peer, or to one without end point.
        package var malformed: UInt64 = 0
        package var unroutable: UInt64 = 0
        package var withoutEndpoint: UInt64 = 0
        /// Receiving calls, messages and datagrams.
        package var receives: UInt64 = 0
        package var receivedMessages: UInt64 = 0
        package var receivedDatagrams: UInt64 = 0
        /// Datagrams to an address of a family that this machine lacks.
        package var withoutSocket: UInt64 = 0
    }

    enum Source: UInt64 {
        case wakeUp, device, udp4, udp6, link
    }

    /// Room before the packet: virtio header, and what keeps it aligned.
    static let headRoom = 64
    /// What is read from the device at most: head-room, a super-packet, and room for padding behind it.
    static let packetBytes = headRoom + 65_536 + 64

    let options: WireGuardTunnel.Options
    let mailbox: TunnelMailbox
    let epoll: Epoll
    let events = EpollEvents()
    var tun: TUNDevice
    var v4: UDPSocket?
    var v6: UDPSocket?
    var received = ReceiveBurst()
    var receiveLimit = 4
    var burst = SendBurst()
    var parts = PacketParts()
    var coalescer: Coalescer
    let packet = ScratchMemory(byteCount: Self.packetBytes)
    /// Template of a header, and room for virtio headers.
    let scratch = ScratchMemory(byteCount: Segmenter.headerLimit + 64)

    /// All peers and sessions.
    package var device: WireGuard.Device
    /// Where peers are, by their slots.
    var places: [Place?] = []
    /// Of sockets that were closed.
    var formerSockets = UDPSocket.Counters()
    /// Whether sends are cut by the kernel, until a device refuses it.
    var usesSegmentation = false
    /// The peer that the last packet went to.
    var lastDestination: IPAddress?
    var lastPeer: WireGuard.PeerIndex?
    /// The table of prefixes that this was looked up in.
    var lastVersion: UInt64 = 0

    /// The moment that the current turn began.
    package internal(set) var now: Instant
    /// The port to bind to; 0: the kernel chooses when the link comes up.
    package internal(set) var listenPort: UInt16 = 0
    /// `SO_MARK` of what is sent; 0 for none.
    package internal(set) var firewallMark: UInt32 = 0
    /// Whether the link is up, and with it the sockets.
    package internal(set) var isUp = false
    /// What happened so far.
    package internal(set) var counters = Counters()
    var isRunning = true
    private var turnPolicy = TurnPolicy()
    /// Slice of the processor that is asked for (EEVDF).
    private static let turnNanoseconds: UInt64 = 100_000
    /// How long to look for more bulk before sleeping.
    private static let lookNanoseconds: UInt64 = 5_000

    init(name: String, options: WireGuardTunnel.Options, mailbox: TunnelMailbox) throws(SystemError) {
        let epoll = try Epoll()
        let tun = try TUNDevice(name: name, offload: options.deviceOffload)
        try tun.setMTU(options.mtuBytes)
        try epoll.add(mailbox.wakeUp.number, .read, token: Source.wakeUp.rawValue)
        try epoll.add(tun.monitor.number, .read, token: Source.link.rawValue)
        try epoll.add(tun.number, .read, token: Source.device.rawValue)

        self.options = options
        self.mailbox = mailbox
        now = Instant(nanoseconds: Clock.monotonicNanoseconds())
        device = WireGuard.Device(
            privateKey: nil, mtu: options.mtuBytes, limits: options.limits, backEnd: options.backEnd)
        coalescer = Coalescer(
            joinsTCP: tun.offload.contains(.tcp), joinsUDP: tun.offload.contains(.udp))
        self.epoll = epoll
        self.tun = tun
        v4 = nil
        v6 = nil
        reportBackEnd()
        reportOffload()
    }

    private func reportBackEnd() {
        if options.backEnd == WireGuard.PacketCipher.preferred {
            for backEnd in WireGuard.PacketCipher.choice.failed {
                options.log(.error, "AEAD: \(backEnd.rawValue) failed its self-test and is not used")
            }
        }
        options.log(.detail, "AEAD: \(options.backEnd.rawValue)")
    }

    private func reportOffload() {
        if !tun.offload.contains(.header) {
            options.log(.notice, "TUN: no virtio header, so one packet per read and write")
        } else if !tun.offload.contains(.tcp) {
            options.log(.notice, "TUN: no TCP offload, so one packet per read and write")
        } else if !tun.offload.contains(.udp) {
            options.log(.notice, "TUN: no UDP offload (Linux 6.2 has it), so one datagram per read and write")
        }
    }

    /// The queue, and super-packets that fill one send exactly.
    func limitQueue() {
        do {
            try tun.setQueueLength(options.queueLength)
            let segments = DatagramRun.lengthLimit / (device.mtu + WireGuard.overhead)
            try tun.setSegmentLimits(
                count: max(1, min(segments, DatagramRun.countLimit)), bytes: 65_536)
        } catch {
            options.log(.error, "TUN: limits stay as they are (\(error))")
        }
    }

    // MARK: The loop

    /// Runs until told to stop or the device is gone.
    mutating func run() {
        DedicatedThread.takeShortTurns(nanoseconds: Self.turnNanoseconds, nice: TurnPolicy.standardNiceness)
        limitQueue()
        checkLink()
        while isRunning {
            let count = wait()
            now = Instant(nanoseconds: Clock.monotonicNanoseconds())
            for index in 0..<count {
                switch Source(rawValue: events[index].token) {
                case .wakeUp: readMailbox()
                case .device: readDevice()
                case .udp4: receive(isV4: true)
                case .udp6: receive(isV4: false)
                case .link: if tun.monitor.drain() { checkLink() }
                case nil: break
                }
            }
            if now >= device.nextDeadline { device.handleTimeout(now: now) }
            if device.hasOutput { sendControl() }
            flush()
            takeTurns()
        }
        mailbox.close()
    }

    /// Waits for events or the next deadline. While bulk is carried, the programs at its ends run before the thread
    /// sleeps, if they want to: what they do in that time needs nobody to be woken for it.
    private func wait() -> Int {
        if turnPolicy.isBulk {
            let end = Clock.monotonicNanoseconds() + Self.lookNanoseconds
            repeat {
                let count = epoll.next(timeoutNanoseconds: 0, into: events)
                if count > 0 { return count }
                DedicatedThread.yield()
            } while Clock.monotonicNanoseconds() < end
        }
        let deadline = device.nextDeadline
        let timeout = deadline == .never ? nil : deadline.since(now).nanoseconds
        return epoll.next(timeoutNanoseconds: timeout, into: events)
    }

    private mutating func takeTurns() {
        let niceness = turnPolicy.next(
            bytes: counters.deviceBytes,
            calls: counters.deviceReads &+ counters.deviceWrites)
        guard let niceness else { return }
        DedicatedThread.takeShortTurns(nanoseconds: Self.turnNanoseconds, nice: niceness)
    }

    private mutating func readMailbox() {
        let (messages, isStopping) = mailbox.takeAll()
        for message in messages { message.run(&self) }
        if isStopping { isRunning = false }
    }

    /// The device was deleted.
    mutating func deviceIsGone() {
        guard isRunning else { return }
        isRunning = false
        options.log(.detail, "the device is gone")
        options.ended()
    }

    /// Handshakes, keepalives, packets that waited for a handshake. While the link is down they stay in the
    /// device: an initiation that was made and thrown away would put off the next one by five seconds.
    mutating func sendControl() {
        guard isUp else { return }
        while device.hasOutput {
            if burst.isFull(for: device.outputSize) { flush() }
            let memory = unsafe UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...])
            let wall = Clock.wallTime()
            let time = WireGuard.WallTime(
                seconds: UInt64(max(0, wall.seconds)), nanoseconds: wall.nanoseconds)
            guard let output = unsafe device.nextOutput(into: memory, now: now, wallTime: time) else { break }
            if output.followsSilence { forgetLocal(of: output.peer) }
            if let place = whereabouts(of: output.peer) {
                burst.append(output.length, to: place.remote, from: place.local)
            } else {
                counters.withoutEndpoint &+= 1
            }
        }
    }

    /// Gives everything sealed to the kernel.
    mutating func flush() {
        guard !burst.isEmpty else { return }
        counters.withoutSocket &+= UInt64(burst.flush(v4: &v4, v6: &v6))
        noteSends()
    }
}
