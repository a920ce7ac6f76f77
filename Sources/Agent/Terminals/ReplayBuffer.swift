// SPDX-License-Identifier: Apache-2.0

/// The last 64 KiB that a program wrote to its terminal, for a viewer that comes later. Pure.
///
/// Upstream plays the plain bytes back. Here the terminal's modes of what has been dropped are kept (an editor's
/// alternate screen, its mouse, a hidden cursor), the playback begins with a whole character outside of any sequence,
/// and it holds nothing that a terminal would answer.
package struct ReplayBuffer: Sendable {
    /// What a new viewer gets.
    package struct Playback: Sendable {
        package var bytes: [UInt8]
        /// A full-screen program runs: it should be asked to draw anew.
        package var isAlternateScreen: Bool
    }

    /// 64 KiB. agent.md §5.1.
    package static let limit = 65_536
    /// Dropped at once, to move the rest seldom.
    private static let slack = 16_384
    /// What is dropped beyond the limit to get out of a sequence.
    private static let sequenceLimit = 4_096

    private var bytes: [UInt8] = []
    /// State of a terminal that saw all that was dropped.
    private var scanner = EscapeScanner()
    private var modes = ScreenModes()

    /// Nothing was written.
    package init() {}

    /// Whether nothing was written.
    package var isEmpty: Bool { bytes.isEmpty }

    /// The program wrote this.
    package mutating func append(_ new: ArraySlice<UInt8>) {
        bytes += new
        guard bytes.count > Self.limit + Self.slack else { return }
        var dropped = 0
        let excess = bytes.count - Self.limit
        while dropped < bytes.count {
            let isCut = scanner.isInside && dropped < excess + Self.sequenceLimit
            guard dropped < excess || isCut else { break }
            if case .end(let sequence) = scanner.scan(bytes[dropped]) { modes.apply(sequence) }
            dropped += 1
        }
        bytes.removeFirst(dropped)
    }

    /// Draws about the same on a fresh terminal.
    package func playback() -> Playback {
        var output = modes.text
        var (scanner, modes) = (scanner, modes)
        // Only a string without end can reach in here: it is left out.
        var isCut = scanner.isInside
        var start = output.count
        let first = isCut ? 0 : bytes.prefix(3).prefix { $0 & 0xc0 == 0x80 }.count
        for byte in bytes[first...] {
            let wasInside = scanner.isInside
            if !wasInside { start = output.count }
            switch scanner.scan(byte) {
            case .text: if byte != 0x05 { output.append(byte) }  // ENQ is a query, too
            case .inside: output.append(byte)
            case .end(let sequence):
                output.append(byte)
                modes.apply(sequence)
                if isCut || sequence.isQuery { output.removeSubrange(start...) }
                isCut = false
            case .aborted:
                output.append(byte)
                if isCut { output.removeSubrange(start...) }
                isCut = false
            }
        }
        if isCut { output.removeSubrange(start...) }
        return Playback(bytes: output, isAlternateScreen: modes.isAlternateScreen)
    }
}

/// Modes of a terminal that change what it sends and shows (DECSET, keypad), as far as they are not at their defaults.
struct ScreenModes: Hashable, Sendable {
    /// Cursor keys, wrap, cursor, mouse reports, focus, bracketed paste. True: set after a reset.
    private static let defaults: [UInt16: Bool] = [
        1: false, 7: true, 25: true, 1000: false, 1002: false, 1003: false, 1004: false, 1005: false,
        1006: false, 1015: false, 2004: false,
    ]
    private static let alternateScreen: Set<UInt16> = [47, 1047, 1049]

    private var changed: Set<UInt16> = []
    private var hasApplicationKeypad = false
    private(set) var isAlternateScreen = false

    mutating func apply(_ sequence: EscapeScanner.Sequence) {
        switch sequence {
        case .escape(let intermediates, let final) where intermediates.isEmpty:
            switch final {
            case UInt8(ascii: "="): hasApplicationKeypad = true
            case UInt8(ascii: ">"): hasApplicationKeypad = false
            case UInt8(ascii: "c"): self = ScreenModes()  // RIS
            default: break
            }
        case .control(let body, let final):
            if body == [UInt8(ascii: "!")], final == UInt8(ascii: "p") {  // DECSTR keeps the screen
                let kept = isAlternateScreen
                self = ScreenModes()
                isAlternateScreen = kept
            }
            guard body.first == UInt8(ascii: "?"), final == UInt8(ascii: "h") || final == UInt8(ascii: "l")
            else { return }
            for word in body.dropFirst().split(separator: UInt8(ascii: ";")) {
                guard let mode = UInt16(String(decoding: word, as: UTF8.self)) else { continue }
                set(mode, final == UInt8(ascii: "h"))
            }
        default: break
        }
    }

    private mutating func set(_ mode: UInt16, _ on: Bool) {
        if Self.alternateScreen.contains(mode) { isAlternateScreen = on }
        guard let usual = Self.defaults[mode] else { return }
        if on == usual { changed.remove(mode) } else { changed.insert(mode) }
    }

    /// Brings a fresh terminal into this state.
    var text: [UInt8] {
        var text = isAlternateScreen ? "\u{1b}[?1049h" : ""
        for mode in changed.sorted() { text += "\u{1b}[?\(mode)\(Self.defaults[mode] == true ? "l" : "h")" }
        if hasApplicationKeypad { text += "\u{1b}=" }
        return Array(text.utf8)
    }
}
