// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Synchronization

/// What a signal handler needs, in memory that never moves: it may take no lock.
private let forHandler = HandlerMemory()

private struct HandlerMemory: @unchecked Sendable {
    // Unchecked: written by the one raw terminal before its handlers are installed, only read afterwards.
    let settings = UnsafeMutablePointer<termios>.allocate(capacity: 1)
    let descriptor = UnsafeMutablePointer<Int32>.allocate(capacity: 1)
    /// What each signal did before, by its number.
    let actions = UnsafeMutablePointer<sigaction>.allocate(capacity: 65)

    init() {
        settings.initialize(to: termios())
        descriptor.initialize(to: -1)
        actions.initialize(repeating: sigaction(), count: 65)
    }
}

/// A terminal in raw mode. The settings found are put back by `restore`, by the end of the program (`exit`), and by
/// every signal that ends it: also those of a crash.
final class RawTerminal: Sendable {
    private let descriptor: Int32
    private let saved: Mutex<termios?>
    private let handled: [Int32]

    /// Settings to put back when the program exits while a terminal is raw. One terminal at a time.
    private static let active = Mutex<(descriptor: Int32, settings: termios)?>(nil)
    private static let isRegistered = Mutex(false)
    /// Requests to end: whoever handles them ends through `exit`.
    private static let requests = [SIGHUP, SIGINT, SIGTERM]
    /// Crashes. The runtime may have a handler that prints where; it has its turn afterwards.
    private static let crashes = [
        SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGSYS,
    ]

    /// Switches to raw mode; nil when the descriptor is no terminal.
    init?(descriptor: Int32) {
        var settings = termios()
        guard tcgetattr(descriptor, &settings) == 0 else { return nil }
        self.descriptor = descriptor
        saved = Mutex(settings)
        let found = settings
        Self.active.withLock {
            $0 = (descriptor, found)
            forHandler.settings.pointee = found
            forHandler.descriptor.pointee = descriptor
        }
        handled = (Self.requests + Self.crashes).filter(Self.handle)
        Self.registerExit()
        cfmakeraw(&settings)
        tcsetattr(descriptor, TCSADRAIN, &settings)
    }

    /// Puts the settings back; more than once does no harm.
    func restore() {
        guard var settings = saved.withLock({ $0.take() }) else { return }
        Self.active.withLock { $0 = nil }
        tcsetattr(descriptor, TCSADRAIN, &settings)
        for signal in handled { sigaction(signal, forHandler.actions + Int(signal), nil) }
    }

    /// The settings that were found, for the terminal modes of an SSH request.
    var settings: termios? { saved.withLock { $0 } }

    /// Takes a signal over; false for one that is left to others.
    private static func handle(_ signal: Int32) -> Bool {
        let old = forHandler.actions + Int(signal)
        guard sigaction(signal, nil, old) == 0 else { return false }
        let handler = unsafeBitCast(old.pointee.__sigaction_handler.sa_handler, to: Int.self)
        // 0: SIG_DFL, 1: SIG_IGN.
        guard handler == 0 || handler != 1 && crashes.contains(signal) else { return false }
        var new = sigaction()
        new.__sigaction_handler.sa_handler = { signal in
            // Calls that POSIX allows here. The signal comes again when this returns, to whom it was meant for.
            tcsetattr(forHandler.descriptor.pointee, TCSANOW, forHandler.settings)
            sigaction(signal, forHandler.actions + Int(signal), nil)
            raise(signal)
        }
        new.sa_flags = Int32(truncatingIfNeeded: SA_ONSTACK)
        return sigaction(signal, &new, nil) == 0
    }

    private static func registerExit() {
        let isFirst = isRegistered.withLock { isRegistered in
            defer { isRegistered = true }
            return !isRegistered
        }
        if isFirst { atexit { RawTerminal.restoreAtExit() } }
    }

    private static func restoreAtExit() {
        guard var (descriptor, settings) = active.withLock({ $0 }) else { return }
        tcsetattr(descriptor, TCSANOW, &settings)
        descriptor = -1
    }
}

/// Size of a terminal in characters and pixels.
struct TerminalSize: Sendable, Hashable {
    var columns: UInt32
    var rows: UInt32
    var width: UInt32 = 0
    var height: UInt32 = 0

    /// Asks the terminal; nil when the descriptor is none.
    init?(descriptor: Int32) {
        var size = winsize()
        guard ioctl(descriptor, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0, size.ws_row > 0 else {
            return nil
        }
        columns = UInt32(size.ws_col)
        rows = UInt32(size.ws_row)
        width = UInt32(size.ws_xpixel)
        height = UInt32(size.ws_ypixel)
    }
}

/// The process that started this one: ssh, for a proxy command.
func parentProcess() -> Int32 { getppid() }
