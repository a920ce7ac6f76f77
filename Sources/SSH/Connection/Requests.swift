// SPDX-License-Identifier: Apache-2.0

/// Size of a terminal.
public struct WindowSize: Hashable, Sendable {
    /// In characters.
    public var columns: UInt32, rows: UInt32
    /// In pixels; zero when unknown.
    public var pixelWidth: UInt32, pixelHeight: UInt32

    /// A size in characters, and perhaps in pixels.
    public init(columns: UInt32, rows: UInt32, pixelWidth: UInt32 = 0, pixelHeight: UInt32 = 0) {
        self.columns = columns
        self.rows = rows
        self.pixelWidth = pixelWidth
        self.pixelHeight = pixelHeight
    }
}

/// The terminal that a session wants, RFC 4254 §6.2.
public struct PTYRequest: Hashable, Sendable {
    /// One encoded terminal mode, RFC 4254 §8.
    public struct Mode: Hashable, Sendable {
        /// 1…159
        public var opcode: UInt8
        /// Character, flag or speed.
        public var value: UInt32

        /// A mode and its value.
        public init(opcode: UInt8, value: UInt32) {
            self.opcode = opcode
            self.value = value
        }
    }

    /// Value of TERM.
    public var terminal: String
    /// Its size.
    public var size: WindowSize
    /// Modes to set, in the peer's order.
    public var modes: [Mode]

    /// A terminal of this kind and size.
    public init(terminal: String, size: WindowSize, modes: [Mode] = []) {
        self.terminal = terminal
        self.size = size
        self.modes = modes
    }
}

/// A request on a channel, RFC 4254 §6.
public enum ChannelRequest: Hashable, Sendable {
    /// Give the session a terminal.
    case pty(PTYRequest)
    /// Set a variable.
    case environment(name: ByteString, value: ByteString)
    /// Run the user's shell.
    case shell
    /// Run a command line.
    case exec(ByteString)
    /// Run a subsystem such as `sftp`.
    case subsystem(String)
    /// The terminal has another size now.
    case windowChange(WindowSize)
    /// Deliver a signal: its name without SIG.
    case signal(String)
    /// RFC 4335: length of the break in milliseconds.
    case breakSignal(milliseconds: UInt32)
    /// The command ended.
    case exitStatus(UInt32)
    /// The command died from a signal.
    case exitSignal(name: String, coreDumped: Bool, message: String)
    /// `eow@openssh.com`: the peer takes no more data.
    case endOfWrite
    /// `auth-agent-req@openssh.com`
    case agentForwarding
    /// `x11-req`
    case x11(singleConnection: Bool, protocol: String, cookie: String, screen: UInt32)

    var name: String {
        switch self {
        case .pty: "pty-req"
        case .environment: "env"
        case .shell: "shell"
        case .exec: "exec"
        case .subsystem: "subsystem"
        case .windowChange: "window-change"
        case .signal: "signal"
        case .breakSignal: "break"
        case .exitStatus: "exit-status"
        case .exitSignal: "exit-signal"
        case .endOfWrite: "eow@openssh.com"
        case .agentForwarding: "auth-agent-req@openssh.com"
        case .x11: "x11-req"
        }
    }

    func write(_ queue: inout ByteQueue) {
        switch self {
        case .pty(let pty):
            queue.appendString(pty.terminal)
            Self.write(pty.size, &queue)
            queue.append(UInt32(clamping: pty.modes.count * 5 + 1))
            for mode in pty.modes {
                queue.append(mode.opcode)
                queue.append(mode.value)
            }
            queue.append(UInt8(0))  // TTY_OP_END
        case .environment(let name, let value):
            queue.appendString(name)
            queue.appendString(value)
        case .shell, .endOfWrite, .agentForwarding:
            break
        case .exec(let command): queue.appendString(command)
        case .subsystem(let name), .signal(let name): queue.appendString(name)
        case .windowChange(let size): Self.write(size, &queue)
        case .breakSignal(let milliseconds): queue.append(milliseconds)
        case .exitStatus(let status): queue.append(status)
        case .exitSignal(let name, let coreDumped, let message):
            queue.appendString(name)
            queue.append(coreDumped)
            queue.appendString(message)
            queue.appendString("")
        case .x11(let single, let name, let cookie, let screen):
            queue.append(single)
            queue.appendString(name)
            queue.appendString(cookie)
            queue.append(screen)
        }
    }

    private static func write(_ size: WindowSize, _ queue: inout ByteQueue) {
        for value in [size.columns, size.rows, size.pixelWidth, size.pixelHeight] { queue.append(value) }
    }

