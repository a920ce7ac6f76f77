// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import Testing

private let vectors: DERPVectors = try! PathVectors.load("derp")
private let start = Instant(nanoseconds: 1_000_000_000)

private func serverKey() -> PrivateKey { try! PrivateKey(bytes: PathVectors.bytes(vectors.server_private)) }
private func clientKey() -> PrivateKey { try! PrivateKey(bytes: PathVectors.bytes(vectors.client_private)) }
private func peerKey() -> NodePublicKey { try! NodePublicKey(hex: vectors.peer_public) }

private func makeClient(preferred: Bool = false) -> Client { Client(preferred: preferred) }

/// The machine in a class, since the testing macros want copies of what they look at.
private final class Client {
    private var machine: DERPClient

    init(preferred: Bool) {
        machine = DERPClient(
            privateKey: clientKey(), isPreferred: preferred, random: PathVectors.generator(7), now: start)
    }

    var hasOutput: Bool { machine.hasOutput }
    var isReady: Bool { machine.isReady }
    var counters: DERPClient.Counters { machine.counters }
    var nextDeadline: Instant { machine.nextDeadline }

    func handleTimeout(now: Instant) throws { try machine.handleTimeout(now: now) }

    func send(_ packet: [UInt8], now: Instant = start) -> Bool {
        machine.send(packet.span.bytes, to: peerKey(), now: now)
    }

    func payload(_ range: Range<Int>) -> [UInt8] { machine.withPayload(range) { Array($0) } }

    /// Everything that happens on these bytes.
    func events(_ bytes: [UInt8], now: Instant = start) throws -> [DERPClient.Event] {
        machine.receive(bytes.span.bytes)
        var result: [DERPClient.Event] = []
        while let event = try machine.nextEvent(now: now) { result.append(event) }
        return result
    }

    func send(_ packet: [UInt8], isUrgent: Bool) -> Bool {
        machine.send(packet.span.bytes, to: peerKey(), isUrgent: isUrgent, now: start)
    }

    /// What a write that takes at most `limit` bytes writes.
    func takeOutput(atMost limit: Int = .max) -> [UInt8] {
        let bytes = machine.withOutput { $0.wireBytes(0..<min($0.byteCount, limit)) }
        machine.consumeOutput(bytes.count)
        return bytes
    }
}

private final class Session {
    private var machine: DERPServerSession

    init(serverKey: PrivateKey, meshKey: String = "") {
        machine = DERPServerSession(serverKey: serverKey, meshKey: meshKey)
    }

    var isMeshPeer: Bool { machine.isMeshPeer }

    func serverInfoFrame(_ info: DERPServerInfo, random: inout SecureGenerator) -> [UInt8] {
        machine.serverInfoFrame(info, random: &random)
    }

    /// Everything in these bytes, and how many were used.
    func inputs(_ bytes: [UInt8]) throws(DERPError) -> (inputs: [DERPServerSession.Input], used: Int) {
        var offset = 0
        var needed = 0
        var result: [DERPServerSession.Input] = []
        while let input = try machine.next(in: bytes.span.bytes, offset: &offset, needed: &needed) {
            result.append(input)
        }
        return (result, offset)
    }
}

@Suite struct DERPLoginTests {
    @Test(arguments: vectors.client_info) func serverOpensClientInfo(_ vector: DERPVectors.ClientInfo) throws
    {
        let mesh = "0123456789abcdefghijklmnopqrstuv"
        let session = Session(serverKey: serverKey(), meshKey: mesh)
        let (inputs, used) = try session.inputs(PathVectors.bytes(vector.frame))
        #expect(used == vector.frame.utf8.count / 2)
        guard case .login(let key, let info)? = inputs.first else {
            Issue.record("no login")
            return
        }
        #expect(key == clientKey().nodePublicKey)
        #expect(session.isMeshPeer == vector.json.contains(mesh))
        #expect(info.canAckPings == vector.json.contains("\"CanAckPings\":true"))
        #expect(info.isProber == vector.json.contains("IsProber"))
        if !vector.json.contains("someFuture") {
            #expect(String(decoding: info.json, as: UTF8.self) == vector.json)
        }
    }

