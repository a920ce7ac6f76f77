// SPDX-License-Identifier: Apache-2.0

/// OpenSSH's escapes at the start of a line: `~.` ends the session, `~^Z` suspends it, `~B` sends a break, `~R` renews
/// the keys, `~C` takes a command for forwards, `~#` lists forwarded connections, `~&` leaves those alone in the
/// background, `~V` and `~v` change how much is told, `~?` helps, `~~` sends one tilde.
package struct EscapeFilter {
    package enum Action: Equatable {
        case pass([UInt8])
        case disconnect
        case suspend
        case `break`
        case rekey
        /// Ask for a command.
        case prompt
        /// What is typed there, as it is to be seen.
        case echo([UInt8])
        case command(String)
        case list
        /// Give the terminal back, and go on until forwarded connections are over.
        case background
        case quieter
        case louder
        case help
    }

    /// Shown by `~?`.
    package static let helpText = """
        Supported escape sequences:
         ~.   - end the session
         ~^Z  - suspend
         ~B   - send a break to the terminal of the workspace
         ~R   - renew the keys of the connection
         ~C   - a command: forward ports, or stop it
         ~#   - list forwarded connections
         ~&   - go to the background until forwarded connections end
         ~V   - tell less of what the connection does (LogLevel)
         ~v   - tell more of it
         ~?   - this message
         ~~   - send the escape character
        (Escapes are only recognized immediately after newline.)

        """

    private var isLineStart = true
    private var hasTilde = false
    /// What was typed of a command.
    private var command: [UInt8]?
    /// 512 bytes: two paths and their flag.
    private static let commandLimit = 512

    package init() {}

    /// What to do, in order.
    package mutating func filter(_ input: ArraySlice<UInt8>) -> [Action] {
        var actions: [Action] = []
        var plain: [UInt8] = []
        for byte in input {
            if command != nil {
                edit(byte, &actions)
            } else if hasTilde {
                hasTilde = false
                if let action = Self.action(byte) {
                    if !plain.isEmpty { actions.append(.pass(plain)) }
                    plain = []
                    actions.append(action)
                    isLineStart = true
                    if action == .prompt { command = [] }
                    if action == .disconnect || action == .background { return actions }
                    continue
                }
                if byte != UInt8(ascii: "~") { plain.append(UInt8(ascii: "~")) }
                plain.append(byte)
            } else if isLineStart, byte == UInt8(ascii: "~") {
                hasTilde = true
                continue
            } else {
                plain.append(byte)
            }
            isLineStart = byte == 13 || byte == 10
        }
        if !plain.isEmpty { actions.append(.pass(plain)) }
        return actions
    }

    /// One byte of a command. What was there before it has been passed on at the `~C`.
    private mutating func edit(_ byte: UInt8, _ actions: inout [Action]) {
        guard var line = command else { return }
        switch byte {
        case 13, 10:
            command = nil
            return actions.append(.command(String(decoding: line, as: UTF8.self)))
        case 3, 7:
            command = nil
            return actions.append(.command(""))
        case 8, 127:
            guard !line.isEmpty else { return }
            while let last = line.popLast(), last & 0xc0 == 0x80 {}
            actions.append(.echo([8, 32, 8]))
        case 0x20... where line.count < Self.commandLimit:
            line.append(byte)
            actions.append(.echo([byte]))
        default: return
        }
        command = line
    }

    private static func action(_ byte: UInt8) -> Action? {
        switch byte {
        case UInt8(ascii: "."): .disconnect
        case 0x1a: .suspend
        case UInt8(ascii: "B"): .break
        case UInt8(ascii: "R"): .rekey
        case UInt8(ascii: "C"): .prompt
        case UInt8(ascii: "#"): .list
        case UInt8(ascii: "&"): .background
        case UInt8(ascii: "V"): .quieter
        case UInt8(ascii: "v"): .louder
        case UInt8(ascii: "?"): .help
        default: nil
        }
    }
}
