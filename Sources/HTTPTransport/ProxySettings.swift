// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// Which proxy a URL goes through, after `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` as Go programs read them.
public struct ProxySettings: Sendable {
    private let http: HTTPURL?
    private let https: HTTPURL?
    private let exceptions: [Substring]

    /// No proxy.
    public static let none = ProxySettings(environment: [:])

    /// Reads the variables, upper case first. A value without scheme means `http://`; SOCKS proxies are ignored.
    public init(environment: [String: String]) {
        let value = { (name: String) in
            [environment[name], environment[name.lowercased()]].compactMap { $0 }.first { !$0.isEmpty }
        }
        let proxy = { (text: String) in HTTPURL(text.contains("://") ? text : "http://\(text)") }
        // RFC 3875 §4.1.18: in a CGI program HTTP_PROXY comes from a request header.
        http = environment["REQUEST_METHOD"] == nil ? value("HTTP_PROXY").flatMap(proxy) : nil
        https = value("HTTPS_PROXY").flatMap(proxy)
        exceptions = (value("NO_PROXY") ?? "").split(separator: ",").map(\.trimmingSpaces)
    }

    /// The proxy for a URL, or nil to go straight there.
    public func proxy(for url: HTTPURL) -> HTTPURL? {
        guard let proxy = url.scheme == .http ? http : https, !url.isLoopback,
            !exceptions.contains(where: { Self.matches($0, url) })
        else { return nil }
        return proxy
    }

    private static func matches(_ rule: Substring, _ url: HTTPURL) -> Bool {
        guard rule != "*" else { return true }
        if let slash = rule.firstIndex(of: "/") {
            return prefix(rule[..<slash], bits: Int(rule[rule.index(after: slash)...]), contains: url.host)
        }
        var name = rule.lowercased()[...]
        if name.filter({ $0 == ":" }).count == 1, let colon = name.firstIndex(of: ":") {
            guard Int(name[name.index(after: colon)...]) == url.port else { return false }
            name = name[..<colon]
        }
        if name.hasPrefix("[") { name = name.dropFirst().prefix { $0 != "]" } }
        if name.hasPrefix("*.") { name = name.dropFirst() }
        guard !name.isEmpty else { return false }
        return name.hasPrefix(".")
            ? url.host.hasSuffix(name) : url.host == name || url.host.hasSuffix(".\(name)")
    }

    private static func prefix(_ address: Substring, bits: Int?, contains host: String) -> Bool {
        guard let bits, let prefix = bytes(address), let host = bytes(host[...]), prefix.count == host.count,
            0...prefix.count * 8 ~= bits
        else { return false }
        return (0..<bits).allSatisfy { bit in
            (prefix[bit / 8] ^ host[bit / 8]) & (0x80 >> UInt8(bit % 8)) == 0
        }
    }

    private static func bytes(_ address: Substring) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: 16)
        if inet_pton(AF_INET, String(address), &bytes) == 1 { return Array(bytes.prefix(4)) }
        return inet_pton(AF_INET6, String(address), &bytes) == 1 ? bytes : nil
    }
}

/// RFC 4648 §4 encoding, with padding.
func base64(_ bytes: some Collection<UInt8>) -> String {
    let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    var result: [UInt8] = []
    var rest = bytes[...]
    while !rest.isEmpty {
        let group = Array(rest.prefix(3))
        rest = rest.dropFirst(3)
        let value = group.reduce(0) { $0 << 8 | Int($1) } << (8 * (3 - group.count))
        for index in 0..<4 {
            result.append(index <= group.count ? alphabet[value >> (18 - 6 * index) & 63] : UInt8(ascii: "="))
        }
    }
    return String(decoding: result, as: UTF8.self)
}
