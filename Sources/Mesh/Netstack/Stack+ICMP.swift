// SPDX-License-Identifier: Apache-2.0

/// ICMP errors that we send.
enum UnreachableKind {
    case portUnreachable
    case protocolUnreachable
}

// ICMP (RFC 792), ICMPv6 (RFC 4443) and TSMP (wireguard-integration.md §8.3).
extension Stack {
    /// Sends an echo request; `echoReply` with the returned token follows if it is answered.
    package mutating func pingEcho(_ destination: IPAddress, from source: IPAddress? = nil) -> UInt64? {
        guard let source = source ?? sourceAddress(for: destination), source.isV4 == destination.isV4 else {
            return nil
        }
        let token = generator.next()
        let kind: UInt8 = source.isV4 ? 8 : 128
        let identifier = echoIdentifier
        let queued = sendICMP(source, destination, size: 16) { out in
            out.put32(UInt32(kind) << 24, 0)
            out.put32(UInt32(identifier) << 16 | UInt32(truncatingIfNeeded: token & 0xffff), 4)
            out.put64(token, 8)
        }
        return queued ? token : nil
    }

    /// Sends a TSMP ping, which a Tailscale-like peer answers below its IP stack; `pong` with the token follows.
    package mutating func pingTSMP(_ destination: IPAddress, from source: IPAddress? = nil) -> UInt64? {
        guard let source = source ?? sourceAddress(for: destination), source.isV4 == destination.isV4 else {
            return nil
        }
        let token = generator.next()
        let queued = sendPacket(source, destination, IPProtocol.tsmp, size: 9) { out in
            out.put8(0x70, 0)
            out.put64(token, 1)
        }
        return queued ? token : nil
    }

    /// False when it was none of the messages that we know.
    mutating func receiveTSMP(_ header: IPHeader, _ payload: PacketBytes) -> Bool {
        switch payload.u8(0) {
        case 0x70 where payload.count >= 9:
            let data = payload.u64(1)
            context.counters.tsmpPongs += 1
            _ = sendPacket(header.destination, header.source, IPProtocol.tsmp, size: 11) { out in
                out.put8(0x6f, 0)
                out.put64(data, 1)
                out.put16(0, 9)  // no peer API
            }
        case 0x6f where payload.count >= 9:
            say(.pong(from: header.source, token: payload.u64(1)))
        case 0x21 where payload.count >= 7:
            context.counters.tsmpRejects += 1
            say(
                .rejected(
                    kind: payload.u8(1), reason: payload.u8(2),
                    local: SocketAddress(header.destination, port: payload.u16(3)),
                    remote: SocketAddress(header.source, port: payload.u16(5))))
        default: return false
        }
        return true
    }

    mutating func receiveICMP(_ header: IPHeader, _ message: PacketBytes, _ now: Instant) {
        let isV4 = header.source.isV4
        let pseudo =
            isV4
            ? 0
            : Checksum.pseudoHeader(header.source, header.destination, IPProtocol.icmpV6)
                &+ Checksum.length(message.count)
        guard message.count >= 8 else {
            context.counters.malformed += 1
            return
        }
        guard Checksum.isValid(Checksum.sum(message, pseudo)) else {
            context.counters.badChecksum += 1
            return
        }
        switch (isV4, message.u8(0)) {
        case (true, 8), (false, 128): answerEcho(header, message)
        case (true, 0), (false, 129):
            guard message.count >= 16, message.u16(4) == echoIdentifier else { return }
            say(.echoReply(from: header.source, token: message.u64(8)))
        case (true, 3), (false, 1), (false, 2):
            context.counters.icmpErrorsReceived += 1
            receiveError(header, message, now)
        default: context.counters.unknownProtocol += 1
        }
    }

