// SPDX-License-Identifier: Apache-2.0

/// Recognises control sequences in what a program writes to its terminal (ECMA-48 §5.4, xterm's `ctlseqs`), one byte
/// at a time. Pure.
struct EscapeScanner: Sendable {
    /// A sequence that has ended.
    enum Sequence: Hashable, Sendable {
        /// `ESC`, intermediates, final: `ESC =`, `ESC ( 0`.
        case escape(intermediates: [UInt8], final: UInt8)
        /// `CSI` with parameters and intermediates as they came: `ESC [ ? 2 5 h`.
        case control(body: [UInt8], final: UInt8)
        /// `OSC` (`]`), `DCS` (`P`), `APC` (`_`), `PM` (`^`), `SOS` (`X`) with the beginning of its text.
        case string(kind: UInt8, body: [UInt8])
    }

    /// What one byte was.
    enum Step: Hashable, Sendable {
        /// Outside of any sequence.
        case text
        /// Part of a sequence that has not ended.
        case inside
        /// The last byte of a sequence.
        case end(Sequence)
        /// The byte that broke a sequence off.
        case aborted
    }

    private enum State: Hashable, Sendable {
        case ground, escape, control
        case string(UInt8)
        /// An `ESC` came: the string's end, if a backslash follows.
        case stringEscape(UInt8)
    }

    /// 64: what is kept of a sequence. No sequence that matters here is longer.
    private static let bodyLimit = 64
    private static let escapeByte: UInt8 = 0x1b

    private var state = State.ground
    private var body: [UInt8] = []

    /// Whether a sequence has begun and not ended.
    var isInside: Bool { state != .ground }

    /// Takes the next byte.
    mutating func scan(_ byte: UInt8) -> Step {
        switch state {
        case .ground:
            guard byte == Self.escapeByte else { return .text }
            begin(.escape)
            return .inside
        case .escape: return afterEscape(byte)
        case .control: return inControl(byte)
        case .string(let kind): return inString(kind, byte)
        case .stringEscape(let kind):
            guard byte == UInt8(ascii: "\\") else {
                begin(.escape)
                return afterEscape(byte)
            }
            return end(.string(kind: kind, body: body))
        }
    }

    private mutating func begin(_ new: State) {
        state = new
        body = []
    }

    private mutating func keep(_ byte: UInt8) -> Step {
        if body.count < Self.bodyLimit { body.append(byte) }
        return .inside
    }

    private mutating func end(_ sequence: Sequence) -> Step {
        begin(.ground)
        return .end(sequence)
    }

    private mutating func abort() -> Step {
        begin(.ground)
        return .aborted
    }

    private mutating func afterEscape(_ byte: UInt8) -> Step {
        switch byte {
        case UInt8(ascii: "[") where body.isEmpty: begin(.control)
        case UInt8(ascii: "]"), UInt8(ascii: "P"), UInt8(ascii: "_"), UInt8(ascii: "^"), UInt8(ascii: "X"):
            guard body.isEmpty else { return end(.escape(intermediates: body, final: byte)) }
            begin(.string(byte))
        case 0x20...0x2f: return keep(byte)
        case 0x30...0x7e: return end(.escape(intermediates: body, final: byte))
        case Self.escapeByte: begin(.escape)
        case 0x18, 0x1a: return abort()
        case 0..<0x20: break  // carried out at once; the sequence goes on
        default: return abort()
        }
        return .inside
    }

    private mutating func inControl(_ byte: UInt8) -> Step {
        switch byte {
        case 0x20...0x3f: return keep(byte)
        case 0x40...0x7e: return end(.control(body: body, final: byte))
        case Self.escapeByte: begin(.escape)
        case 0x18, 0x1a: return abort()
        case 0..<0x20: break
        default: return abort()
        }
        return .inside
    }

    private mutating func inString(_ kind: UInt8, _ byte: UInt8) -> Step {
        switch byte {
        case 0x07 where kind == UInt8(ascii: "]"): return end(.string(kind: kind, body: body))
        case Self.escapeByte: state = .stringEscape(kind)
        case 0x18, 0x1a: return abort()
        default: return keep(byte)
        }
        return .inside
    }
}

extension EscapeScanner.Sequence {
    /// Whether a terminal answers it. Played back, the answer would reach a program that did not ask.
    var isQuery: Bool {
        switch self {
        case .escape(let intermediates, let final):
            return intermediates.isEmpty && final == UInt8(ascii: "Z")  // DECID
        case .control(let body, let final):
            switch final {
            case UInt8(ascii: "c"), UInt8(ascii: "n"): return true  // DA, DSR
            case UInt8(ascii: "p"): return body.last == UInt8(ascii: "$")  // DECRQM
            case UInt8(ascii: "q"): return body.first == UInt8(ascii: ">")  // XTVERSION
            case UInt8(ascii: "u"): return body.first == UInt8(ascii: "?")  // keyboard protocol
            case UInt8(ascii: "x"): return true  // DECREQTPARM
            case UInt8(ascii: "t"):  // reports of the window; the titles' stack (22, 23) is none
                let number = Int(String(decoding: body.prefix { 48...57 ~= $0 }, as: UTF8.self)) ?? 0
                return 11...21 ~= number
            default: return false
            }
        case .string(let kind, let body):
            switch kind {
            case UInt8(ascii: "]"): return body.last == UInt8(ascii: "?")  // colours, clipboard
            case UInt8(ascii: "P"):  // DECRQSS, XTGETTCAP
                return body.starts(with: [UInt8(ascii: "$"), UInt8(ascii: "q")])
                    || body.starts(with: [UInt8(ascii: "+"), UInt8(ascii: "q")])
            default: return false
            }
        }
    }
}
