// SPDX-License-Identifier: Apache-2.0

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

    /// What ends it.
    var cancelRequest: GlobalRequest {
        switch listener {
        case .port(let port): .cancelTCPIPForward(host: "127.0.0.1", port: UInt32(port))
        case .socket(let path): .cancelStreamLocalForward(path: ByteString(path))
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
}
