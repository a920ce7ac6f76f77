// SPDX-License-Identifier: Apache-2.0

import SSH
import Testing

/// Client and server machines against each other, without I/O.
@Suite struct ConnectionTests {
    @Test(arguments: CipherName.allCases, [1, 7, 500, Int.max])
    func connectsWithAnySplit(cipher: CipherName, piece: Int) throws {
        var pair = Pair(clientCiphers: [cipher])
        pair.pieceBytes = piece
        try pair.pump()
        let key = HostKey(owner: "alice", workspace: "dev", agent: "main")
        expect(pair.clientEvents == [.hostKey(key.blob), .authenticated(user: "coder")])
        expect(pair.serverEvents == [.authenticated(user: "coder")])
        expect(pair.client.sessionID != nil && pair.client.sessionID == pair.server.sessionID)
    }

    @Test func hostKeyIsAFunctionOfTheNames() {
        let key = HostKey(owner: "alice", workspace: "dev", agent: "main")
        expect(key.publicKey == HostKey(owner: "alice", workspace: "dev", agent: "main").publicKey)
        expect(key.publicKey != HostKey(owner: "alice", workspace: "dev", agent: "other").publicKey)
        expect(key.publicKey != HostKey(owner: "alic", workspace: "edev", agent: "main").publicKey)
    }

    @Test func sessionRequestsArriveAndAreAnswered() throws {
        var pair = Pair()
        let (id, remote) = try pair.openSession()
        let modes = [PTYRequest.Mode(opcode: 53, value: 1), PTYRequest.Mode(opcode: 128, value: 38400)]
        let requests: [ChannelRequest] = [
            .pty(PTYRequest(terminal: "xterm", size: WindowSize(columns: 80, rows: 24), modes: modes)),
            .environment(name: "LANG", value: "C.UTF-8"), .shell, .exec(ByteString([0x6c, 0x73, 0xff])),
            .subsystem("sftp"), .windowChange(WindowSize(columns: 1, rows: 2, pixelWidth: 3, pixelHeight: 4)),
            .signal("INT"), .breakSignal(milliseconds: 500), .exitStatus(3),
            .exitSignal(name: "KILL", coreDumped: true, message: "x"), .endOfWrite, .agentForwarding,
            .x11(singleConnection: true, protocol: "MIT-MAGIC-COOKIE-1", cookie: "00ff", screen: 2),
        ]
        pair.serverEvents = []
        pair.clientEvents = []
        for request in requests { expect(pair.client.request(id, request, wantsReply: true)) }
        try pair.pump()
        expect(pair.serverEvents == requests.map { .request(remote, $0, wantsReply: true) })
        expect(pair.clientEvents == requests.map { _ in .reply(id, success: true) })
    }

    @Test func unansweredRequestsAreRefusedInOrder() throws {
        var pair = Pair()
        let (id, _) = try pair.openSession()
        pair.clientEvents = []
        pair.client.request(id, .shell, wantsReply: true)
        pair.client.request(id, .signal("INT"), wantsReply: true)
        _ = Pair.move(&pair.client, &pair.server, .max)
        // One event is taken and not answered; asking for the next one refuses it.
        let first = try pair.server.nextEvent()
        expect(first != nil)
        try pair.pump()
        expect(pair.clientEvents == [.reply(id, success: false), .reply(id, success: true)])
    }

    @Test func globalRequestsAndForwardedChannels() throws {
        var pair = Pair()
        _ = try pair.openSession()
        pair.clientEvents = []
        expect(pair.client.requestGlobal(.tcpipForward(host: "localhost", port: 0)))
        expect(pair.client.requestGlobal(.streamLocalForward(path: "/tmp/s")))
        try pair.pump()
        expect(pair.clientEvents.first == .globalReply(success: true, port: 4242))
        pair.clientEvents = []
        let type = ChannelType.forwardedTCPIP(
            listenHost: "localhost", listenPort: 4242, originHost: "::1", originPort: 9)
        let id = pair.server.openChannel(type)
        try pair.pump()
        guard case .channelRequested(_, let seen)? = pair.clientEvents.first else {
            Issue.record("no channel")
            return
        }
        expect(seen == type)
        expect(pair.serverEvents.last == id.map { .opened($0) })
    }

