// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// `--remote-forward`: where the workspace listens, and where connections are led on this side.
package struct RemoteForward: Hashable, Sendable {
    package enum Listener: Hashable, Sendable {
        /// 127.0.0.1 in the workspace.
        case port(UInt16)
        case socket(String)
    }

    package enum Target: Hashable, Sendable {
        case host(String, UInt16)
        case socket(String)
    }

    package var listener: Listener
    package var target: Target

    /// `<remote port>:<local address>:<local port>`, or `<remote socket>:<local socket>` with absolute paths.
    package init(_ text: String) throws {
        let wrong = CommandError(
            "invalid remote forward \"\(Table.clean(text))\": write <remote port>:<local address>:<local port>"
                + " or <remote socket>:<local socket>")
        guard text.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }) else { throw wrong }
        if text.hasPrefix("/") {
            guard let colon = text.range(ofText: ":/") else { throw wrong }
            let remote = text[..<colon.lowerBound], local = text[text.index(after: colon.lowerBound)...]
            guard remote.utf8.count > 1, local.utf8.count > 1, remote.utf8.count <= 107,
                local.utf8.count <= 107
            else { throw wrong }
            listener = .socket(String(remote))
            target = .socket(String(local))
            return
        }
        guard let first = text.firstIndex(of: ":"), let last = text.lastIndex(of: ":"), first < last,
            let remote = Self.port(text[..<first]), let port = Self.port(text[text.index(after: last)...]),
            port > 0
        else { throw wrong }
        var host = text[text.index(after: first)..<last]
        if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
        guard !host.isEmpty, host.utf8.count <= 255 else { throw wrong }
        listener = .port(remote)
        target = .host(String(host), port)
    }

    private static func port(_ text: Substring) -> UInt16? {
        text.utf8.allSatisfy { 48...57 ~= $0 } ? UInt16(text) : nil
    }

    /// What the server is asked for.
    var request: GlobalRequest {
        switch listener {
        case .port(let port): .tcpipForward(host: "127.0.0.1", port: UInt32(port))
        case .socket(let path): .streamLocalForward(path: ByteString(path))
        }
    }

    /// For people.
    package var description: String {
        switch (listener, target) {
        case (.port(let remote), .host(let host, let port)): "remote port \(remote) to \(host):\(port)"
        case (.socket(let remote), .socket(let local)): "remote socket \(remote) to \(local)"
        case (.port(let remote), .socket(let local)): "remote port \(remote) to \(local)"
        case (.socket(let remote), .host(let host, let port)): "remote socket \(remote) to \(host):\(port)"
        }
    }

    /// A socket on its way to the target; host names are looked up here.
    func connect() -> OwnedDescriptor? {
        switch target {
        case .socket(let path): return try? StreamSocket.connect(toPath: Array(path.utf8))
        case .host(let host, let port):
            for address in Resolver.lookUp(host, port: port) {
                if let socket = try? StreamSocket.connect(to: address) { return consume socket }
            }
            return nil
        }
    }
}

/// A channel that the server opened: a socket of this side behind it.
final class ClientRelay {
    let channel: ChannelID
    private var descriptor: OwnedDescriptor?
    var number: Int32? { descriptor?.number }
    private var output: [UInt8] = []
    private var isConnecting: Bool
    private var hasInputEnded = false
    private var hasOutputEnded = false
    private var isShut = false

    init(_ channel: ChannelID, _ descriptor: consuming OwnedDescriptor, isConnecting: Bool) {
        self.channel = channel
        self.isConnecting = isConnecting
        self.descriptor = consume descriptor
    }

    /// What to wait for.
    func events(_ ssh: borrowing ClientConnection) -> Int16 {
        if isConnecting { return Int16(POLLOUT) }
        var events: Int32 = output.isEmpty ? 0 : POLLOUT
        if !hasInputEnded, ssh.writableCount(channel) > 0 { events |= POLLIN }
        return Int16(events)
    }

    /// The descriptor is ready. False: it is over.
    func ready(_ ssh: inout ClientConnection) -> Bool {
        guard let number = descriptor?.number else { return false }
        if isConnecting {
            isConnecting = false
            do {
                try StreamSocket.outcome(number)
                ssh.accept(channel)
            } catch {
                ssh.refuse(channel, .connectFailed, message: "\(error)")
                return false
            }
            return true
        }
        flush(&ssh)
        guard !hasInputEnded, ssh.writableCount(channel) > 0 else { return pump(&ssh) }
        var result = TransferResult.wouldBlock
        _ = ssh.write(channel, upTo: 64 * 1024) { space in
            result = Descriptor.read(number, into: space)
            if case .moved(let count) = result { return count }
            return 0
        }
        switch result {
        case .moved, .wouldBlock: break
        case .end, .failed:
            hasInputEnded = true
            ssh.sendEOF(channel)
        }
        return pump(&ssh)
    }

    func received(_ bytes: [UInt8], _ ssh: inout ClientConnection) {
        output += bytes
        flush(&ssh)
    }

    func endOfData(_ ssh: inout ClientConnection) { hasOutputEnded = true }

    /// Writes what waits; its room is given back to the server.
    private func flush(_ ssh: inout ClientConnection) {
        guard !output.isEmpty, !isConnecting, let number = descriptor?.number else { return }
        let result = output.withUnsafeBytes { Descriptor.write(number, $0, isSocket: true) }
        switch result {
        case .moved(let count):
            output.removeFirst(count)
            ssh.consumed(channel, count)
        case .wouldBlock, .end: break
        case .failed:
            ssh.consumed(channel, output.count)
            output = []
            hasInputEnded = true
            hasOutputEnded = true
            isShut = true
        }
    }

    /// False: both directions are over, and the channel is closed.
    private func pump(_ ssh: inout ClientConnection) -> Bool {
        if hasOutputEnded, output.isEmpty, !isShut, let number = descriptor?.number {
            isShut = true
            Descriptor.finishWriting(number)
        }
        guard hasInputEnded, isShut else { return true }
        ssh.close(channel)
        return false
    }

    /// After events.
    func settle(_ ssh: inout ClientConnection) -> Bool { isConnecting ? true : pump(&ssh) }
}