    private mutating func answerEcho(_ header: IPHeader, _ message: PacketBytes) {
        guard message.count <= context.mtu - IPHeader.size(isV4: header.source.isV4) else {
            context.counters.packetsDropped += 1
            return
        }
        context.counters.echoReplies += 1
        let kind: UInt8 = header.source.isV4 ? 0 : 129
        _ = sendICMP(header.destination, header.source, size: message.count) { out in
            out.put(message, 0)
            out.put32(UInt32(kind) << 24, 0)
        }
    }

    /// An error about a packet of ours: of TCP only if it quotes a number that is outstanding (RFC 5927), of UDP only
    /// if the destination itself says that nobody listens.
    private mutating func receiveError(_ header: IPHeader, _ message: PacketBytes, _ now: Instant) {
        guard message.count > 8 else {
            context.counters.icmpErrorsIgnored += 1
            return
        }
        let quoted = message.dropFirst(8)
        let isV4 = quoted.u8(0) >> 4 == 4
        let size = isV4 ? Int(quoted.u8(0) & 15) * 4 : IPHeader.v6Size
        let kind = quoted.count >= size + 8 ? quoted.u8(isV4 ? 9 : 6) : 0
        guard size >= 20, isV4 == header.source.isV4, kind == IPProtocol.tcp || kind == IPProtocol.udp else {
            context.counters.icmpErrorsIgnored += 1
            return
        }
        let source =
            isV4 ? IPAddress(v4: quoted.u32(12)) : IPAddress(high: quoted.u64(8), low: quoted.u64(16))
        let target =
            isV4 ? IPAddress(v4: quoted.u32(16)) : IPAddress(high: quoted.u64(24), low: quoted.u64(32))
        let local = SocketAddress(source, port: quoted.u16(size))
        let remote = SocketAddress(target, port: quoted.u16(size + 2))
        if kind == IPProtocol.udp {
            let says = message.u16(0)
            let isRefusal = says == (isV4 ? 0x0303 : 0x0104) && header.source == remote.ip
            guard isRefusal, udpAny || udpPorts.contains(local.port) else {
                context.counters.icmpErrorsIgnored += 1
                return
            }
            return say(.datagramRefused(local: local, remote: remote))
        }
        let sequence = SequenceNumber(quoted.u32(size + 4))
        guard let slot = flows.find(local, remote), sequence >= connections[slot].unacknowledged,
            sequence < connections[slot].sendNext
        else {
            context.counters.icmpErrorsIgnored += 1
            return
        }
        let tooBig = isV4 ? message.u8(0) == 3 && message.u8(1) == 4 : message.u8(0) == 2
        if tooBig {
            let limit = isV4 ? Int(message.u16(6)) : Int(truncatingIfNeeded: message.u32(4))
            // Too big for what? It must be smaller than the packet that it complains about.
            let complainedOf = isV4 ? Int(quoted.u16(2)) : IPHeader.v6Size + Int(quoted.u16(4))
            guard limit < complainedOf, complainedOf <= connections[slot].pathMTU else {
                context.counters.icmpErrorsIgnored += 1
                return
            }
            connections[slot].lowerPathMTU(limit, &context)
        } else if connections[slot].state == .synSent || connections[slot].state == .synReceived {
            connections[slot].die(.unreachable, &context)
        }
        settle(slot)
    }

    /// Tells the sender of a datagram that nobody listens behind this port after all. Quotes what is left of it.
    package mutating func refuseDatagram(to local: SocketAddress, from remote: SocketAddress, now: Instant) {
        let ipSize = IPHeader.size(isV4: local.ip.isV4)
        unsafe withUnsafeTemporaryAllocation(byteCount: ipSize + 8, alignment: 8) { memory in
            guard let out = unsafe PacketWriter(memory) else { return }
            IPHeader.write(out, remote.ip, local.ip, kind: IPProtocol.udp, payloadLength: 8)
            out.put16(remote.port, ipSize)
            out.put16(local.port, ipSize + 2)
            out.put32(8 << 16, ipSize + 4)
            guard let packet = out.bytes(0, ipSize + 8) else { return }
            let header = IPHeader(
                source: remote.ip, destination: local.ip, kind: IPProtocol.udp, payloadOffset: ipSize,
                payloadLength: 8)
            sendUnreachable(header, packet, .portUnreachable, now)
        }
    }