    @Test func channelTypesThatARoleDoesNotServeAreRefused() throws {
        var pair = Pair()
        _ = try pair.openSession()
        let id = try need(pair.client.openChannel(.agent))
        try pair.pump()
        expect(pair.clientEvents.last == .openFailed(id, reason: 3, message: "unknown channel type"))
    }

    @Test(arguments: CipherName.allCases)
    func dataBothWaysWithRekeysUnderLoad(cipher: CipherName) throws {
        var limits = SSHLimits()
        limits.rekeyBytes = 300_000
        limits.channelWindowBytes = 200_000
        var pair = Pair(seed: 7, clientCiphers: [cipher], limits: limits)
        pair.pieceBytes = 50_000
        let (id, remote) = try pair.openSession()
        let up = pair.generator.bytes(3_000_000), down = pair.generator.bytes(2_000_000)
        var sentUp = 0, sentDown = 0, sentError = 0, rounds = 0
        while pair.serverData.count < up.count || pair.clientData.count < down.count
            || pair.clientErrorData.count < 500_000
        {
            rounds += 1
            guard rounds < 10_000 else { throw Pair.Missing.progress }
            sentUp += pair.client.write(id, Array(up[sentUp..<min(up.count, sentUp + 70_000)]))
            sentDown += pair.server.write(remote, Array(down[sentDown..<min(down.count, sentDown + 70_000)]))
            sentError += pair.server.write(
                remote, Array(down[sentError..<min(500_000, sentError + 30_000)]), stream: .error)
            _ = Pair.move(&pair.client, &pair.server, 40_000)
            try pair.drainServer()
            _ = Pair.move(&pair.server, &pair.client, 40_000)
            try pair.drainClient()
        }
        expect(pair.serverData == up)
        expect(pair.clientData == down)
        expect(pair.clientErrorData == Array(down[..<500_000]))
        expect(pair.client.counters.keyExchanges >= 8)
    }

    @Test func bothEndsMayRenewKeysAtOnce() throws {
        var pair = Pair()
        let (id, _) = try pair.openSession()
        pair.client.renewKeys()
        pair.server.renewKeys()
        // What is written meanwhile waits, requests included.
        expect(pair.client.write(id, [1, 2, 3]) == 0)
        pair.client.request(id, .shell, wantsReply: true)
        pair.clientEvents = []
        try pair.pump()
        expect(pair.clientEvents.contains(.writable(id)))
        expect(pair.clientEvents.contains(.reply(id, success: true)))
        expect(pair.client.counters.keyExchanges == 2 && pair.server.counters.keyExchanges == 2)
        expect(pair.client.write(id, [1, 2, 3]) == 3)
        try pair.pump()
        expect(pair.serverData == [1, 2, 3])
    }

    @Test func windowStopsTheWriterAndOpensAgain() throws {
        var limits = SSHLimits()
        limits.channelWindowBytes = 100_000
        var pair = Pair(limits: limits)
        pair.consumesAtOnce = false
        let (id, remote) = try pair.openSession()
        var sent = 0
        while true {
            let count = pair.client.write(id, [UInt8](repeating: 7, count: 60_000))
            sent += count
            if count == 0 { break }
            try pair.pump()
        }
        expect(sent == 100_000)
        expect(pair.serverData.count == 100_000)
        expect(!pair.clientEvents.contains(.writable(id)))
        pair.server.consumed(remote, 100_000)
        try pair.pump()
        expect(pair.clientEvents.last == .writable(id))
        expect(pair.client.writableCount(id) == 100_000)
    }

    @Test func endAndCloseOfChannels() throws {
        var pair = Pair()
        let (id, remote) = try pair.openSession()
        _ = pair.client.write(id, [1])
        pair.client.sendEOF(id)
        expect(pair.client.write(id, [2]) == 0)
        try pair.pump()
        expect(pair.serverEvents.last == .endOfData(remote))
        _ = pair.server.write(remote, [3])
        pair.server.request(remote, .exitStatus(7))
        pair.server.close(remote)
        try pair.pump()
        expect(pair.clientData == [3])
        expect(
            Array(pair.clientEvents.suffix(2)) == [
                .request(id, .exitStatus(7), wantsReply: false), .closed(id),
            ])
        expect(pair.serverEvents.last == .closed(remote))
        expect(pair.client.channelCount == 0 && pair.server.channelCount == 0)
        // The stale name does nothing, also when its number is in use again.
        let again = try pair.openSession()
        expect(again.client != id)
        expect(pair.client.write(id, [1]) == 0)
    }

