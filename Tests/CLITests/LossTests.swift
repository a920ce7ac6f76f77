// SPDX-License-Identifier: Apache-2.0

import CLI
import LinuxIO
import Testing

/// What happens while a connection is lost: what is said, when, and when there is nothing left to wait for.
@Suite struct LossTests {
    private static let second: UInt64 = 1_000_000_000

    @Test func theNoticeCountsSeconds() {
        var line = LossLine()
        #expect(line.next(0, isSafe: true) == nil && line.deadline(isSafe: true) == nil)
        line.lost(10 * Self.second)
        #expect(line.next(10 * Self.second, isSafe: true) == nil)
        #expect(line.deadline(isSafe: true) == 10 * Self.second + LossLine.patience)
        let first = line.next(10 * Self.second + LossLine.patience, isSafe: true)
        #expect(first?.words == "connection lost, waiting 0 s…" && first?.isBack == false)
        #expect(line.next(11 * Self.second, isSafe: true) == nil)
        line.lost(12 * Self.second)
        #expect(line.next(17 * Self.second, isSafe: true)?.words == "connection lost, waiting 7 s…")
        line.connected(19 * Self.second)
        let last = line.next(20 * Self.second, isSafe: true)
        #expect(last?.words == "connection is back after 9 s" && last?.isBack == true)
        #expect(line.next(30 * Self.second, isSafe: true) == nil && !line.isLost)
    }

    @Test func aShortLossIsNotMentioned() {
        var line = LossLine()
        line.lost(0)
        line.connected(LossLine.patience)
        #expect(line.next(Self.second, isSafe: true) == nil && line.deadline(isSafe: true) == nil)
    }

    /// It waits for the program to finish its sequence, but not for ever, and without being asked all the time.
    @Test func theNoticeDoesNotInterrupt() {
        var line = LossLine()
        line.lost(0)
        #expect(line.next(Self.second, isSafe: false) == nil)
        #expect(line.deadline(isSafe: false) == 2 * Self.second)
        #expect(line.next(2 * Self.second, isSafe: false) != nil)
        line.connected(3 * Self.second)
        #expect(line.next(3 * Self.second, isSafe: false) == nil)
        #expect(line.deadline(isSafe: false) == 5 * Self.second)
        #expect(line.next(3 * Self.second, isSafe: true)?.isBack == true)
    }

    @Test(arguments: [
        ("", true), ("text\r\n", true), ("\u{1b}", false), ("\u{1b}[", false), ("\u{1b}[1;3", false),
        ("\u{1b}[1;31m", true), ("\u{1b}(", false), ("\u{1b}(B", true), ("\u{1b}]0;title", false),
        ("\u{1b}]0;title\u{7}", true), ("\u{1b}]0;title\u{1b}", false), ("\u{1b}]0;title\u{1b}\\", true),
        ("\u{1b}P1$r\u{1b}\\x", true), ("\u{1b}[3\u{18}", true), ("\u{1b}7", false),
        ("\u{1b}7x\u{1b}[2;2Hy", false),
        ("\u{1b}7x\u{1b}8", true), ("\u{1b}[s\u{1b}[u", true), ("\u{1b}[s", false), ("\u{1b}7\u{1b}c", true),
        ("grüße", true),
    ])
    func wherePlaceIsForANotice(_ text: String, _ isSafe: Bool) {
        var scanner = TerminalScanner()
        scanner.scan(Array(text.utf8))
        #expect(scanner.isSafe == isSafe)
        // In pieces it is the same.
        var pieces = TerminalScanner()
        for byte in text.utf8 { pieces.scan([byte]) }
        #expect(pieces.isSafe == isSafe)
    }

    @Test func charactersAreNotCut() {
        for (bytes, isSafe) in [
            ([0xc3], false), ([0xc3, 0xbc], true), ([0xf0, 0x9f, 0x98], false),
            ([0xf0, 0x9f, 0x98, 0x80], true),
            ([0xe2, 0x41], true), ([0xff], true),
        ] as [([UInt8], Bool)] {
            var scanner = TerminalScanner()
            scanner.scan(bytes)
            #expect(scanner.isSafe == isSafe, "\(bytes)")
        }
    }

    /// `localhost` is two addresses, and a service often listens on one of them.
    @Test func eachAddressOfAForwardIsTried() throws {
        let listener = try StreamSocket.listen(on: .loopback(v4: true), bothFamilies: false)
        let own = try StreamSocket.localAddress(listener.number)
        let closed = KernelAddress.loopback(v4: false, port: own.port)
        let socket = try ForwardDial.connect(toFirstOf: [closed, own])
        #expect(socket.number >= 0)
        #expect(throws: (any Error).self) { _ = try ForwardDial.connect(toFirstOf: [closed]).number }
        #expect(throws: (any Error).self) { _ = try ForwardDial.connect(toFirstOf: []).number }
    }

    @Test func aRegionIsAsNearAsItsNearerFamily() {
        let measured = ["1-v4": 0.02, "1-v6": 0.01, "2-v6": 0.5, "x-v4": 1, "3-relay": 1]
        let latencies = NetworkInformation.latencies(measured)
        #expect(latencies.map(\.region) == [1, 2] && latencies.map(\.seconds) == [0.01, 0.5])
    }
}
