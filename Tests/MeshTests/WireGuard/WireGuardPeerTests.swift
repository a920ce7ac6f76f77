// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Peers, their addresses, bursts, staged packets, key replacement, memory.
@Suite struct WireGuardPeerTests {
    /// W7: 10⁵ prefixes of both families against a slow table: inserts, moves, removals, look-ups.
    @Test func allowedIPsAgainstAModel() {
        var generator = SeededGenerator(seed: 1)
        var table = WireGuard.AllowedIPs()
        var model: [IPPrefix: UInt32] = [:]
        func address() -> IPAddress {
            if Bool.random(using: &generator) {
                return IPAddress(v4: UInt32.random(in: .min ... .max, using: &generator) & 0x8f00_ffff)
            }
            return IPAddress(
                high: UInt64.random(in: .min ... .max, using: &generator) & 0xf000_0000_0000_00ff,
                low: UInt64.random(in: .min ... .max, using: &generator) & 0xff00_0000_0000_ffff)
        }
        func prefix() -> IPPrefix {
            let address = address()
            let bits = Int.random(in: 0...(address.bitWidth * 2), using: &generator)
            return IPPrefix(address, bits: min(bits, address.bitWidth))
        }
        func slowOwner(of address: IPAddress) -> UInt32? {
            for bits in (0...address.bitWidth).reversed() {
                if let owner = model[IPPrefix(address, bits: bits)] { return owner }
            }
            return nil
        }
        for step in 0..<200_000 {
            let prefix = prefix()
            let owner = UInt32.random(in: 0..<500, using: &generator)
            #expect(table.insert(prefix, owner: owner) == model.updateValue(owner, forKey: prefix))
            if step % 4 == 0 {
                let gone = Bool.random(using: &generator) ? prefix : model.randomKey(using: &generator)
                #expect(table.remove(gone) == model.removeValue(forKey: gone))
            }
            if step % 8 == 0 {
                let address = Bool.random(using: &generator) ? address() : prefix.address
                #expect(table.owner(of: address) == slowOwner(of: address))
            }
        }
        #expect(table.count == model.count && model.count > 100_000)
        for (prefix, owner) in model { #expect(table.remove(prefix) == owner) }
        #expect(table.count == 0 && table.owner(of: IPAddress("10.0.0.1")!) == nil)
    }

    @Test func longestPrefixWinsAndPrefixesMove() throws {
        let node = WireGuardNode(seed: 2, address: "10.0.0.1")
        let (b, c) = (
            WireGuardNode(seed: 3, address: "10.0.0.2"), WireGuardNode(seed: 4, address: "10.0.0.3")
        )
        let toB = try node.device.addPeer(
            .init(publicKey: b.key, allowedIPs: [IPPrefix("0.0.0.0/0")!, IPPrefix("::/0")!]), now: .start)
        let toC = try node.device.addPeer(
            .init(publicKey: c.key, allowedIPs: [IPPrefix("10.1.2.3/8")!, IPPrefix("fd7a::/16")!]),
            now: .start)
        let look = { (text: String) in node.peer(for: IPAddress(text)!) }
        #expect(look("9.255.255.255") == toB && look("10.0.0.0") == toC && look("10.255.255.255") == toC)
        #expect(look("fd79:ffff::") == toB && look("fd7a::") == toC && look("fd7b::") == toB)
        try node.device.setAllowedIPs([IPPrefix("10.0.0.0/8")!], of: toB)
        #expect(look("10.9.9.9") == toB && look("9.9.9.9") == nil && look("fd7a::1") == toC)
        #expect(node.removePeer(toB))
        #expect(look("10.9.9.9") == nil && look("fd7a::1") == toC)
        try node.device.setAllowedIPs([IPPrefix("10.0.0.0/8")!], of: toC)
        #expect(look("10.9.9.9") == toC && look("fd7a::1") == nil)
    }

    @Test func peersThatCannotBeAdded() throws {
        var limits = WireGuard.Limits()
        limits.peers = 2
        limits.allowedIPs = 3
        let node = WireGuardNode(seed: 5, address: "10.0.0.1", limits: limits)
        let other = WireGuardNode(seed: 6, address: "10.0.0.2")
        let prefixes = (0..<4).map { IPPrefix(host: IPAddress(v4: UInt32($0))) }
        func add(_ key: NodePublicKey, _ prefixes: [IPPrefix] = []) throws -> WireGuard.PeerIndex {
            try node.device.addPeer(.init(publicKey: key, allowedIPs: prefixes), now: .start)
        }
        #expect(throws: WireGuard.ConfigurationError.ownKey) { try add(node.key) }
        #expect(throws: WireGuard.ConfigurationError.lowOrderKey) { try add(.zero) }
        #expect(throws: WireGuard.ConfigurationError.lowOrderKey) {
            try add(NodePublicKey(words: (1, 0, 0, 0)))
        }
        #expect(throws: WireGuard.ConfigurationError.tooManyAllowedIPs) { try add(other.key, prefixes) }
        let first = try add(other.key, Array(prefixes[..<2]))
        #expect(throws: WireGuard.ConfigurationError.duplicatePeer) { try add(other.key) }
        #expect(throws: WireGuard.ConfigurationError.tooManyAllowedIPs) {
            try node.device.setAllowedIPs(prefixes, of: first)
        }
        _ = try add(WireGuardNode(seed: 7, address: "10.0.0.3").key)
        let third = WireGuardNode(seed: 8, address: "10.0.0.4").key
        #expect(throws: WireGuard.ConfigurationError.tooManyPeers) { try add(third) }
        #expect(node.removePeer(first))
        _ = try add(third)
    }

    @Test func aRemovedPeerIsGone() throws {
        let pair = try WireGuardPair(seed: 9)
        pair.connect()
        let data = try #require(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .start))
        #expect(pair.b.removePeer(pair.bToA) && !pair.b.removePeer(pair.bToA))
        #expect(pair.b.receive(data, now: .start).result == .dropped(.unknownIndex))
        #expect(pair.b.nextDeadline == .never && pair.b.peerCount == 0)
        // Its slot is used again; the old name does not reach the new peer.
        let other = WireGuardNode(seed: 99, address: "10.0.0.7")
        let index = try pair.b.add(other)
        #expect(index.slot == pair.bToA.slot && index != pair.bToA)
        #expect(pair.b.statistics(of: pair.bToA, now: .start) == nil)
        #expect(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .start) == nil)
        #expect(!pair.b.hasOutput)
    }

    @Test func burstsAreSealedOneBehindTheOther() throws {
        let pair = try WireGuardPair(seed: 10)
        pair.connect()
        let lengths = (0..<64).map { $0 == 63 ? 100 : 1_280 }
        var buffer = [UInt8](repeating: 0xaa, count: 64 * 1_312)
        var offset = 0
        for (number, length) in lengths.enumerated() {
            let packet = pair.a.packet(to: pair.b, number: number, length: length)
            buffer.replaceSubrange((offset + 16)..<(offset + 16 + length), with: packet)
            offset += WireGuard.paddedLength(length, mtu: 1_280) + WireGuard.overhead
        }
        let outcome = buffer.withUnsafeMutableBytes {
            pair.a.device.sealBurst(pair.aToB, in: $0, payloadLengths: lengths.span, now: .start)
        }
        #expect(outcome == .sealed(length: offset) && offset == 63 * 1_312 + 112 + 32)
        for start in stride(from: 0, to: offset, by: 1_312) {
            pair.b.receive(Array(buffer[start..<min(start + 1_312, offset)]), now: .start)
        }
        #expect(pair.b.packets.count == 64 && pair.b.packets.map(\.count) == lengths)
        #expect(pair.b.packets.map(number(of:)) == Array(0..<64))
        let statistics = try #require(pair.a.statistics(of: pair.aToB, now: .start))
        #expect(statistics.sentBytes == UInt64(offset + 148 + 32) && statistics.hasSession)
        #expect(statistics.lastHandshake == .start)
        let received = try #require(pair.b.statistics(of: pair.bToA, now: .start))
        #expect(received.receivedBytes == statistics.sentBytes)
        // Without a session nothing is sealed and one is sought.
        let late = buffer.withUnsafeMutableBytes {
            pair.a.device.sealBurst(pair.aToB, in: $0, payloadLengths: lengths.span, now: .at(200))
        }
        #expect(late == .needsHandshake && pair.a.hasOutput)
    }

    @Test func stagedPacketsAreBoundedAndKeepOrder() throws {
        let pair = try WireGuardPair(seed: 11)
        for number in 0..<200 {
            #expect(pair.a.send(pair.a.packet(to: pair.b, number: number), to: pair.aToB, now: .start) == nil)
        }
        #expect(pair.a.counters[.stagedOverflow] == 72)
        #expect(pair.a.statistics(of: pair.aToB, now: .start)?.stagedPackets == 128)
        pair.settle(.start)
        #expect(pair.b.packets.map(number(of:)) == Array(72..<200))
        #expect(pair.b.keepalives == 0, "a waiting packet confirms the session")
    }

    @Test func stagedBytesAreBoundedOverAllPeers() throws {
        var limits = WireGuard.Limits()
        limits.stagedBytes = 1_000
        let node = WireGuardNode(seed: 12, address: "10.0.0.1", limits: limits)
        for seed in UInt64(0)..<4 {
            let other = WireGuardNode(seed: 120 + seed, address: "10.0.1.\(seed)")
            let peer = try node.add(other)
            for _ in 0..<3 { _ = node.send(node.packet(to: other, length: 100), to: peer, now: .start) }
        }
        #expect(node.counters[.stagedOverflow] == 2)
        for seed in UInt64(0)..<4 {
            let key = WireGuardNode(seed: 120 + seed, address: "10.0.1.\(seed)").key
            let peer = try #require(node.peer(for: key))
            #expect(node.removePeer(peer))
        }
        let other = WireGuardNode(seed: 130, address: "10.0.2.1")
        let peer = try node.add(other)
        for _ in 0..<10 { _ = node.send(node.packet(to: other, length: 100), to: peer, now: .start) }
        #expect(node.counters[.stagedOverflow] == 2, "removed peers give their share back")
    }

    @Test func theKeyIsReplacedWhileRunning() throws {
        let pair = try WireGuardPair(seed: 13)
        pair.connect()
        let before = try #require(
            pair.b.send(pair.b.packet(to: pair.a, number: 1), to: pair.bToA, now: .at(1)))
        var generator = SeededGenerator(seed: 14)
        let key = PrivateKey(using: &generator)
        #expect(pair.a.setPrivateKey(key, now: .at(1)) == nil)
        pair.a.receive(before, now: .at(1))
        #expect(pair.a.packets.count == 1, "the old session still receives")
        #expect(
            pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(1)) == nil, "but does not send")
        let initiation = pair.a.output(.at(1))[0]
        #expect(pair.b.receive(initiation, now: .at(1)).result == .dropped(.unknownPeer))
        #expect(pair.b.removePeer(pair.bToA))
        let new = try pair.b.device.addPeer(
            .init(publicKey: key.nodePublicKey, allowedIPs: [IPPrefix(host: pair.a.address)]), now: .at(1))
        #expect(pair.b.receive(initiation, now: .at(1)).result == .handshake(new))
        pair.settle(.at(1))
        #expect(pair.b.packets.count == 1)
        // A peer cannot be ourselves.
        #expect(pair.b.setPrivateKey(key, now: .at(2)) == new && pair.b.peerCount == 0)
    }

    /// A packet that waits when the key is replaced goes out with the new key, by itself.
    @Test func aNewKeyBeginsWaitingHandshakesAnew() throws {
        let pair = try WireGuardPair(seed: 19)
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .start) == nil)
        #expect(pair.a.output(.start).count == 1, "lost")
        var generator = SeededGenerator(seed: 20)
        let key = PrivateKey(using: &generator)
        #expect(pair.a.setPrivateKey(key, now: .at(1)) == nil)
        _ = try pair.b.device.addPeer(
            .init(publicKey: key.nodePublicKey, allowedIPs: [IPPrefix(host: pair.a.address)]), now: .at(1))
        pair.settle(.at(1))
        #expect(pair.b.packets.count == 1)
    }

    /// Peers that nobody answers for use up no more than their part: another's first packet finds room, and
    /// the newest of each peer are kept.
    @Test func oneFullOfWaitingPacketsDoesNotStopOthers() throws {
        var limits = WireGuard.Limits()
        limits.stagedBytes = 1_000
        let node = WireGuardNode(seed: 21, address: "10.0.0.1", limits: limits)
        let others = (UInt64(0)..<4).map { WireGuardNode(seed: 210 + $0, address: "10.0.1.\($0)") }
        let peers = try others.map { try node.add($0) }
        for number in 0..<20 {
            let packet = node.packet(to: others[0], number: number, length: 100)
            #expect(node.send(packet, to: peers[0], now: .start) == nil)
        }
        func waiting() -> [Int] {
            peers.map { node.statistics(of: $0, now: .start)?.stagedPackets ?? -1 }
        }
        #expect(waiting() == [10, 0, 0, 0] && node.counters[.stagedOverflow] == 10)
        for place in 1..<4 {
            _ = node.send(node.packet(to: others[place], length: 100), to: peers[place], now: .start)
        }
        #expect(waiting() == [7, 1, 1, 1] && node.counters[.stagedOverflow] == 13)
        // The oldest went, also of the first peer.
        _ = try others[0].add(node)
        for datagram in node.output(.start) where others[0].receive(datagram, now: .start).reply == nil {
            for answer in others[0].output(.start) { node.receive(answer, now: .start) }
        }
        for datagram in node.output(.start) { others[0].receive(datagram, now: .start) }
        #expect(others[0].packets.map(number(of:)) == Array(13..<20))
        // Longer than the link takes by now: counted, and no reason to throw anything else away.
        node.device.setMTU(90)
        _ = node.send(node.packet(to: others[1], length: 100), to: peers[1], now: .start)
        #expect(node.counters[.longerThanMTU] == 1 && waiting()[1] == 1)
    }

    @Test(arguments: WireGuard.PacketCipher.BackEnd.allCases) func keysOfClosedSessionsAreForgotten(
        _ backEnd: WireGuard.PacketCipher.BackEnd
    ) throws {
        let cipher = WireGuard.PacketCipher(backEnd)
        let key = try WireGuard.Bytes32(bytes: Array(repeating: 7, count: 32))
        let other = try WireGuard.Bytes32(bytes: Array(repeating: 8, count: 32))
        func isLoaded(_ key: WireGuard.Bytes32) -> Bool { cipher.isLoaded(key) }
        cipher.load(key)
        cipher.forget(other)
        #expect(isLoaded(key), "another session's end changes nothing")
        cipher.forget(key)
        #expect(!isLoaded(key) && isLoaded(WireGuard.Bytes32()))
    }

    @Test func bothBackEndsUnderstandEachOther() throws {
        let a = WireGuardNode(seed: 15, address: "10.0.0.1", backEnd: .boringSSL)
        let b = WireGuardNode(seed: 16, address: "10.0.0.2", backEnd: .sodium)
        let (aToB, bToA) = (try a.add(b), try b.add(a))
        a.device.initiateHandshake(aToB, now: .start)
        b.receive(a.output(.start)[0], now: .start)
        a.receive(b.output(.start)[0], now: .start)
        b.receive(a.output(.start)[0], now: .start)
        for length in 28...1_280 {
            b.receive(
                try #require(a.send(a.packet(to: b, length: length), to: aToB, now: .start)), now: .start)
            a.receive(
                try #require(b.send(b.packet(to: a, length: length), to: bToA, now: .start)), now: .start)
        }
        #expect(a.packets.map(\.count) == Array(28...1_280) && b.packets.map(\.count) == Array(28...1_280))
    }

    /// Window against the obvious: a set of what was seen.
    @Test func replayWindowAgainstAModel() {
        var generator = SeededGenerator(seed: 17)
        var window = WireGuard.ReplayWindow()
        var seen: Set<UInt64> = []
        var greatest: UInt64 = 0
        for _ in 0..<200_000 {
            let counter: UInt64
            switch Int.random(in: 0..<100, using: &generator) {
            case 0: counter = greatest &+ UInt64.random(in: 0...20_000, using: &generator)
            case 1..<50: counter = greatest &+ UInt64.random(in: 0...3, using: &generator)
            default:
                let back = UInt64.random(in: 0...8_200, using: &generator)
                counter = greatest > back ? greatest - back : 0
            }
            let isFresh = !(greatest > counter && greatest - counter > 8_128) && !seen.contains(counter)
            #expect(window.accept(counter) == isFresh)
            if isFresh { seen.insert(counter) }
            greatest = max(greatest, counter)
        }
    }

    /// 4 KB for a peer that never spoke, 8 KB after a handshake with all old sessions still there.
    @Test func memoryPerPeer() {
        #expect(WireGuard.peerMemory.idle <= 1_024)
        #expect(WireGuard.peerMemory.idle + 5 * WireGuard.peerMemory.session <= 8_192)
    }
}

extension Dictionary {
    /// Any key; for tables that are not empty.
    fileprivate func randomKey(using generator: inout some RandomNumberGenerator) -> Key {
        self[index(startIndex, offsetBy: 0)].key
    }
}
