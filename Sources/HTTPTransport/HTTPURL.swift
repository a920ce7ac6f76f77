// SPDX-License-Identifier: Apache-2.0

/// An absolute `http` or `https` URL. `ws` and `wss` are read as their HTTP twins. Small on purpose: what the
/// request line, the `Host` header, TLS and proxies need, and nothing that could smuggle a line break.
public struct HTTPURL: Hashable, Sendable, CustomStringConvertible, LosslessStringConvertible {
    /// Plain or TLS.
    public enum Scheme: String, Hashable, Sendable {
        case http
        case https

        /// 80 or 443.
        public var defaultPort: Int { self == .http ? 80 : 443 }
    }

    /// Plain or TLS.
    public var scheme: Scheme
    /// Host name or address, lower case, IPv6 without brackets.
    public var host: String
    /// Port, 1...65535.
    public var port: Int
    /// Starts with `/`; percent-encoded.
    public var path: String
    /// What follows `?`, percent-encoded.
    public var query: String?
    /// `user:password` before the host, as written. Used for proxies only.
    public var userInfo: String?

    /// Puts a URL together from parts that are already encoded.
    public init(scheme: Scheme, host: String, port: Int? = nil, path: String = "/", query: String? = nil) {
        self.scheme = scheme
        self.host = host
        self.port = port ?? scheme.defaultPort
        self.path = path.isEmpty ? "/" : path
        self.query = query
    }

    /// Reads an absolute URL; nil for other schemes, white space, control characters or a bad port.
    public init?(_ text: String) {
        guard let mark = text.firstRange(ofText: "://"),
            text.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7f && $0 != UInt8(ascii: "\"") })
        else { return nil }
        switch text[..<mark.lowerBound].lowercased() {
        case "http", "ws": scheme = .http
        case "https", "wss": scheme = .https
        default: return nil
        }
        let rest = text[mark.upperBound...].prefix { $0 != "#" }
        let authorityEnd = rest.firstIndex { $0 == "/" || $0 == "?" } ?? rest.endIndex
        var authority = rest[..<authorityEnd]
        if let at = authority.lastIndex(of: "@") {
            userInfo = String(authority[..<at])
            authority = authority[authority.index(after: at)...]
        }
        guard let (host, port) = Self.splitAuthority(authority, default: scheme.defaultPort) else {
            return nil
        }
        self.host = host
        self.port = port
        let target = rest[authorityEnd...]
        let question = target.firstIndex(of: "?")
        let path = String(target[..<(question ?? target.endIndex)])
        self.path = path.isEmpty ? "/" : path
        query = question.map { String(target[target.index(after: $0)...]) }
    }

    private static func splitAuthority(_ text: Substring, default port: Int) -> (String, Int)? {
        var host = text
        var portText: Substring?
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { return nil }
            host = text[text.index(after: text.startIndex)..<end]
            let rest = text[text.index(after: end)...]
            guard rest.isEmpty || rest.hasPrefix(":") else { return nil }
            portText = rest.isEmpty ? nil : rest.dropFirst()
        } else if let colon = text.firstIndex(of: ":") {
            host = text[..<colon]
            portText = text[text.index(after: colon)...]
            guard !portText!.contains(":") else { return nil }
        }
        guard !host.isEmpty, host.utf8.count <= 255 else { return nil }
        guard let portText, !portText.isEmpty else { return (host.lowercased(), port) }
        guard portText.utf8.allSatisfy({ (48...57).contains($0) }), let number = Int(portText),
            1...65_535 ~= number
        else { return nil }
        return (host.lowercased(), number)
    }

    /// What the request line carries: path and query.
    public var target: String { query.map { "\(path)?\($0)" } ?? path }

    /// Value of the `Host` header: the port is left out when it is the scheme's.
    public var authority: String { port == scheme.defaultPort ? bracketedHost : hostAndPort }

    /// `host:port`, with brackets round IPv6.
    public var hostAndPort: String { "\(bracketedHost):\(port)" }

    /// `scheme://host[:port]`: what names a server to a person.
    public var origin: String { "\(scheme)://\(authority)" }

    /// Whether the host is `localhost` or a loopback address: never sent to a proxy.
    public var isLoopback: Bool { host == "localhost" || host == "::1" || host.hasPrefix("127.") }

    public var description: String { origin + target }

    private var bracketedHost: String { host.contains(":") ? "[\(host)]" : host }

    /// The same server with another path below this URL's path, and a query made from name-value pairs. Parts of
    /// the path must be encoded already (see `encode`).
    public func appending(_ path: String, query pairs: [(String, String)] = []) -> HTTPURL {
        var result = self
        let base = self.path.hasSuffix("/") ? String(self.path.dropLast()) : self.path
        result.path = path.hasPrefix("/") ? base + path : "\(base)/\(path)"
        result.query =
            pairs.isEmpty
            ? nil : pairs.map { "\(Self.encode($0.0))=\(Self.encode($0.1))" }.joined(separator: "&")
        return result
    }

    /// Percent-encodes all but RFC 3986's unreserved characters: fits a path segment or a query value.
    public static func encode(_ text: String) -> String {
        var result = ""
        for byte in text.utf8 {
            switch byte {
            case 48...57, 65...90, 97...122, 45, 46, 95, 126:
                result.unicodeScalars.append(Unicode.Scalar(byte))
            default:
                let digits = String(byte, radix: 16, uppercase: true)
                result += digits.utf8.count == 1 ? "%0\(digits)" : "%\(digits)"
            }
        }
        return result
    }
}

extension StringProtocol {
    /// Where `text` first occurs; the standard library offers this only with its regular expressions.
    func firstRange(ofText text: String) -> Range<Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(text) { return start..<index(start, offsetBy: text.count) }
            start = index(after: start)
        }
        return nil
    }
}
