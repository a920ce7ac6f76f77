// SPDX-License-Identifier: Apache-2.0

// Messages of the connection protocol, RFC 4254.
extension SSHConnection {
    mutating func handleConnection(_ type: UInt8, _ reader: inout WireReader) throws -> SSHEvent? {
        switch type {
        case Message.channelData, Message.channelExtendedData: return try receiveData(type, &reader)
        case Message.channelWindowAdjust: return try receiveWindowAdjust(&reader)
        case Message.globalRequest: return try receiveGlobalRequest(&reader)
        case Message.requestSuccess, Message.requestFailure: return try receiveGlobalReply(type, &reader)
        case Message.channelOpen: return try receiveOpen(&reader)
        case Message.channelOpenConfirmation: return try receiveConfirmation(&reader)
        case Message.channelOpenFailure: return try receiveOpenFailure(&reader)
        case Message.channelRequest: return try receiveRequest(&reader)
        case Message.channelSuccess, Message.channelFailure:
            let slot = try openSlot(&reader)
            guard channels[slot].pendingReplies > 0 else { throw SSHError.unexpectedReply }
            channels[slot].pendingReplies -= 1
            return .reply(id(slot), success: type == Message.channelSuccess)
        case Message.channelEOF:
            let slot = try openSlot(&reader)
            guard !channels[slot].receivedEOF else { return nil }
            channels[slot].receivedEOF = true
            return channels[slot].sentClose ? nil : .endOfData(id(slot))
        case Message.channelClose:
            let slot = try openSlot(&reader)
            let gone = id(slot)
            if !channels[slot].sentClose { try sendClose(slot) }
            free(slot)
            return .closed(gone)
        default:
            throw SSHError.unexpectedMessage(type)
        }
    }

    /// Reads `recipient channel` and finds the open channel that it names.
    private func openSlot(_ reader: inout WireReader) throws -> Int {
        let number = try reader.uint32()
        guard number < channels.count, channels[Int(number)].state == .open else {
            throw SSHError.unknownChannel(number)
        }
        return Int(number)
    }

    private func requestedSlot(_ reader: inout WireReader) throws -> Int {
        let number = try reader.uint32()
        guard number < channels.count, channels[Int(number)].state == .requested else {
            throw SSHError.unknownChannel(number)
        }
        return Int(number)
    }

    private mutating func receiveData(_ type: UInt8, _ reader: inout WireReader) throws -> SSHEvent? {
        let slot = try openSlot(&reader)
        var stream = DataStream.standard
        var isKnown = true
        if type == Message.channelExtendedData {
            isKnown = try reader.uint32() == 1
            stream = .error
        }
        let range = try reader.stringRange()
        guard range.count <= channels[slot].receiveWindow, range.count <= transport.limits.channelPacketBytes
        else {
            throw SSHError.windowExceeded
        }
        channels[slot].receiveWindow -= range.count
        let isLate = channels[slot].sentClose || channels[slot].receivedEOF || !isKnown
        guard !isLate else {
            transport.counters.lateDataBytes += UInt64(range.count)
            return nil
        }
        guard !range.isEmpty else { return nil }
        channels[slot].held += range.count
        let target = channels[slot].windowTarget
        if channels[slot].receiveWindow < target / 4, channels[slot].held <= target / 4 {
            channels[slot].isStarved = true
        }
        dataRange = 5 + range.lowerBound..<5 + range.upperBound
        return .data(id(slot), stream, count: range.count)
    }

    private mutating func receiveWindowAdjust(_ reader: inout WireReader) throws -> SSHEvent? {
        let slot = try openSlot(&reader)
        let count = Int(try reader.uint32())
        // RFC 4254 §5.2: MUST NOT increase beyond 2^32 - 1.
        guard channels[slot].sendWindow + count <= Int(UInt32.max) else { throw SSHError.windowOverflow }
        channels[slot].sendWindow += count
        guard channels[slot].isWriterWaiting else { return nil }
        guard writableCount(slot) > 0 else {
            hasWaitingWriters = true  // keys or room are missing too: looked at when they are there
            return nil
        }
        channels[slot].isWriterWaiting = false
        return .writable(id(slot))
    }