    mutating func sendUnreachable(
        _ header: IPHeader, _ packet: PacketBytes, _ kind: UnreachableKind, _ now: Instant
    ) {
        guard mayReply(now) else { return }
        let isV4 = header.source.isV4
        // RFC 1812 §4.3.2.3 and RFC 4443 §3.1: as much of the packet as fits; the rest of the cause is enough.
        let quote = min(packet.count, isV4 ? 548 : 1_232)
        let code: UInt32
        switch (kind, isV4) {
        case (.portUnreachable, true): code = 3 << 24 | 3 << 16
        case (.portUnreachable, false): code = 1 << 24 | 4 << 16
        case (.protocolUnreachable, true): code = 3 << 24 | 2 << 16
        case (.protocolUnreachable, false): code = 4 << 24 | 1 << 16  // parameter problem: next header
        }
        let pointer: UInt32 = kind == .protocolUnreachable && !isV4 ? 6 : 0
        _ = sendICMP(header.destination, header.source, size: 8 + quote) { out in
            out.put32(code, 0)
            out.put32(pointer, 4)
            out.put(packet.slice(0, quote), 8)
        }
    }

    /// Builds an ICMP message with its checksum; `body` writes it with the checksum field zero.
    private mutating func sendICMP(
        _ source: IPAddress, _ destination: IPAddress, size: Int, _ body: (PacketWriter) -> Void
    ) -> Bool {
        let kind = source.isV4 ? IPProtocol.icmp : IPProtocol.icmpV6
        return sendPacket(source, destination, kind, size: size) { out in
            body(out)
            let pseudo =
                source.isV4
                ? 0 : Checksum.pseudoHeader(source, destination, kind) &+ Checksum.length(size)
            if let bytes = out.bytes(0, size) {
                out.putChecksum(Checksum.finish(Checksum.sum(bytes, pseudo)), 2)
            }
        }
    }

    /// Builds a packet around what `body` writes and queues it.
    private mutating func sendPacket(
        _ source: IPAddress, _ destination: IPAddress, _ kind: UInt8, size: Int,
        _ body: (PacketWriter) -> Void
    ) -> Bool {
        let ipSize = IPHeader.size(isV4: source.isV4)
        return unsafe withUnsafeTemporaryAllocation(byteCount: ipSize + size, alignment: 8) { memory in
            guard let out = unsafe PacketWriter(memory),
                let inner = unsafe PacketWriter(out.region(ipSize, size)),
                let all = out.bytes(0, ipSize + size)
            else { return false }
            IPHeader.write(out, source, destination, kind: kind, payloadLength: size)
            body(inner)
            return context.queue(
                all, local: SocketAddress(source, port: 0), remote: SocketAddress(destination, port: 0))
        }
    }
}

extension Connection {
    /// Cuts segments for packets of `bytes` from now on. What is on its way is left to loss recovery, which cuts
    /// what it repeats anew.
    mutating func setPathMTU(_ bytes: Int) {
        pathMTU = Self.usablePath(bytes, isV4: local.ip.isV4)
        updateSegmentSize()
    }

    /// RFC 791 §3.2, RFC 8200 §5: no less than what each link must carry.
    static func usablePath(_ bytes: Int, isV4: Bool) -> Int { max(bytes, isV4 ? 576 : 1_280) }

    /// A router on the way takes only packets of `limit` bytes. Never below what each link must carry.
    mutating func lowerPathMTU(_ limit: Int, _ context: inout StackContext) {
        let before = pathMTU
        if limit < pathMTU { setPathMTU(limit) }
        guard pathMTU < before else { return }
        // What was too big did not arrive.
        _ = sent.markLost { _ in true }
        wantsOutput(&context)
    }
}
