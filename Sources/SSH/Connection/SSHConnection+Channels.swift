// SPDX-License-Identifier: Apache-2.0

// What the caller does with channels.
extension SSHConnection {
    // MARK: Slots

    func id(_ slot: Int) -> ChannelID {
        ChannelID(slot: UInt32(slot), generation: channels[slot].generation)
    }

    /// The slot of a channel that still exists.
    func slot(_ id: ChannelID) -> Int? {
        guard id.slot < channels.count else { return nil }
        let channel = channels[Int(id.slot)]
        return channel.generation == id.generation && channel.state != .free ? Int(id.slot) : nil
    }

    mutating func takeSlot() -> Int? {
        guard openCount < transport.limits.channels else { return nil }
        openCount += 1
        if let free = channels.firstIndex(where: { $0.state == .free }) { return free }
        channels.append(Channel())
        return channels.count - 1
    }

    mutating func free(_ slot: Int) {
        let generation = channels[slot].generation
        grownBytes -= channels[slot].windowTarget - channels[slot].windowBase
        channels[slot] = Channel()
        channels[slot].generation = generation &+ 1  // a name is void long before its number comes round
        openCount -= 1
    }

    // MARK: Opening

    /// What the peer may send on a new channel.
    private mutating func openWindow(_ slot: Int) -> Int {
        let limits = transport.limits
        let window =
            openCount > limits.fullWindows
            ? min(limits.manyChannelsWindowBytes, limits.channelWindowBytes) : limits.channelWindowBytes
        channels[slot].receiveWindow = window
        channels[slot].windowBase = window
        channels[slot].windowTarget = window
        return window
    }

    /// Asks the peer for a channel; `.opened` or `.openFailed` follows. nil: not authenticated, or too many.
    public mutating func openChannel(_ type: ChannelType) -> ChannelID? {
        authentication.isDone ? requestChannel(type) : nil
    }

    mutating func requestChannel(_ type: ChannelType) -> ChannelID? {
        guard failure == nil, let slot = takeSlot() else { return nil }
        let limits = transport.limits
        channels[slot].state = .requested
        let window = openWindow(slot)
        send {
            $0.append(Message.channelOpen)
            $0.appendString(type.name)
            $0.append(UInt32(slot))
            $0.append(UInt32(clamping: window))
            $0.append(UInt32(clamping: limits.channelPacketBytes))
            type.write(&$0)
        }
        return id(slot)
    }

    /// Grants a channel that the peer asked for.
    public mutating func accept(_ channel: ChannelID) {
        guard let slot = slot(channel), channels[slot].state == .offered else { return }
        let limits = transport.limits
        channels[slot].state = .open
        let window = openWindow(slot)
        let remote = channels[slot].remoteID
        send {
            $0.append(Message.channelOpenConfirmation)
            $0.append(remote)
            $0.append(UInt32(slot))
            $0.append(UInt32(clamping: window))
            $0.append(UInt32(clamping: limits.channelPacketBytes))
        }
    }

    /// Refuses a channel that the peer asked for; its name is void afterwards.
    public mutating func refuse(_ channel: ChannelID, _ reason: OpenFailure, message: String = "") {
        guard let slot = slot(channel), channels[slot].state == .offered else { return }
        let remote = channels[slot].remoteID
        free(slot)
        do {
            try sendOpenFailure(remote, reason, message)
        } catch {
            lateFailure = error
        }
    }

    // MARK: Data

    /// How many bytes `write` would take now.
    public func writableCount(_ channel: ChannelID) -> Int {
        guard let slot = slot(channel) else { return 0 }
        return writableCount(slot)
    }

    func writableCount(_ slot: Int) -> Int {
        let channel = channels[slot]
        guard channel.state == .open, !channel.sentEOF, !channel.sentClose, transport.canSendData,
            failure == nil,
            channel.remotePacketBytes > 0
        else { return 0 }
        return min(channel.sendWindow, max(0, transport.limits.outgoingDataBytes - transport.outbound.count))
    }

