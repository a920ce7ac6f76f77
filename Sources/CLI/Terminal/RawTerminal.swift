// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Synchronization

/// A terminal in raw mode. The settings found are put back by `restore`, by the end of the program (`exit`), and by
/// the signals that end it: whoever uses a raw terminal handles those signals and ends through `exit`.
final class RawTerminal: Sendable {
    private let descriptor: Int32
    private let saved: Mutex<termios?>

    /// Settings to put back when the program exits while a terminal is raw. One terminal at a time.
    private static let active = Mutex<(descriptor: Int32, settings: termios)?>(nil)
    private static let isRegistered = Mutex(false)

    /// Switches to raw mode; nil when the descriptor is no terminal.
    init?(descriptor: Int32) {
        var settings = termios()
        guard tcgetattr(descriptor, &settings) == 0 else { return nil }
        self.descriptor = descriptor
        saved = Mutex(settings)
        let found = settings
        Self.active.withLock { $0 = (descriptor, found) }
        Self.registerExit()
        cfmakeraw(&settings)
        tcsetattr(descriptor, TCSADRAIN, &settings)
    }

    /// Puts the settings back; more than once does no harm.
    func restore() {
        guard var settings = saved.withLock({ $0.take() }) else { return }
        Self.active.withLock { $0 = nil }
        tcsetattr(descriptor, TCSADRAIN, &settings)
    }

    /// The settings that were found, for the terminal modes of an SSH request.
    var settings: termios? { saved.withLock { $0 } }

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