    @Test func bothSidesMeet() throws {
        let client = makeClient(preferred: true)
        // A packet sent before anything is known leaves behind the login.
        #expect(client.send([1, 2, 3]))
        #expect(!client.hasOutput)
        let hello = DERPServerSession.serverKeyFrame(serverKey().nodePublicKey)
        #expect(hello == (try vectors.frame("ServerKey")))
        #expect(try client.events(hello) == [.serverKey(serverKey().nodePublicKey)])
        let session = Session(serverKey: serverKey())
        let output = client.takeOutput()
        let (inputs, used) = try session.inputs(output)
        #expect(used == output.count && inputs.count == 3)
        #expect(inputs[0] == .login(clientKey().nodePublicKey, DERPClientInfo()))
        #expect(inputs[1] == .notePreferred(true))
        guard case .send(peerKey(), let payload) = inputs[2] else {
            Issue.record("no packet")
            return
        }
        #expect(Array(output[payload]) == [1, 2, 3])
        var random = PathVectors.generator(8)
        let info = DERPServerInfo(tokenBucketBytesPerSecond: 1000, tokenBucketBytesBurst: 70_000)
        #expect(try client.events(session.serverInfoFrame(info, random: &random)) == [.ready(info)])
        #expect(client.isReady)
    }

    @Test(arguments: [(1, Int.max), (Int.max, Int.max), (Int.max, 0), (-1, -1), (0, Int.max)])
    func noRateOfTheRelayEndsTheProgram(_ rate: (perSecond: Int, burst: Int)) throws {
        let client = makeClient()
        _ = try client.events(vectors.frame("ServerKey"))
        let session = Session(serverKey: serverKey())
        _ = try session.inputs(client.takeOutput())
        var random = PathVectors.generator(9)
        let info = DERPServerInfo(
            tokenBucketBytesPerSecond: rate.perSecond, tokenBucketBytesBurst: rate.burst)
        #expect(try client.events(session.serverInfoFrame(info, random: &random)).count == 1)
        for later in [0, 1, 1_000_000_000, 1 << 61] {
            #expect(client.send([1, 2, 3], now: start + Interval(nanoseconds: UInt64(later))))
        }
    }

