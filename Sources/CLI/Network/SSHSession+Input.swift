// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import SSH

// The terminal's and the system's side: what is typed, escapes, signals.
extension SSHSession {
    /// 64 KiB typed or pasted ahead; what comes after waits in the terminal.
    private static let typedLimit = 65_536

    /// A terminal is read from the moment that it is raw, however the connection is: nothing else sees `~.` then.
    var wantsInput: Bool {
        guard !hasInputEnded, let channel else { return false }
        return raw != nil
            ? typed.count < Self.typedLimit : isRunning && connection.writableCount(channel) > 0
    }

    mutating func readInput() {
        guard let channel else { return }
        guard raw == nil else { return readTerminal(channel) }
        let number = request.input
        var result = 0
        // One packet at a time, straight from the descriptor into the outgoing buffer.
        let count = connection.write(channel, upTo: 65_536) { space in
            result = read(number, space.baseAddress, space.count)
            return result
        }
        if count > 0 { return }
        if result < 0, errno == EAGAIN || errno == EINTR { return }
        hasInputEnded = true
        connection.sendEOF(channel)
    }

    mutating func readTerminal(_ channel: ChannelID) {
        var buffer = [UInt8](repeating: 0, count: 4_096)
        let count = read(request.input, &buffer, buffer.count)
        if count < 0, errno == EAGAIN || errno == EINTR { return }
        guard count > 0 else {
            hasInputEnded = true
            return stop(SIGHUP)
        }
        for action in escape.filter(buffer[..<count]) {
            switch action {
            case .pass(let bytes): typed += bytes
            case .disconnect: stop(SIGINT)
            case .break: connection.request(channel, .breakSignal(milliseconds: 1_000))
            case .rekey: connection.renewKeys()
            case .prompt: error.appendOwn(Array("\r\nssh> ".utf8))
            case .echo(let bytes): error.appendOwn(bytes)
            case .command(let line): run(line)
            case .help: tell(EscapeFilter.helpText)
            case .list: tell(relayList)
            case .background: return goToBackground(channel)
            case .quieter: setLogLevel(logLevel.quieter, "V")
            case .louder: setLogLevel(logLevel.louder, "v")
            case .suspend: suspend()
            }
        }
    }

    /// Sends what was typed, as much as goes.
    mutating func sendTyped() {
        guard !typed.isEmpty, let channel else { return }
        typed.removeFirst(connection.write(channel, typed))
    }

    /// Ends it without waiting for anybody.
    mutating func stop(_ signal: Int32) {
        isStopped = true
        if end == nil { end = .stopped(signal: signal) }
    }

    /// Text of ours between the program's, for a raw terminal.
    mutating func tell(_ text: String) {
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).joined(separator: "\r\n")
        error.appendOwn(Array(("\r\n" + lines).utf8))
    }

    /// Gives the terminal back and stops this program, until it is continued.
    mutating func suspend() {
        raw?.restore()
        kill(getpid(), SIGTSTP)
        raw = RawTerminal(descriptor: request.input)
        if let channel { connection.request(channel, .windowChange(windowSize())) }
    }

    mutating func handleSignals() {
        while let signal = signals.next() {
            switch signal {
            case SIGWINCH: resize()
            // The terminal that it was started from is closed, and is nobody's that it works for.
            case SIGHUP where isInBackground: continue
            default: stop(signal)
            }
        }
    }

    /// Tells the terminal's size. The same size again asks for a redraw: programs only hear of changes.
    mutating func resize() {
        guard let channel, request.wantsTerminal else { return }
        let size = windowSize()
        if size == toldSize, size.rows > 1 {
            var other = size
            other.rows -= 1
            connection.request(channel, .windowChange(other))
        }
        toldSize = size
        connection.request(channel, .windowChange(size))
    }

    static func number(ofSignal name: String) -> Int32 {
        let numbers: [String: Int32] = [
            "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
            "USR1": 10,
            "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15,
        ]
        return numbers[name] ?? 127
    }
}
