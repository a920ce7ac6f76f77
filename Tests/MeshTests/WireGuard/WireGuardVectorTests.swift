// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Conformance cases W1 to W4 and W10: byte for byte against recorded handshakes.
@Suite struct WireGuardVectorTests {
    let vectors: WireGuardVectors

    init() throws { vectors = try WireGuardVectors.load() }

    /// RFC 7693 appendix B and the self-test of appendix E: all block borders, with and without key.
    @Test func blake2s() throws {
        var abc = [UInt8](repeating: 0, count: 32)
        var hash = BLAKE2s()
        Array("abc".utf8).withUnsafeBytes { hash.update($0) }
        abc.withUnsafeMutableBytes { hash.finish(into: $0) }
        #expect(Hex.text(abc) == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982")

        func sequence(_ count: Int) -> [UInt8] {
            var (a, b) = (0xdead_4bad &* UInt32(count), UInt32(1))
            return (0..<count).map { _ in
                (a, b) = (b, a &+ b)
                return UInt8(b >> 24)
            }
        }
        var all = BLAKE2s()
        for outputLength in [16, 20, 28, 32] {
            for inputLength in [0, 3, 64, 65, 255, 1024] {
                let key = sequence(outputLength)
                for var hash in [
                    BLAKE2s(outputLength: outputLength),
                    key.withUnsafeBytes { BLAKE2s(outputLength: outputLength, key: $0) },
                ] {
                    var result = [UInt8](repeating: 0, count: outputLength)
                    sequence(inputLength).withUnsafeBytes { hash.update($0) }
                    result.withUnsafeMutableBytes { hash.finish(into: $0) }
                    result.withUnsafeBytes { all.update($0) }
                }
            }
        }
        all.finish(into: &abc)
        #expect(Hex.text(abc) == "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe")
    }

