// SPDX-License-Identifier: Apache-2.0

extension YamuxSession {
    /// Takes bytes of the transport, split in any way. An error is fatal for the session.
    public mutating func receive(_ bytes: ArraySlice<UInt8>, now: Duration) throws(YamuxError) {
        if let failure { throw failure }
        var rest = bytes
        while !rest.isEmpty {
            if bodyLeft > 0 {
                let part = rest.prefix(bodyLeft)
                rest = rest.dropFirst(part.count)
                bodyLeft -= part.count
                deliver(part)
            } else {
                let part = rest.prefix(YamuxHeader.size - headerBytes.count)
                rest = rest.dropFirst(part.count)
                headerBytes += part
                guard headerBytes.count == YamuxHeader.size else { return }
                let header: YamuxHeader
                do { header = try YamuxHeader(parsing: headerBytes[...]) } catch { throw fail(error) }
                headerBytes.removeAll(keepingCapacity: true)
                try handle(header, now: now)
            }
            guard output.count <= limits.outputBytes * 2 else { throw fail(.outputOverflow) }
        }
    }

    private mutating func handle(_ header: YamuxHeader, now: Duration) throws(YamuxError) {
        switch header.kind {
        case .ping: handlePing(header)
        case .goAway:
            guard header.length == 0 else { throw fail(.remoteGoAway(header.length)) }
            remoteGoneAway = true
            events.append(.goAway)
        case .data, .windowUpdate:
            if header.flags.contains(.syn) { try handleOpen(header.stream, now: now) }
            try handleStream(header)
        }
    }

    private mutating func handlePing(_ header: YamuxHeader) {
        if header.flags.contains(.syn) {
            send(YamuxHeader(.ping, .ack, stream: 0, length: header.length))
        } else if header.flags.contains(.ack) {
            if keepAlivePing?.value == header.length { keepAlivePing = nil }
            guard pings.remove(header.length) != nil else { return }  // unsolicited: ignored, §3.4
            events.append(.pong(header.length))
        }
    }

    private mutating func handleOpen(_ id: YamuxStreamID, now: Duration) throws(YamuxError) {
        guard id != 0, isIncoming(id) else { throw violation(.wrongStreamID(id)) }
        guard streams[id] == nil else { throw violation(.duplicateStream(id)) }
        guard acceptQueue.count < limits.acceptBacklog, incomingCount < limits.liveStreams else {
            // Not in the table, so the rest of the frame is dropped as one of an unknown stream.
            send(YamuxHeader(.windowUpdate, .rst, stream: id))
            return
        }
        streams[id] = Stream(acknowledged: false, openedAt: now)
        incomingCount += 1
        acceptQueue.append(id)
        events.append(.incoming)
    }

    private mutating func handleStream(_ header: YamuxHeader) throws(YamuxError) {
        let id = header.stream
        let bodyCount = header.kind == .data ? Int(header.length) : 0
        bodyLeft = bodyCount
        bodyStream = nil
        bodyEndsStream = false
        guard let stream = streams[id] else { return }  // unknown: the body is dropped

        if header.flags.contains(.ack), !stream.acknowledged, !isIncoming(id) {
            streams[id]?.acknowledged = true
            unacknowledged -= 1
            events.append(.established(id))
        }
        if header.flags.contains(.rst) {
            remove(id)
            events.append(.reset(id))
            return
        }
        let ends = header.flags.contains(.fin)
        guard !stream.remoteClosed || (!ends && bodyCount == 0) else { throw violation(.repeatedFIN(id)) }
        if header.kind == .windowUpdate {
            // Clamped: no honest window is near 2^32.
            streams[id]?.sendWindow = min(stream.sendWindow + Int(header.length), Int(UInt32.max))
            if stream.sendWindow == 0, header.length > 0 { events.append(.writable(id)) }
        } else {
            guard bodyCount <= stream.receiveWindow else { throw violation(.windowExceeded(id)) }
            guard buffered + bodyCount <= limits.bufferedBytes else { throw violation(.inputOverflow) }
            streams[id]?.receiveWindow -= bodyCount
            bodyStream = id
            bodyEndsStream = ends && bodyCount > 0
        }
        if ends, bodyCount == 0 { remoteClose(id) }
    }

    /// Body bytes of the current frame; `bodyLeft` has been counted down already.
    private mutating func deliver(_ part: ArraySlice<UInt8>) {
        guard let id = bodyStream, let isReleased = streams[id]?.released else { return }
        if !isReleased {
            // The window was checked with the header. No copy of the stream here: its buffer grows in place.
            if streams[id]?.buffer.isEmpty == true { events.append(.readable(id)) }
            streams[id]?.buffer += part
            buffered += part.count
        }
        if bodyLeft == 0, bodyEndsStream { remoteClose(id) }
    }

    private mutating func remoteClose(_ id: YamuxStreamID) {
        streams[id]?.remoteClosed = true
        events.append(.remoteClosed(id))
        removeIfDone(id)
    }

    // MARK: - Shared pieces

    func isIncoming(_ id: YamuxStreamID) -> Bool {
        id % 2 == (role == .client ? 0 : 1)
    }

    mutating func send(_ header: YamuxHeader) { header.write(into: &output) }

    /// Sends credit when at least half of the window can be given, or a flag is due. rpc-transport §3.3.
    mutating func grant(_ id: YamuxStreamID, with flags: YamuxHeader.Flags = []) {
        guard let stream = streams[id], !stream.released else { return }
        let window = max(limits.receiveWindow, Self.initialWindow)
        let credit = max(0, window - stream.buffer.count - stream.receiveWindow)
        let isDue = credit >= window / 2 && !stream.remoteClosed
        guard isDue || !flags.isEmpty else { return }
        streams[id]?.receiveWindow += credit
        send(YamuxHeader(.windowUpdate, flags, stream: id, length: UInt32(clamping: credit)))
    }

    /// A stream that both sides have closed leaves the table once its bytes were read or nobody wants them.
    mutating func removeIfDone(_ id: YamuxStreamID) {
        guard let stream = streams[id], stream.localClosed, stream.remoteClosed else { return }
        guard stream.buffer.isEmpty || stream.released else { return }
        remove(id)
    }

    mutating func remove(_ id: YamuxStreamID) {
        guard let stream = streams.removeValue(forKey: id) else { return }
        buffered -= stream.buffer.count
        if isIncoming(id) {
            incomingCount -= 1
            acceptQueue.removeAll { $0 == id }
        } else if !stream.acknowledged {
            unacknowledged -= 1
        }
    }

    /// Records the peer's fault and tells it by GoAway 1.
    private mutating func violation(_ error: YamuxError) -> YamuxError {
        send(YamuxHeader(.goAway, stream: 0, length: 1))
        return fail(error)
    }

    @discardableResult
    mutating func fail(_ error: YamuxError) -> YamuxError {
        if failure == nil {
            failure = error
            streams = [:]
            acceptQueue = []
            pings = []
            buffered = 0
            incomingCount = 0
            unacknowledged = 0
            bodyLeft = 0
        }
        return failure ?? error
    }
}