    @Test func vectorsOfTheServerAreUnderstood() throws {
        let client = makeClient()
        _ = try client.events(vectors.frame("ServerKey with future bytes"))
        _ = client.takeOutput()
        let ready = try client.events(vectors.frame("ServerInfo"))
        #expect(ready == [.ready(DERPServerInfo())])
        let packet = try vectors.frame("RecvPacket")
        guard case .packet(let source, let payload)? = try client.events(packet).first else {
            Issue.record("no packet")
            return
        }
        #expect(source == clientKey().nodePublicKey)
        #expect(client.payload(payload) == Array(packet[37...]))
        #expect(try client.events(vectors.frame("KeepAlive")) == [.keepAlive])
        #expect(
            try client.events(vectors.frame("PeerGone disconnected")) == [.peerGone(peerKey(), .disconnected)]
        )
        #expect(try client.events(vectors.frame("PeerGone not-here")) == [.peerGone(peerKey(), .notHere)])
        #expect(try client.events(vectors.frame("PeerGone legacy")) == [.peerGone(peerKey(), .disconnected)])
        #expect(try client.events(vectors.frame("PeerPresent long")) == [.peerPresent(peerKey())])
        #expect(try client.events(vectors.frame("Health problem")) == [.health("duplicate client")])
        #expect(try client.events(vectors.frame("Health clear")) == [.health(nil)])
        let restart = DERPClient.Event.restarting(
            reconnectIn: .milliseconds(1500), tryFor: .milliseconds(4000))
        #expect(try client.events(vectors.frame("Restarting")) == [restart])
        #expect(try client.events(vectors.frame("Pong")) == [.pong(0x4142_4344_4546_4748)])
        #expect(try client.events(vectors.frame("Unknown type 0x7f")).isEmpty)
        #expect(try client.events(vectors.frame("Ping long")).isEmpty)
        #expect(client.takeOutput() == (try vectors.frame("Pong")))
    }

    @Test func tokenBucketIsKept() throws {
        let client = makeClient()
        _ = try client.events(vectors.frame("ServerKey"))
        let bucket = try vectors.frame("ServerInfo with token bucket")
        guard case .ready(let info)? = try client.events(bucket).first else {
            Issue.record("not ready")
            return
        }
        #expect(info.tokenBucketBytesPerSecond > 0)
        _ = client.takeOutput()
        let packet = [UInt8](repeating: 0, count: 1000)
        var sent = 0
        while client.send(packet), sent < 1 << 20 {
            sent += packet.count
            _ = client.takeOutput()
        }
        #expect(client.counters.packetsDroppedRate == 1)
        // The burst is at least one largest packet.
        #expect(sent < max(info.tokenBucketBytesBurst, 66_000) + 1000)
        let second = start + .seconds(1)
        if info.tokenBucketBytesPerSecond > 2000 {
            #expect(client.send(packet, now: second))
        }
    }

    // derp.md D3
    @Test func framesSplitAtEveryByte() throws {
        let client = makeClient()
        var events: [DERPClient.Event] = []
        let names = [
            "ServerKey", "ServerInfo", "Unknown type 0x7f", "KeepAlive", "RecvPacket", "PeerGone legacy",
        ]
        for name in names {
            for byte in try vectors.frame(name) { events += try client.events([byte]) }
        }
        #expect(events.count == 5)
        let session = Session(serverKey: serverKey())
        let stream =
            try PathVectors.bytes(vectors.client_info[0].frame) + vectors.frame("Unknown type 0x7f")
            + vectors.frame("SendPacket") + vectors.frame("Ping")
        var waiting: [UInt8] = []
        var inputs: [DERPServerSession.Input] = []
        for byte in stream {
            waiting.append(byte)
            let (found, used) = try session.inputs(waiting)
            inputs += found
            waiting.removeFirst(used)
        }
        #expect(inputs.count == 4 && waiting.isEmpty)
        #expect(inputs.last == .ping(0x4142_4344_4546_4748))
    }

    // derp.md D13, D15, D16
    @Test(arguments: vectors.malformed) func malformed(_ vector: DERPVectors.Malformed) throws {
        let bytes = try PathVectors.bytes(vector.bytes)
        if vector.receiver == "client" {
            let client = makeClient()
            if !vector.name.contains("ServerKey"), vector.name != "bad magic" {
                _ = try client.events(vectors.frame("ServerKey") + vectors.frame("ServerInfo"))
            }
            if vector.expect.hasPrefix("skip") {
                #expect(try client.events(bytes).isEmpty)
                #expect(try client.events(vectors.frame("KeepAlive")) == [.keepAlive])
            } else {
                #expect(throws: DERPError.self) { _ = try client.events(bytes) }
            }
            return
        }
        let session = Session(serverKey: serverKey())
        if !vector.name.hasPrefix("ClientInfo"), !vector.name.hasPrefix("first frame") {
            _ = try session.inputs(PathVectors.bytes(vectors.client_info[0].frame))
        }
        if vector.name.hasPrefix("truncated") {
            #expect(try session.inputs(bytes).inputs.isEmpty)
        } else {
            #expect(throws: DERPError.self) { _ = try session.inputs(bytes) }
            // It stays closed.
            #expect((try? session.inputs(vectors.frame("Ping")).inputs) == [])
        }
    }

    // derp.md D16: no crash on keys without a secret, nor on a login sealed for another relay.
    @Test func hostileLogins() throws {
        let good = try PathVectors.bytes(vectors.client_info[0].frame)
        for key in [[UInt8](repeating: 0, count: 32), [1] + [UInt8](repeating: 0, count: 31)] {
            let session = Session(serverKey: serverKey())
            let bad = Array(good[..<5]) + key + Array(good[37...])
            #expect(throws: DERPError.weakKey) { _ = try session.inputs(bad) }
        }
        let other = Session(serverKey: PathVectors.privateKey(3))
        #expect(throws: DERPError.cannotOpen) { _ = try other.inputs(good) }
    }

    // derp.md D15: a relay without mesh key never grants it.
    @Test func meshKeyNeedsToBeConfigured() throws {
        let frame = try PathVectors.bytes(vectors.client_info[1].frame)
        for key in ["", "0123456789abcdefghijklmnopqrstuX", "0"] {
            let session = Session(serverKey: serverKey(), meshKey: key)
            _ = try session.inputs(frame)
            #expect(!session.isMeshPeer)
            #expect(throws: DERPError.notMeshPeer(type: 0x10)) {
                _ = try session.inputs(vectors.frame("WatchConns"))
            }
        }
        let session = Session(serverKey: serverKey(), meshKey: "0123456789abcdefghijklmnopqrstuv")
        _ = try session.inputs(frame)
        #expect(try session.inputs(vectors.frame("WatchConns")).inputs == [.watchConnections])
        #expect(try session.inputs(vectors.frame("ClosePeer")).inputs == [.closePeer(peerKey())])
    }

    @Test func outputIsBounded() throws {
        let client = makeClient()
        _ = try client.events(vectors.frame("ServerKey") + vectors.frame("ServerInfo"))
        let packet = [UInt8](repeating: 0, count: 60_000)
        var accepted = 0
        while client.send(packet) { accepted += 1 }
        #expect(accepted < 8)
        let tooLong = [UInt8](repeating: 0, count: 65_537)
        #expect(!client.send(tooLong))
        #expect(client.counters.packetsDroppedFull == 2)
    }

    /// First payload bytes of the packets in `bytes`, which may begin with other frames.
    private func order(of bytes: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        var at = 0
        while at + 5 <= bytes.count {
            let length = bytes[at + 1..<at + 5].reduce(0) { $0 << 8 | Int($1) }
            if bytes[at] == 4 { result.append(bytes[at + 37]) }
            at += 5 + length
        }
        return result
    }

    @Test func whatWaitsForTheLoginIsBoundedByTimeAndBytes() throws {
        let client = makeClient()
        let limits = DERPClient.Limits()
        #expect(client.send([1]))
        #expect(client.send([2], isUrgent: true))
        for number in 3...5 { #expect(client.send([UInt8(number)])) }
        #expect(client.send([6], isUrgent: true))
        _ = try client.events(vectors.frame("ServerKey"))
        // The newest handshake first, data in its order.
        #expect(order(of: client.takeOutput()) == [6, 2, 1, 3, 4, 5])
        #expect(client.counters.packetsDroppedLate == 0)

        let late = makeClient()
        #expect(late.send([1]))
        #expect(late.send([2], isUrgent: true))
        _ = try late.events(vectors.frame("ServerKey"), now: start + limits.earlyData + .milliseconds(1))
        #expect(order(of: late.takeOutput()) == [2])
        #expect(late.counters.packetsDroppedLate == 1)

        let full = makeClient()
        #expect(full.send([9], isUrgent: true))
        let packet = { (number: UInt8) in [number] + [UInt8](repeating: 0, count: 60_000) }
        for number in 0..<20 as Range<UInt8> { #expect(full.send(packet(number))) }
        _ = try full.events(vectors.frame("ServerKey"))
        let output = full.takeOutput()
        #expect(output.count < limits.outputBytes + 4_096)
        #expect(order(of: output) == [9, 16, 17, 18, 19])
        #expect(full.counters.packetsDroppedFull == 16)
    }

    @Test(arguments: [1, 7, 36, 37, 38, 1_000]) func urgentFramesOvertakeBetweenFrames(step: Int) throws {
        let client = makeClient()
        _ = try client.events(vectors.frame("ServerKey") + vectors.frame("ServerInfo"))
        while client.hasOutput { _ = client.takeOutput() }
        for number in 0..<3 { #expect(client.send([UInt8](repeating: UInt8(number), count: 500))) }
        // The first frame is under way when something urgent comes.
        var written = client.takeOutput(atMost: step)
        #expect(client.send([UInt8](repeating: 100, count: 60), isUrgent: true))
        #expect(client.send([UInt8](repeating: 101, count: 60), isUrgent: true))
        while client.hasOutput { written += client.takeOutput(atMost: step) }
        var order: [UInt8] = []
        var at = 0
        while at + 5 < written.count {
            let length = Int(written[at + 3]) << 8 | Int(written[at + 4])
            #expect(written[at] == 4)
            order.append(written[at + 37])
            at += 5 + length
        }
        #expect(at == written.count)
        let behind = step < 537 ? [0, 100, 101, 1, 2] : [0, 1, 100, 101, 2]
        #expect(order == behind.map { UInt8($0) })
    }

    // derp.md D12
    @Test func silenceAndSlowLoginEndTheConnection() throws {
        let client = makeClient()
        #expect(client.nextDeadline == start + .seconds(10))
        #expect(throws: DERPError.loginTimeout) { try client.handleTimeout(now: start + .seconds(10)) }
        _ = try client.events(vectors.frame("ServerKey") + vectors.frame("ServerInfo"))
        #expect(client.nextDeadline == start + .seconds(120))
        #expect(throws: Never.self) { try client.handleTimeout(now: start + .seconds(119)) }
        #expect(throws: DERPError.silence) { try client.handleTimeout(now: start + .seconds(120)) }
    }

    // derp.md D17
    @Test func loginJSONIsBounded() throws {
        func read(_ text: String) throws(LoginJSON.Failure) -> DERPClientInfo {
            try DERPClientInfo(json: Array(text.utf8).span.bytes)
        }
        #expect(throws: LoginJSON.Failure.tooDeep) {
            try read("{\"x\":" + String(repeating: "[", count: 100_000))
        }
        #expect(throws: LoginJSON.Failure.tooManyKeys) {
            try read("{" + (0..<1000).map { "\"k\($0)\":1" }.joined(separator: ",") + "}")
        }
        for bad in [
            "", "{", "[]", "{\"version\":2", "{\"version\":2}x", "{\"version\":\"2\"}", "{version:2}",
            "{\"a\":01x}",
        ] {
            #expect(throws: LoginJSON.Failure.self) { try read(bad) }
        }
        let odd = try read(
            " { \"VERSION\" : 2 , \"canackpings\":true,\"x\":[1,{\"y\":\"\\u00e9\\n\"}],\"meshKey\":null } ")
        #expect(odd == DERPClientInfo())
        #expect(try read("{\"meshKey\":\"\\ud83d\\ude00\\\"\"}").meshKey == "😀\"")
    }
}