    @Test func keyDerivation() throws {
        #expect(vectors.kdf.count == 3)
        for item in vectors.kdf {
            #expect(
                try BLAKE2s.derive(key: bytes(item.key), bytes(item.input)) == item.t.map { try bytes($0) })
        }
    }

    /// W1: every chain key, hash and key on the way, computed step by step.
    @Test(arguments: 0..<2) func intermediateStates(_ index: Int) throws {
        let handshake = vectors.handshakes[index]
        var state = WireGuard.SymmetricState()
        #expect(state.chainKey.bytes == (try bytes(vectors.initial_chain_key)))
        #expect(state.hash.bytes == (try bytes(vectors.initial_hash)))
        let responder = try WireGuard.Bytes32(hex: vectors.responder_static_public)
        let initiator = try WireGuard.Bytes32(hex: vectors.initiator_static_public)
        let initiatorSecret = try WireGuard.Bytes32(hex: vectors.initiator_static_private)
        let mine = try WireGuard.Bytes32(hex: vectors.initiator_ephemeral_private)
        let theirs = try WireGuard.Bytes32(hex: vectors.responder_ephemeral_private)
        let theirPublic = WireGuard.Curve.publicKey(of: theirs)
        #expect(WireGuard.Curve.publicKey(of: initiatorSecret) == initiator)

        func expect(_ step: Int, _ name: String, key: WireGuard.Bytes32? = nil) throws {
            let expected = handshake.states[step]
            #expect(expected.after == name)
            #expect(Hex.text(state.chainKey.bytes) == expected.chain_key, "\(name)")
            #expect(Hex.text(state.hash.bytes) == expected.hash, "\(name)")
            if let wanted = expected.key { #expect(key.map { Hex.text($0.bytes) } == wanted, "\(name)") }
        }
        try expect(0, "start")
        state.mixHash(responder)
        try expect(1, "mix responder static")
        state.mixEphemeral(WireGuard.Curve.publicKey(of: mine))
        try expect(2, "initiation: e")
        let initiation = try bytes(handshake.initiation)
        var key = state.mixKeyGivingKey(try #require(WireGuard.Curve.shared(mine, responder)))
        state.mixHash(Array(initiation[40..<88]))
        try expect(3, "initiation: es, s", key: key)
        key = state.mixKeyGivingKey(try #require(WireGuard.Curve.shared(initiatorSecret, responder)))
        state.mixHash(Array(initiation[88..<116]))
        try expect(4, "initiation: ss, timestamp", key: key)
        state.mixEphemeral(theirPublic)
        try expect(5, "response: e")
        state.mixKey(try #require(WireGuard.Curve.shared(mine, theirPublic)))
        try expect(6, "response: ee")
        state.mixKey(try #require(WireGuard.Curve.shared(initiatorSecret, theirPublic)))
        try expect(7, "response: se")
        key = state.mixPresharedKey(try WireGuard.Bytes32(hex: handshake.psk))
        try expect(8, "response: psk", key: key)
        state.mixHash(try Array(bytes(handshake.response)[44..<60]))
        try expect(9, "response: empty")
        #expect(Hex.text(state.transportKeys().initiator.bytes) == handshake.key_initiator_to_responder)
        #expect(Hex.text(state.transportKeys().responder.bytes) == handshake.key_responder_to_initiator)
    }

    /// W1, W2: both devices produce and take the recorded messages, from the first initiation on.
    @Test(arguments: 0..<2) func devicesSpeakTheRecording(_ index: Int) throws {
        let handshake = vectors.handshakes[index]
        let initiator = try vectors.initiator(handshake)
        let responder = try vectors.responder(handshake)
        initiator.device.initiateHandshake(initiator.peer, now: .start)
        #expect(initiator.output() == handshake.initiation)
        #expect(try responder.receive(handshake.initiation).0 == .handshake(responder.peer))
        #expect(responder.output() == handshake.response)
        #expect(try responder.seal(handshake.transport[2].plaintext) == nil, "not confirmed yet")
        #expect(try initiator.receive(handshake.response).0 == .handshake(initiator.peer))
        #expect(initiator.output() == handshake.transport[0].wire)
        #expect(try responder.receive(handshake.transport[0].wire).0 == .keepalive(responder.peer))
        for item in handshake.transport[1...1] {
            #expect(try initiator.seal(item.plaintext) == item.wire, "\(item.name)")
            #expect(try responder.receive(item.wire).1 == item.plaintext, "\(item.name)")
        }
        let back = handshake.transport[2]
        #expect(try responder.seal(back.plaintext) == back.wire)
        #expect(try initiator.receive(back.wire).1 == back.plaintext)
        for item in handshake.transport[3...] {
            #expect(try responder.receive(item.wire).1 == item.plaintext, "\(item.name)")
        }
        // W13: a counter at the limit is refused, whatever the tag.
        var beyond = try bytes(handshake.transport[4].wire)
        beyond[8] += 1
        #expect(try responder.receive(Hex.text(beyond)).0 == .dropped(.counterLimit))
    }

    /// W2: the cipher alone, with both back ends.
    @Test(arguments: WireGuard.PacketCipher.BackEnd.allCases)
    func transport(_ backEnd: WireGuard.PacketCipher.BackEnd) throws {
        #expect(WireGuard.PacketCipher.selfTest(backEnd))
        let cipher = WireGuard.PacketCipher(backEnd)
        for handshake in vectors.handshakes {
            for (place, item) in handshake.transport.enumerated() {
                let key =
                    place == 2 ? handshake.key_responder_to_initiator : handshake.key_initiator_to_responder
                cipher.load(try WireGuard.Bytes32(hex: key))
                let padded = try bytes(item.padded)
                let counter = try #require(UInt64(item.counter))
                var packet = padded + [UInt8](repeating: 0, count: 16)
                packet.withUnsafeMutableBytes {
                    cipher.seal($0.baseAddress!, length: padded.count, counter: counter)
                }
                #expect(Hex.text(packet) == String(item.wire.dropFirst(32)), "\(item.name)")
                let isOpened = packet.withUnsafeMutableBytes {
                    cipher.open($0.baseAddress!, length: padded.count, counter: counter)
                }
                #expect(isOpened && Array(packet[..<padded.count]) == padded)
            }
        }
    }

    @Test func theFastestBackEndIsPreferred() {
        #expect(WireGuard.PacketCipher.preferred == WireGuard.PacketCipher.BackEnd.allCases.first)
    }

    /// Every length up to that of several bursts of blocks: same result as libsodium, in place and not; nothing
    /// behind the tag is written; a flipped bit anywhere is found.
    @Test(arguments: WireGuard.PacketCipher.BackEnd.allCases.dropLast())
    func backEndsAgree(_ backEnd: WireGuard.PacketCipher.BackEnd) throws {
        let cipher = WireGuard.PacketCipher(backEnd)
        let model = WireGuard.PacketCipher(.sodium)
        var generator = SeededGenerator(seed: 77)
        for length in Array(0..<2_300) + [4_096, 8_960, 9_000, 65_503] {
            let key = try WireGuard.Bytes32(
                bytes: (0..<32).map { _ in UInt8.random(in: 0...255, using: &generator) })
            cipher.load(key)
            model.load(key)
            let counter = generator.next()
            let filler: UInt8? = length % 7 == 0 ? 0xff : nil
            let plain = (0..<length).map { _ in filler ?? UInt8.random(in: 0...255, using: &generator) }
            var expected = plain + [UInt8](repeating: 0, count: 16) + [0xaa]
            var inPlace = expected
            var apart = [UInt8](repeating: 0xaa, count: length + 17)
            expected.withUnsafeMutableBytes { model.seal($0.baseAddress!, length: length, counter: counter) }
            inPlace.withUnsafeMutableBytes { cipher.seal($0.baseAddress!, length: length, counter: counter) }
            plain.withUnsafeBytes { source in
                apart.withUnsafeMutableBytes {
                    let from = source.baseAddress ?? UnsafeRawPointer($0.baseAddress!)
                    cipher.seal(from, into: $0.baseAddress!, length: length, counter: counter)
                }
            }
            #expect(inPlace == expected && apart == expected, "\(length)")
            apart[Int.random(in: 0..<length + 16, using: &generator)] ^=
                1 << UInt8.random(in: 0...7, using: &generator)
            let isFooled = apart.withUnsafeMutableBytes {
                cipher.open($0.baseAddress!, length: length, counter: counter)
            }
            let isOpened = inPlace.withUnsafeMutableBytes {
                cipher.open($0.baseAddress!, length: length, counter: counter)
            }
            #expect(!isFooled && isOpened && Array(inPlace[..<length]) == plain, "\(length)")
        }
    }

    /// W3: cookie, reply, and the MAC2 of the repeated initiation.
    @Test func cookie() throws {
        let item = vectors.cookie
        let source = WireGuard.Source.address(SocketAddress("192.0.2.1:51820")!)
        #expect(item.source_bytes == "c00002016cca")
        let cookie = WireGuard.Cookie.value(secret: try .init(hex: item.secret), source: source)
        #expect(Hex.text(cookie.bytes) == item.cookie)

        let responder = WireGuard.Identity(try PrivateKey(bytes: bytes(vectors.responder_static_private)))
        #expect(Hex.text(responder.cookieKey.bytes) == item.cookie_key)
        let words = littleEndianWords(try bytes(item.nonce))
        let mac1 = try WireGuard.Bytes16(bytes: bytes(item.ad_mac1_of_initiation))
        var reply = [UInt8](repeating: 0, count: 64)
        reply.withUnsafeMutableBytes {
            WireGuard.Cookie.writeReply(
                into: $0.baseAddress!, receiver: vectors.initiator_index, nonce: words, cookie: cookie,
                mac1: mac1,
                cookieKey: responder.cookieKey)
        }
        #expect(Hex.text(reply) == item.cookie_reply)
        reply.withUnsafeBytes {
            #expect(
                WireGuard.Cookie.openReply($0.baseAddress!, mac1: mac1, cookieKey: responder.cookieKey)
                    == cookie)
        }
        let repeated = try bytes(item.initiation_repeated_with_mac2)
        #expect(Array(repeated[..<132]) == (try Array(bytes(vectors.handshakes[0].initiation)[..<132])))
        let mac2 = cookie.bytes.withUnsafeBytes { key in
            repeated[..<132].withUnsafeBytes { BLAKE2s.mac(key: key, $0) }
        }
        #expect(mac2.bytes == Array(repeated[132...]))
    }

    /// W4.
    @Test func replayTrace() throws {
        let trace = vectors.replay_trace
        let limits = WireGuard.Limits()
        #expect(trace.window == WireGuard.ReplayWindow.size)
        #expect(UInt64(trace.limit) == limits.rejectAfterMessages)
        var window = WireGuard.ReplayWindow()
        for step in trace.steps {
            let counter = try #require(UInt64(step.counter))
            let isAccepted = counter < limits.rejectAfterMessages && window.accept(counter)
            #expect(isAccepted == step.accept, "counter \(counter)")
        }
    }

    @Test func padding() {
        for item in vectors.padding {
            #expect(WireGuard.paddedLength(item.inner, mtu: item.mtu) == item.padded)
        }
    }

    /// W10: silence, no state.
    @Test func messagesToDrop() throws {
        #expect(vectors.must_be_dropped_by_responder.count == 9)
        for item in vectors.must_be_dropped_by_responder {
            let node = try vectors.responder(vectors.handshakes[0])
            guard case .dropped(let reason) = try node.receive(item.wire).0 else {
                Issue.record("\(item.name) was not dropped")
                continue
            }
            #expect(node.counters[reason] == 1 && node.counters.dropped == 1, "\(item.name)")
            #expect(!node.hasOutput && node.nextDeadline == .never, "\(item.name)")
            #expect(node.statistics(of: node.peer, now: .start)?.receivedBytes == 0)
        }
    }
}

extension WireGuard.SymmetricState {
    /// Mixes recorded bytes into the hash.
    mutating func mixHash(_ bytes: [UInt8]) { bytes.withUnsafeBytes { mixHash($0) } }
}

extension BLAKE2s {
    mutating func finish(into bytes: inout [UInt8]) { bytes.withUnsafeMutableBytes { finish(into: $0) } }
}