    /// nil: a request that is not known.
    static func parse(
        _ name: String, _ reader: inout WireReader, limits: SSHLimits
    ) throws(WireError) -> ChannelRequest? {
        let limit = limits.nameBytes
        switch name {
        case "pty-req":
            let terminal = try reader.text(limit: limit)
            let size = try windowSize(&reader)
            let modes = try parseModes(&reader, limits)
            return .pty(PTYRequest(terminal: terminal, size: size, modes: modes))
        case "env":
            return .environment(
                name: try reader.byteString(limit: limit),
                value: try reader.byteString(limit: limits.commandBytes))
        case "shell": return .shell
        case "exec": return .exec(try reader.byteString(limit: limits.commandBytes))
        case "subsystem": return .subsystem(try reader.text(limit: limit))
        case "window-change": return .windowChange(try windowSize(&reader))
        case "signal": return .signal(try reader.text(limit: limit))
        case "break": return .breakSignal(milliseconds: try reader.uint32())
        case "exit-status": return .exitStatus(try reader.uint32())
        case "exit-signal":
            return .exitSignal(
                name: try reader.text(limit: limit), coreDumped: try reader.boolean(),
                message: try reader.text(limit: limit))
        case "eow@openssh.com": return .endOfWrite
        case "auth-agent-req@openssh.com": return .agentForwarding
        case "x11-req":
            return .x11(
                singleConnection: try reader.boolean(), protocol: try reader.text(limit: limit),
                cookie: try reader.text(limit: limit), screen: try reader.uint32())
        default: return nil
        }
    }

    private static func windowSize(_ reader: inout WireReader) throws(WireError) -> WindowSize {
        WindowSize(
            columns: try reader.uint32(), rows: try reader.uint32(), pixelWidth: try reader.uint32(),
            pixelHeight: try reader.uint32())
    }

    private static func parseModes(
        _ reader: inout WireReader, _ limits: SSHLimits
    ) throws(WireError) -> [PTYRequest.Mode] {
        let range = try reader.stringRange(limit: limits.terminalModes * 5 + 1)
        var modes = unsafe WireReader(reader.view(range))
        var result: [PTYRequest.Mode] = []
        while !modes.isAtEnd {
            let opcode = try modes.byte()
            // RFC 4254 §8: 0 ends the list; opcodes from 160 are undefined and stop parsing.
            guard opcode != 0, opcode < 160 else { break }
            result.append(PTYRequest.Mode(opcode: opcode, value: try modes.uint32()))
        }
        return result
    }
}

/// A request that concerns the whole connection, RFC 4254 §7.1, OpenSSH PROTOCOL §2.4.
public enum GlobalRequest: Hashable, Sendable {
    /// Listen on a TCP port and open a `forwarded-tcpip` channel for each connection. Port 0: choose one, and
    /// tell it in the reply.
    case tcpipForward(host: String, port: UInt32)
    /// Stop that.
    case cancelTCPIPForward(host: String, port: UInt32)
    /// Listen on a unix socket.
    case streamLocalForward(path: ByteString)
    /// Stop that.
    case cancelStreamLocalForward(path: ByteString)

    var name: String {
        switch self {
        case .tcpipForward: "tcpip-forward"
        case .cancelTCPIPForward: "cancel-tcpip-forward"
        case .streamLocalForward: "streamlocal-forward@openssh.com"
        case .cancelStreamLocalForward: "cancel-streamlocal-forward@openssh.com"
        }
    }

    func write(_ queue: inout ByteQueue) {
        switch self {
        case .tcpipForward(let host, let port), .cancelTCPIPForward(let host, let port):
            queue.appendString(host)
            queue.append(port)
        case .streamLocalForward(let path), .cancelStreamLocalForward(let path):
            queue.appendString(path)
        }
    }

    static func parse(
        _ name: String, _ reader: inout WireReader, limits: SSHLimits
    ) throws(WireError) -> GlobalRequest? {
        let limit = limits.nameBytes
        switch name {
        case "tcpip-forward":
            return .tcpipForward(host: try reader.text(limit: limit), port: try reader.uint32())
        case "cancel-tcpip-forward":
            return .cancelTCPIPForward(host: try reader.text(limit: limit), port: try reader.uint32())
        case "streamlocal-forward@openssh.com":
            return .streamLocalForward(path: try reader.byteString(limit: limit))
        case "cancel-streamlocal-forward@openssh.com":
            return .cancelStreamLocalForward(path: try reader.byteString(limit: limit))
        default: return nil
        }
    }
}