    @Test func channelsAreLimited() throws {
        var limits = SSHLimits()
        limits.channels = 3
        var pair = Pair(limits: limits, clientLimits: SSHLimits())
        try pair.pump()
        for _ in 0..<5 { expect(pair.client.openChannel(.session) != nil) }
        try pair.pump()
        let failed = pair.clientEvents.filter { if case .openFailed(_, 4, _) = $0 { true } else { false } }
        expect(failed.count == 2)
        expect(pair.server.channelCount == 3)
    }

    @Test func authenticationByQuestion() throws {
        var pair = Pair(policy: .ask)
        try pair.pump()
        expect(pair.serverEvents == [.authenticationRequested(user: "coder", method: "none")])
        pair.server.answerAuthentication(accept: false)
        #expect(throws: SSHError.authenticationRefused(methods: ["none"])) { try pair.pump() }
    }

    @Test func disconnectIsTold() throws {
        var pair = Pair()
        _ = try pair.openSession()
        pair.server.disconnect(description: "bye")
        #expect(throws: SSHError.disconnected(reason: 11, description: "bye")) {
            _ = Pair.move(&pair.server, &pair.client, .max)
            try pair.drainClient()
        }
        expect(!pair.client.wantsInput)
    }

    @Test func timers() throws {
        var pair = Pair()
        try pair.server.handleTimeout(nowNanoseconds: 1_000)
        expect(pair.server.nextDeadlineNanoseconds == 120_000_001_000)
        #expect(throws: SSHError.loginTimedOut) {
            try pair.server.handleTimeout(nowNanoseconds: 120_000_001_000)
        }

        var other = Pair()
        other.server.setKeepalive(intervalNanoseconds: 10, limit: 2)
        try other.pump()
        try other.server.handleTimeout(nowNanoseconds: 100)
        try other.server.handleTimeout(nowNanoseconds: 110)
        try other.pump()  // the probe is answered
        try other.server.handleTimeout(nowNanoseconds: 111)
        try other.server.handleTimeout(nowNanoseconds: 121)
        try other.server.handleTimeout(nowNanoseconds: 131)
        #expect(throws: SSHError.peerSilent) { try other.server.handleTimeout(nowNanoseconds: 141) }

        var third = Pair()
        try third.pump()
        try third.client.handleTimeout(nowNanoseconds: 0)
        try third.client.handleTimeout(nowNanoseconds: 3_600_000_000_000)
        try third.pump()
        expect(third.server.counters.keyExchanges == 2)
    }

    @Test func noCommonCipher() throws {
        var pair = Pair(clientCiphers: [])
        #expect(throws: SSHError.noCommonAlgorithm("cipher")) { try pair.pump() }
    }

    /// Windows of a thousand channels together stay bounded; what their peers may send says so.
    @Test func laterChannelsBeginWithSmallerWindows() throws {
        var limits = SSHLimits()
        limits.fullWindows = 2
        limits.channelWindowBytes = 5_000
        limits.manyChannelsWindowBytes = 700
        var pair = Pair(limits: limits)
        let windows = try (0..<4).map { _ in
            let session = try pair.openSession()
            return pair.client.writableCount(session.client)
        }
        #expect(windows == [5_000, 5_000, 700, 700])
    }

    @Test func littleIsTakenFromAPeerThatIsNotIn() throws {
        var pair = Pair()
        let bytes = [UInt8](repeating: 0, count: pair.server.limitsBeforeEntry)
        bytes.withUnsafeBytes { pair.server.receive($0) }
        expect(!pair.server.wantsInput)
        var other = Pair()
        try other.pump()
        expect(other.server.isAuthenticated && other.server.wantsInput)
    }
}

extension SSHConnection {
    fileprivate var limitsBeforeEntry: Int { SSHLimits().packetBytesBeforeKeys }
}
