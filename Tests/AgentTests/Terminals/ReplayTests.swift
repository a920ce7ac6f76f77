// SPDX-License-Identifier: Apache-2.0

import Agent
import Testing

/// What a viewer that comes later gets, and what viewers send.
@Suite struct ReplayTests {
    private func playback(_ pieces: [String]) -> ReplayBuffer.Playback {
        var buffer = ReplayBuffer()
        for piece in pieces { buffer.append(Array(piece.utf8)[...]) }
        return buffer.playback()
    }

    private func shown(_ pieces: String...) -> String {
        String(decoding: playback(pieces).bytes, as: UTF8.self)
    }

    @Test func whatFitsIsPlayedBackAsItWas() {
        #expect(shown() == "")
        #expect(
            shown("$ ls\r\n\u{1b}[1;32mfile\u{1b}[0m grüße\r\n$ ")
                == "$ ls\r\n\u{1b}[1;32mfile\u{1b}[0m grüße\r\n$ ")
        #expect(
            shown("title\u{1b}]0;me@host\u{7}text\u{1b}(0lqk\u{1b}(B")
                == "title\u{1b}]0;me@host\u{7}text\u{1b}(0lqk\u{1b}(B")
    }

    @Test(arguments: [
        "\u{1b}[c", "\u{1b}[>0c", "\u{1b}[6n", "\u{1b}[?6n", "\u{1b}Z", "\u{5}", "\u{1b}[?2004$p",
        "\u{1b}[>q",
        "\u{1b}[?u", "\u{1b}[18t", "\u{1b}]10;?\u{7}", "\u{1b}]11;?\u{1b}\\", "\u{1b}]52;c;?\u{7}",
        "\u{1b}P$qm\u{1b}\\", "\u{1b}P+q544e\u{1b}\\", "\u{1b}[1x",
    ])
    func queriesAreNotAskedAgain(_ query: String) {
        #expect(shown("a\(query)b") == "ab")
        // In pieces, too.
        let pieces = playback(query.unicodeScalars.map { String($0) } + ["c"])
        #expect(String(decoding: pieces.bytes, as: UTF8.self) == "c")
    }

    @Test(arguments: [
        "\u{1b}[22;0t", "\u{1b}[0 q", "\u{1b}[3u", "\u{1b}]0;what?now\u{7}", "\u{1b}[!p", "\u{1b}[2J",
    ])
    func otherSequencesStay(_ text: String) {
        #expect(shown("a\(text)b") == "a\(text)b")
    }

    @Test func modesOutliveWhatWasDropped() {
        let long = String(repeating: "0123456789abcde\n", count: 8_192)
        let begin = "\u{1b}[?1049h\u{1b}[?1h\u{1b}=\u{1b}[?25l\u{1b}[?1000;1006h"
        let result = playback([begin, long])
        #expect(result.isAlternateScreen)
        #expect(result.bytes.count < ReplayBuffer.limit + 20_000)
        let text = String(decoding: result.bytes.prefix(80), as: UTF8.self)
        #expect(
            text.hasPrefix("\u{1b}[?1049h\u{1b}[?1h\u{1b}[?25l\u{1b}[?1000h\u{1b}[?1006h\u{1b}="),
            "\(text.debugDescription)")
        // What was switched off again, or reset, is not mentioned.
        let end = "\u{1b}[?1049l\u{1b}[?1l\u{1b}>\u{1b}[?25h\u{1b}[?1000;1006l"
        #expect(!playback([begin, end, long]).bytes.contains(0x1b))
        #expect(!playback([begin, "\u{1b}c", long]).bytes.contains(0x1b))
        #expect(!playback([begin, long, end]).isAlternateScreen)
    }

    /// Wherever the cut falls, the playback begins with a whole character outside of any sequence.
    @Test func nothingBeginsInTheMiddle() {
        let unit = "ü\u{1b}[38;5;196m→\u{1b}]0;title\u{7}日本\u{1b}[0m"
        for shift in 0..<unit.utf8.count {
            var buffer = ReplayBuffer()
            buffer.append(Array(repeating: UInt8(ascii: "x"), count: shift)[...])
            for _ in 0..<12 { buffer.append(Array(String(repeating: unit, count: 500).utf8)[...]) }
            let text = String(decoding: buffer.playback().bytes, as: UTF8.self)
            #expect(!text.unicodeScalars.contains("\u{fffd}"))
            let starts = ["ü", "\u{1b}[38", "→", "\u{1b}]0", "日", "本", "\u{1b}[0m"]
            #expect(
                starts.contains { text.hasPrefix($0) }, "shift \(shift): \(text.prefix(12).debugDescription)")
        }
    }

    @Test func noiseHurtsNobody() {
        var generator = Seeded(state: 7)
        for _ in 0..<200 {
            var buffer = ReplayBuffer()
            for _ in 0..<Int.random(in: 1...40, using: &generator) {
                let alphabet: [UInt8] = [
                    0x1b, 0x5b, 0x5d, 0x50, 0x3f, 0x31, 0x3b, 0x68, 0x6c, 0x07, 0x5c, 0x18, 0xc3, 0x41,
                ]
                let piece = (0..<Int.random(in: 0...9_000, using: &generator)).map { _ in
                    alphabet.randomElement(using: &generator) ?? 0
                }
                buffer.append(piece[...])
            }
            #expect(buffer.playback().bytes.count <= ReplayBuffer.limit + 16_384 + 200)
        }
    }

    // MARK: Messages

    private func texts(_ stream: String, cutEach size: Int) throws -> [String] {
        var messages = TerminalMessages()
        var result: [String] = []
        var rest = Array(stream.utf8)[...]
        while !rest.isEmpty {
            for message in try messages.take(rest.prefix(size)) {
                let size = message.size.map { " \($0.rows)x\($0.columns)" } ?? ""
                result.append(String(decoding: message.text, as: UTF8.self) + size)
            }
            rest = rest.dropFirst(size)
        }
        return result
    }

    @Test(arguments: [1, 2, 7, 1_000]) func messagesAreCutAtTheirEnds(_ size: Int) throws {
        let stream = #"""
            {"data":"ls\r"}{"height":24,"width":80}
              {"data":"}\"{\\","height":50,"width":132} {"data":"\u00fcß日"}{}{"other":[{"a":"]"}],"data":"x"}
            {"height":0,"width":80}
            """#
        #expect(try texts(stream, cutEach: size) == ["ls\r", " 24x80", "}\"{\\ 50x132", "üß日", "", "x", ""])
    }

    @Test(arguments: ["x", "[]", "{]", #"{"data":1}"#, #"{"height":70000,"width":1}"#, "{}}", #"{"a" 1}"#])
    func malformedMessagesAreErrors(_ stream: String) {
        #expect(throws: TerminalError.malformed) { try self.texts(stream + " {}", cutEach: 100) }
    }

    @Test func messagesHaveALimit() throws {
        var messages = TerminalMessages()
        _ = try messages.take(Array(#"{"data":""#.utf8)[...])
        let piece = [UInt8](repeating: UInt8(ascii: "a"), count: 1 << 20)
        for _ in 0..<7 { _ = try messages.take(piece[...]) }
        #expect(throws: TerminalError.tooLong) { try messages.take(piece[...]) }
    }
}

/// The same numbers each time (SplitMix64).
private struct Seeded: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var word = state
        word = (word ^ word >> 30) &* 0xbf58_476d_1ce4_e5b9
        word = (word ^ word >> 27) &* 0x94d0_49bb_1331_11eb
        return word ^ word >> 31
    }
}
