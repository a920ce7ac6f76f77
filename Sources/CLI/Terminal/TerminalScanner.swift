// SPDX-License-Identifier: Apache-2.0

/// Follows a program's output to know where something else may be written in between: not inside of a control sequence
/// or a character, and not while the program has the terminal's one place for a cursor in use. ECMA-48 §5.
package struct TerminalScanner {
    private enum State {
        case ground
        /// So many bytes of a UTF-8 character are missing.
        case character(Int)
        case escape
        case intermediate
        case sequence
        /// Of an operating system command and its like, up to BEL or ST.
        case string
        case stringEscape
    }

    private var state = State.ground
    private var hasSavedCursor = false

    package init() {}

    /// Whether text with a saved and restored cursor does no harm now.
    package var isSafe: Bool {
        if case .ground = state { return !hasSavedCursor }
        return false
    }

    package mutating func scan(_ bytes: [UInt8]) {
        for byte in bytes { scan(byte) }
    }

    private mutating func scan(_ byte: UInt8) {
        if byte == 0x1b {
            if case .string = state { state = .stringEscape } else { state = .escape }
            return
        }
        // CAN and SUB end what was begun.
        if byte == 0x18 || byte == 0x1a {
            state = .ground
            return
        }
        switch state {
        case .ground: begin(byte)
        case .character(let missing):
            guard 0x80...0xbf ~= byte else { return begin(byte) }
            state = missing > 1 ? .character(missing - 1) : .ground
        case .escape: escaped(byte)
        case .intermediate: if 0x30...0x7e ~= byte { state = .ground }
        case .sequence:
            guard 0x40...0x7e ~= byte else { return }
            if byte == UInt8(ascii: "s") { hasSavedCursor = true }
            if byte == UInt8(ascii: "u") { hasSavedCursor = false }
            state = .ground
        case .string: if byte == 7 { state = .ground }
        case .stringEscape:
            if byte == UInt8(ascii: "\\") { state = .ground } else { escaped(byte) }
        }
    }

    private mutating func begin(_ byte: UInt8) {
        switch byte {
        case 0xc2...0xdf: state = .character(1)
        case 0xe0...0xef: state = .character(2)
        case 0xf0...0xf4: state = .character(3)
        default: state = .ground
        }
    }

    private mutating func escaped(_ byte: UInt8) {
        switch byte {
        case UInt8(ascii: "["): state = .sequence
        case UInt8(ascii: "]"), UInt8(ascii: "P"), UInt8(ascii: "X"), UInt8(ascii: "^"), UInt8(ascii: "_"):
            state = .string
        case 0x20...0x2f: state = .intermediate
        default:
            if byte == UInt8(ascii: "7") { hasSavedCursor = true }
            // Restored, or everything reset.
            if byte == UInt8(ascii: "8") || byte == UInt8(ascii: "c") { hasSavedCursor = false }
            state = .ground
        }
    }
}
