// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Standard input, output and error of the program. Tests put closures in their place.
public struct Console: Sendable {
    /// Results.
    public var out: @Sendable (String) -> Void
    /// Notices, errors, progress.
    public var error: @Sendable (String) -> Void
    /// One line of input without its line break; nil at the end.
    public var readLine: @Sendable () -> String?
    /// Whether people see the output and type the input.
    public var isInputTerminal: Bool
    public var isOutputTerminal: Bool
    public var isErrorTerminal: Bool

    /// A console of closures.
    public init(
        out: @escaping @Sendable (String) -> Void, error: @escaping @Sendable (String) -> Void,
        readLine: @escaping @Sendable () -> String?, isInputTerminal: Bool, isOutputTerminal: Bool,
        isErrorTerminal: Bool
    ) {
        self.out = out
        self.error = error
        self.readLine = readLine
        self.isInputTerminal = isInputTerminal
        self.isOutputTerminal = isOutputTerminal
        self.isErrorTerminal = isErrorTerminal
    }

    /// The process's own descriptors 0, 1 and 2.
    public static func standard() -> Console {
        Console(
            out: { write($0, to: 1) }, error: { write($0, to: 2) }, readLine: { Self.line() },
            isInputTerminal: isatty(0) == 1, isOutputTerminal: isatty(1) == 1, isErrorTerminal: isatty(2) == 1
        )
    }

    /// A line of results.
    func say(_ line: String) { out(line + "\n") }

    /// A line of notice.
    func note(_ line: String) { error(line + "\n") }

    /// A failure: red on a terminal.
    func fail(_ message: String) {
        note(isErrorTerminal ? "\u{1b}[31m\(message)\u{1b}[0m" : message)
    }

    private static func write(_ text: String, to number: Int32) {
        var text = text
        text.withUTF8 { bytes in
            // A closed pipe or terminal leaves nobody to tell.
            do { try Descriptor.writeAll(number, UnsafeRawBufferPointer(bytes)) } catch { return }
        }
    }

    /// Byte by byte: what follows the line belongs to whoever reads descriptor 0 next.
    private static func line() -> String? {
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while bytes.count < 1 << 20 {
            let count = read(0, &byte, 1)
            if count < 0, errno == EINTR { continue }
            guard count == 1 else { return bytes.isEmpty ? nil : String(decoding: bytes, as: UTF8.self) }
            if byte == 10 { break }
            bytes.append(byte)
        }
        if bytes.last == 13 { bytes.removeLast() }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// The user answered no, pressed Ctrl-C, or the error was shown already: exit status 1 and no further words.
struct SilentFailure: Error {}

/// A sentence for the user; exit status 1.
struct CommandError: Error, CustomStringConvertible {
    var description: String

    init(_ description: String) { self.description = description }
}

/// Questions on the terminal. They go to standard output, as scripts that wrap the original expect.
struct Prompt {
    let console: Console

    /// A line; empty means `defaultValue`. Asked again while `problem` finds one.
    func line(
        _ text: String, default defaultValue: String? = nil, problem: (String) -> String? = { _ in nil }
    ) throws -> String {
        while true {
            console.out("> \(text) " + (defaultValue.map { "(\($0)) " } ?? ""))
            guard let answer = console.readLine() else { throw endOfInput(text) }
            let value = answer.trimmed.isEmpty ? defaultValue ?? "" : answer.trimmed
            guard let problem = problem(value) else { return value }
            console.fail(problem)
        }
    }

    /// Typed without being seen: a star for each character on a terminal.
    func secret(_ text: String, problem: (String) -> String? = { _ in nil }) throws -> String {
        while true {
            console.out("> \(text) ")
            let answer = console.isInputTerminal ? try hiddenLine() : console.readLine()
            guard let answer else { throw endOfInput(text) }
            guard let problem = problem(answer) else { return answer }
            console.fail(problem)
        }
    }

    /// `yes` or `y`, anything else is no.
    func confirm(_ text: String, default isYes: Bool) throws -> Bool {
        console.out("> \(text) " + (isYes ? "(\(bold("yes"))/no) " : "(yes/\(bold("no"))) "))
        guard let answer = console.readLine() else { throw endOfInput(text) }
        let word = answer.trimmed.lowercased()
        return word.isEmpty ? isYes : word == "yes" || word == "y"
    }

    private func bold(_ text: String) -> String {
        console.isOutputTerminal ? "\u{1b}[1m\(text)\u{1b}[0m" : text
    }

    private func endOfInput(_ question: String) -> CommandError {
        CommandError("end of input at the question \"\(question)\"")
    }

    private func hiddenLine() throws -> String? {
        guard let raw = RawTerminal(descriptor: 0) else { return console.readLine() }
        defer { raw.restore() }
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while true {
            let count = read(0, &byte, 1)
            if count < 0, errno == EINTR { continue }
            guard count == 1 else { return nil }
            switch byte {
            case 3:
                console.out("\r\n")
                throw SilentFailure()
            case 4 where bytes.isEmpty: return nil
            case 10, 13:
                console.out("\r\n")
                return String(decoding: bytes, as: UTF8.self)
            case 8, 127:
                guard !bytes.isEmpty else { continue }
                while let last = bytes.popLast(), last & 0xc0 == 0x80 {}
                console.out("\u{8} \u{8}")
            default:
                bytes.append(byte)
                if byte & 0xc0 != 0x80 { console.out("*") }
            }
        }
    }
}
