// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// A terminal that a program of ours serves: the master side (`pty(7)`).
public struct PseudoTerminal: ~Copyable, Sendable {
    /// The master, non-blocking. End of file and `EIO` mean that no process has the slave open.
    public let master: OwnedDescriptor
    /// Path of the slave, e.g. `/dev/pts/3`.
    public let path: String

    /// Makes one.
    public init() throws(SystemError) {
        var name = [CChar](repeating: 0, count: 64)
        let number = clinux_terminal_open(&name)
        guard number >= 0 else { throw SystemError(call: "posix_openpt", code: -number) }
        master = OwnedDescriptor(taking: number)
        path = name.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }

    /// Tells the terminal, and whoever runs in it by SIGWINCH, its size.
    public func resize(rows: UInt32, columns: UInt32, pixelWidth: UInt32, pixelHeight: UInt32) {
        _ = clinux_terminal_resize(
            master.number, UInt16(clamping: rows), UInt16(clamping: columns), UInt16(clamping: pixelWidth),
            UInt16(clamping: pixelHeight))
    }

    /// A break on the line. A pseudo terminal has none, so the foreground programs get what a driver with BRKINT
    /// sends: SIGINT.
    public func sendBreak() { _ = ioctl(master.number, UInt(0x4004_5436), SIGINT) }  // TIOCSIG

    /// Applies modes as RFC 4254 §8 encodes them; unknown ones are skipped.
    public func setModes(opcodes: [UInt8], values: [UInt32]) throws(SystemError) {
        let count = min(opcodes.count, values.count)
        let code = clinux_terminal_set_modes(master.number, opcodes, values, Int32(clamping: count))
        guard code == 0 else { throw SystemError(call: "tcsetattr", code: -code) }
    }
}

/// Modes of a terminal in the terms of RFC 4254 §8.
public enum TerminalModes {
    /// What is set now; empty when `number` is no terminal.
    public static func read(_ number: Int32) -> [(opcode: UInt8, value: UInt32)] {
        var opcodes = [UInt8](repeating: 0, count: 64)
        var values = [UInt32](repeating: 0, count: 64)
        let count = Int(clinux_terminal_get_modes(number, &opcodes, &values, 64))
        return count > 0 ? (0..<count).map { (opcodes[$0], values[$0]) } : []
    }
}

/// A running child that is a session leader, reaped without SIGCHLD.
public struct ChildProcess: ~Copyable, Sendable {
    /// Its process id, and the id of its group and session.
    public let id: Int32
    /// Readable once it ended (`pidfd_open(2)`).
    public let ended: OwnedDescriptor

    /// What a child ended with.
    public enum Exit: Hashable, Sendable {
        /// `exit(3)`
        case code(Int32)
        /// Killed by a signal.
        case signal(Int32, coreDumped: Bool)
    }

    /// Where 0, 1 and 2 lead.
    public enum Streams: Sendable {
        /// A terminal's slave, which becomes the controlling terminal.
        case terminal(path: String)
        /// Three descriptors; they stay open here.
        case descriptors(Int32, Int32, Int32)
    }

    /// Starts a program. Strings are bytes without NUL; precondition: they hold none.
    ///
    /// - Throws: when the program cannot be executed or the directory not be entered.
    public init(
        path: [UInt8], arguments: [[UInt8]], environment: [[UInt8]], directory: [UInt8]?, streams: Streams
    ) throws(SystemError) {
        let argumentList = CStringList(arguments), environmentList = CStringList(environment)
        let paths = CStringList([path] + (directory.map { [$0] } ?? []))
        var spawn = clinux_spawn()
        spawn.path = UnsafePointer(paths.pointers[0]!)
        spawn.arguments = UnsafePointer(argumentList.base)
        spawn.environment = UnsafePointer(environmentList.base)
        if directory != nil { spawn.directory = UnsafePointer(paths.pointers[1]!) }
        let process: Int32
        switch streams {
        case .descriptors(let input, let output, let error):
            spawn.descriptors = (input, output, error)
            process = DescriptorLimit.withOriginal { clinux_spawn(&spawn) }
        case .terminal(let terminal):
            process = terminal.withCString {
                spawn.terminal = $0
                return DescriptorLimit.withOriginal { clinux_spawn(&spawn) }
            }
        }
        withExtendedLifetime((argumentList, environmentList, paths)) {}
        guard process > 0 else { throw SystemError(call: "posix_spawn", code: -process) }
        let descriptor = clinux_pidfd_open(process)
        guard descriptor >= 0 else {
            _ = clinux_signal_group(process, SIGKILL)
            _ = waitpid(process, nil, 0)
            throw SystemError(call: "pidfd_open", code: -descriptor)
        }
        id = process
        ended = OwnedDescriptor(taking: descriptor)
    }

    /// How it ended; nil while it runs. After a result the id may name another process: do not ask again.
    public func reap() -> Exit? {
        var code: Int32 = 0, signal: Int32 = 0, core: Int32 = 0
        let result = clinux_reap(id, &code, &signal, &core)
        if result == 0 { return nil }
        // Somebody else reaped it: nothing is known.
        guard result > 0 else { return .code(255) }
        return signal != 0 ? .signal(signal, coreDumped: core != 0) : .code(code)
    }

    /// Signals the whole process group. Only before `reap` had a result.
    public func signal(_ number: Int32) { _ = clinux_signal_group(id, number) }

    /// Makes writes into closed pipes fail in the calling thread instead of killing the program.
    public static func blockBrokenPipeSignal() { clinux_block_sigpipe() }
}

/// Memory of this program.
public enum ProgramMemory {
    /// From now on blocks of 512 KiB and more go back to the system when they are freed, instead of staying for the
    /// next one: glibc keeps ever larger ones by default. Cheap, may be called again.
    public static func returnLargeBlocks() { clinux_return_large_blocks(512 << 10) }

    /// Returns what all threads have freed to the system, and the mapped pages of code, of which the needed ones come
    /// back from the page cache. Costs milliseconds: for moments of rest.
    public static func releaseFree() { clinux_trim_memory() }
}

/// A null-terminated array of C strings.
private final class CStringList {
    var pointers: [UnsafeMutablePointer<CChar>?]
    let base: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>

    init(_ strings: [[UInt8]]) {
        pointers = strings.map { bytes in
            precondition(!bytes.contains(0), "a C string holds no NUL")
            let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count + 1)
            for (index, byte) in bytes.enumerated() { copy[index] = CChar(bitPattern: byte) }
            copy[bytes.count] = 0
            return copy
        }
        base = .allocate(capacity: pointers.count + 1)
        for (index, pointer) in pointers.enumerated() { base[index] = pointer }
        base[pointers.count] = nil
    }

    deinit {
        for pointer in pointers { pointer?.deallocate() }
        base.deallocate()
    }
}