    /// Sends data, as much as the peer's window and the outgoing buffer take; returns how much that was.
    /// After less than all, `.writable` tells when to go on.
    public mutating func write(
        _ channel: ChannelID, _ bytes: UnsafeRawBufferPointer, stream: DataStream = .standard
    ) -> Int {
        var sent = 0
        while sent < bytes.count {
            let count = unsafe write(channel, stream: stream, upTo: bytes.count - sent) { space in
                unsafe space.copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: bytes[sent..<sent + space.count]))
                return space.count
            }
            guard count > 0 else { break }
            sent += count
        }
        return sent
    }

    /// As `write` of bytes, for small things and tests.
    public mutating func write(
        _ channel: ChannelID, _ bytes: [UInt8], stream: DataStream = .standard
    ) -> Int {
        unsafe bytes.withUnsafeBytes { unsafe write(channel, $0, stream: stream) }
    }

    /// Sends one packet of data that `fill` puts straight into the outgoing buffer, e.g. by `read(2)`. Its
    /// space has at most `maximum` bytes. Returns what `fill` returned; zero or less sends nothing. `fill` is
    /// not called, and the result is 0, when nothing can be sent now: `.writable` tells when to go on.
    public mutating func write(
        _ channel: ChannelID, stream: DataStream = .standard, upTo maximum: Int,
        _ fill: (UnsafeMutableRawBufferPointer) -> Int
    ) -> Int {
        guard let slot = slot(channel) else { return 0 }
        let limit = min(
            maximum, writableCount(slot), channels[slot].remotePacketBytes,
            transport.limits.packetBytes - 1024)
        guard limit > 0 else {
            channels[slot].isWriterWaiting = maximum > 0
            hasWaitingWriters = hasWaitingWriters || maximum > 0
            return 0
        }
        let start = transport.beginPacket()
        transport.outbound.append(stream == .standard ? Message.channelData : Message.channelExtendedData)
        transport.outbound.append(channels[slot].remoteID)
        if stream == .error { transport.outbound.append(UInt32(1)) }
        let field = transport.outbound.count
        transport.outbound.append(UInt32(0))
        let space = unsafe transport.outbound.space(limit + 512)
        let count = unsafe fill(UnsafeMutableRawBufferPointer(rebasing: space[..<limit]))
        guard count > 0 else {
            transport.outbound.truncate(to: start)
            return count
        }
        precondition(count <= limit)
        transport.outbound.commit(count)
        transport.outbound.overwrite(UInt32(count), at: field)
        transport.finishPacket(start)
        channels[slot].sendWindow -= count
        if count < maximum, count == limit, channels[slot].sendWindow == 0 || transport.isRekeyDue {
            channels[slot].isWriterWaiting = true
            hasWaitingWriters = true
        }
        return count
    }

    /// Tells that `count` bytes of received data have left memory, so that the peer may send as many again.
    public mutating func consumed(_ channel: ChannelID, _ count: Int) {
        guard let slot = slot(channel), channels[slot].state == .open else { return }
        precondition(count >= 0 && count <= channels[slot].held, "more than was received")
        channels[slot].held -= count
        channels[slot].consumed += count
        let window = channels[slot].windowTarget
        // A quarter of the window, so that a stream costs few messages and the peer never runs dry.
        guard channels[slot].consumed >= window / 4, !channels[slot].receivedEOF, !channels[slot].sentClose
        else {
            return
        }
        let remote = channels[slot].remoteID, amount = channels[slot].consumed + growth(slot)
        channels[slot].receiveWindow += amount
        channels[slot].consumed = 0
        send {
            $0.append(Message.channelWindowAdjust)
            $0.append(remote)
            $0.append(UInt32(clamping: amount))
        }
    }

    /// By how much the window of a channel is widened: a long way to the peer needs a wide one to be filled.
    private mutating func growth(_ slot: Int) -> Int {
        guard channels[slot].isStarved else { return 0 }
        channels[slot].isStarved = false
        let limits = transport.limits
        let amount = min(
            channels[slot].windowTarget, limits.channelWindowLimitBytes - channels[slot].windowTarget,
            limits.windowGrowthBytes - grownBytes)
        guard amount > 0 else { return 0 }
        channels[slot].windowTarget += amount
        grownBytes += amount
        return amount
    }

    /// The next channel whose waiting writer can go on. Window adjusts report themselves; this finds those
    /// that waited for keys or for room in `outgoing`.
    mutating func nextWritable() -> SSHEvent? {
        guard hasWaitingWriters, transport.canSendData,
            transport.outbound.count <= transport.limits.outgoingDataBytes / 2
        else { return nil }
        var left = channels.count
        while left > 0 {
            left -= 1
            writableCursor = (writableCursor + 1) % channels.count
            guard channels[writableCursor].isWriterWaiting, writableCount(writableCursor) > 0 else {
                continue
            }
            channels[writableCursor].isWriterWaiting = false
            return .writable(id(writableCursor))
        }
        // Who waits still lacks window; its adjust wakes it.
        hasWaitingWriters = false
        return nil
    }

    // MARK: Requests

    /// Sends a request. When `wantsReply`, `.reply` follows in order. False: the channel is gone or too many
    /// wait.
    @discardableResult
    public mutating func request(
        _ channel: ChannelID, _ request: ChannelRequest, wantsReply: Bool = false
    ) -> Bool {
        guard let slot = slot(channel), channels[slot].state == .open, !channels[slot].sentClose,
            channels[slot].pendingReplies < transport.limits.pendingReplies
        else { return false }
        if wantsReply { channels[slot].pendingReplies += 1 }
        let remote = channels[slot].remoteID
        send {
            $0.append(Message.channelRequest)
            $0.append(remote)
            $0.appendString(request.name)
            $0.append(wantsReply)
            request.write(&$0)
        }
        return true
    }

    /// Answers the request of the last event.
    public mutating func reply(_ channel: ChannelID, success: Bool) {
        guard case .channel(channel)? = owedReply else { return }
        owedReply = nil
        guard let slot = slot(channel), !channels[slot].sentClose else { return }
        if !success { transport.counters.refusals += 1 }
        let remote = channels[slot].remoteID
        send {
            $0.append(success ? Message.channelSuccess : Message.channelFailure)
            $0.append(remote)
        }
    }

    /// Answers the global request of the last event; `port` when the caller chose one.
    public mutating func replyGlobal(success: Bool, port: UInt32? = nil) {
        guard case .global? = owedReply else { return }
        owedReply = nil
        send {
            $0.append(success ? Message.requestSuccess : Message.requestFailure)
            if success, let port { $0.append(port) }
        }
    }

    /// Client: asks the server to listen, or to stop; `.globalReply` follows. False: too many wait.
    public mutating func requestGlobal(_ request: GlobalRequest) -> Bool {
        guard authentication.isDone, pendingGlobals.count < transport.limits.pendingReplies else {
            return false
        }
        pendingGlobals.append(.request)
        send {
            $0.append(Message.globalRequest)
            $0.appendString(request.name)
            $0.append(true)
            request.write(&$0)
        }
        return true
    }

    // MARK: Ending

    /// Says that no more data follows; the other direction goes on.
    public mutating func sendEOF(_ channel: ChannelID) {
        guard let slot = slot(channel), channels[slot].state == .open, !channels[slot].sentEOF,
            !channels[slot].sentClose
        else { return }
        channels[slot].sentEOF = true
        channels[slot].isWriterWaiting = false
        let remote = channels[slot].remoteID
        send {
            $0.append(Message.channelEOF)
            $0.append(remote)
        }
    }

    /// Closes a channel; `.closed` follows when the peer has agreed. Data that still comes is dropped.
    public mutating func close(_ channel: ChannelID) {
        guard let slot = slot(channel), channels[slot].state == .open, !channels[slot].sentClose else {
            return
        }
        do {
            try sendClose(slot)
        } catch {
            lateFailure = error
        }
    }

    mutating func sendClose(_ slot: Int) throws(SSHError) {
        channels[slot].sentClose = true
        channels[slot].isWriterWaiting = false
        let remote = channels[slot].remoteID
        try transport.send {
            $0.append(Message.channelClose)
            $0.append(remote)
        }
    }
}
