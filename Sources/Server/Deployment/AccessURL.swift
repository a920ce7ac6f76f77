// SPDX-License-Identifier: Apache-2.0

/// The URL at which users reach the server: scheme, host, port, and maybe a path. Nothing else.
struct AccessURL: Sendable, Equatable {
    var isSecure: Bool
    /// Without brackets when it is an IPv6 address.
    var host: String
    /// As written; nil for the scheme's own.
    var explicitPort: Int?
    /// Empty, or beginning with `/` and not ending with it.
    var path = ""

    var port: Int { explicitPort ?? (isSecure ? 443 : 80) }

    /// `https://coder.example.org`
    var text: String {
        let name = host.contains(":") ? "[\(host)]" : host
        return (isSecure ? "https://" : "http://") + name + (explicitPort.map { ":\($0)" } ?? "") + path
    }

    /// Whether only programs of this machine can reach it.
    var isLoopback: Bool { host.lowercased() == "localhost" || host == "::1" || host.hasPrefix("127.") }

    init(isSecure: Bool, host: String, port: Int?) {
        self.isSecure = isSecure
        self.host = host
        explicitPort = port
    }

    /// Nil for anything but an absolute http or https URL.
    init?(_ text: String) {
        let lower = text.lowercased()
        guard lower.hasPrefix("http://") || lower.hasPrefix("https://") else { return nil }
        isSecure = lower.hasPrefix("https://")
        let rest = text.dropFirst(isSecure ? 8 : 7)
        let authority = rest.prefix { $0 != "/" && $0 != "?" && $0 != "#" }
        path = String(rest.dropFirst(authority.count).prefix { $0 != "?" && $0 != "#" })
        while path.hasSuffix("/") { path.removeLast() }
        guard let (host, port) = HostPort.split(String(authority)), !host.isEmpty, !authority.contains("@")
        else {
            return nil
        }
        self.host = host
        explicitPort = port
    }
}

/// `host:port`, `[v6]:port`, `:port`, `host`.
enum HostPort {
    /// Host without brackets; nil for a text that is none.
    static func split(_ text: String) -> (host: String, port: Int?)? {
        var host = text[...]
        var port: Int?
        if host.hasPrefix("[") {
            guard let end = host.firstIndex(of: "]") else { return nil }
            let after = host[host.index(after: end)...]
            host = host[host.index(after: host.startIndex)..<end]
            if after.isEmpty { return (String(host), nil) }
            guard after.hasPrefix(":"), let number = Int(after.dropFirst()) else { return nil }
            port = number
        } else if let colon = host.lastIndex(of: ":") {
            guard let number = Int(host[host.index(after: colon)...]) else { return nil }
            port = number
            host = host[..<colon]
            guard !host.contains(":") else { return nil }
        }
        if let port, !(0...65_535).contains(port) { return nil }
        return (String(host), port)
    }
}