    private mutating func receiveOpen(_ reader: inout WireReader) throws -> SSHEvent? {
        let limits = transport.limits
        let name = try reader.text(limit: limits.nameBytes)
        let remote = try reader.uint32()
        let window = try reader.uint32()
        let packet = try reader.uint32()
        guard let type = try ChannelType.parse(name, &reader, role: transport.role, limits: limits) else {
            try sendOpenFailure(remote, .unknownChannelType, "unknown channel type")
            return nil
        }
        guard let slot = takeSlot() else {
            try sendOpenFailure(remote, .resourceShortage, "too many channels")
            return nil
        }
        channels[slot].state = .offered
        channels[slot].remoteID = remote
        channels[slot].sendWindow = Int(window)
        channels[slot].remotePacketBytes = Int(packet)
        return .channelRequested(id(slot), type)
    }

    mutating func sendOpenFailure(_ remote: UInt32, _ reason: OpenFailure, _ message: String) throws(SSHError)
    {
        transport.counters.refusals += 1
        try transport.send {
            $0.append(Message.channelOpenFailure)
            $0.append(remote)
            $0.append(reason.rawValue)
            $0.appendString(message)
            $0.appendString("")
        }
    }

    private mutating func receiveConfirmation(_ reader: inout WireReader) throws -> SSHEvent? {
        let slot = try requestedSlot(&reader)
        channels[slot].remoteID = try reader.uint32()
        channels[slot].sendWindow = Int(try reader.uint32())
        channels[slot].remotePacketBytes = Int(try reader.uint32())
        channels[slot].state = .open
        return .opened(id(slot))
    }

    private mutating func receiveOpenFailure(_ reader: inout WireReader) throws -> SSHEvent? {
        let slot = try requestedSlot(&reader)
        let reason = try reader.uint32()
        let message = try reader.text(limit: transport.limits.nameBytes)
        let gone = id(slot)
        free(slot)
        return .openFailed(gone, reason: reason, message: message)
    }

    private mutating func receiveRequest(_ reader: inout WireReader) throws -> SSHEvent? {
        let slot = try openSlot(&reader)
        let name = try reader.text(limit: transport.limits.nameBytes)
        let wantsReply = try reader.boolean()
        let request = try ChannelRequest.parse(name, &reader, limits: transport.limits)
        guard !channels[slot].sentClose else { return nil }
        if wantsReply { owedReply = .channel(id(slot)) }
        guard let request else {
            if wantsReply { reply(id(slot), success: false) }
            return nil
        }
        return .request(id(slot), request, wantsReply: wantsReply)
    }

    private mutating func receiveGlobalRequest(_ reader: inout WireReader) throws -> SSHEvent? {
        let name = try reader.text(limit: transport.limits.nameBytes)
        let wantsReply = try reader.boolean()
        if wantsReply { owedReply = .global }
        let request =
            transport.role == .server
            ? try GlobalRequest.parse(name, &reader, limits: transport.limits) : nil
        guard let request else {
            // keepalive@openssh.com lands here too: any answer will do, and sshd refuses it as well.
            if wantsReply { replyGlobal(success: false) }
            return nil
        }
        return .globalRequest(request, wantsReply: wantsReply)
    }

    private mutating func receiveGlobalReply(_ type: UInt8, _ reader: inout WireReader) throws -> SSHEvent? {
        guard !pendingGlobals.isEmpty else { throw SSHError.unexpectedReply }
        guard pendingGlobals.removeFirst() == .request else { return nil }
        let port = type == Message.requestSuccess && reader.remaining >= 4 ? try reader.uint32() : nil
        return .globalReply(success: type == Message.requestSuccess, port: port)
    }
}
