// SPDX-License-Identifier: Apache-2.0

package import Mesh

/// One port or socket to forward: where to listen, and where in the workspace it leads.
package struct PortForward: Hashable, Sendable {
    package enum Network: String, Sendable {
        case tcp
        case udp
    }

    /// Where this side listens.
    package enum Local: Hashable, Sendable {
        /// Without an address: `[::1]` if possible, and `127.0.0.1`.
        case port(UInt16, on: IPAddress?)
        /// A unix socket, for its owner only.
        case socket(String)
    }

    /// What is reached in the workspace.
    package enum Remote: Hashable, Sendable {
        /// On 127.0.0.1.
        case port(UInt16)
        case socket(String)
    }

    package var network: Network
    package var local: Local
    package var remote: Remote

    /// The far end for people: `tcp://127.0.0.1:80`, `unix:///run/x.sock`.
    var remoteName: String {
        switch remote {
        case .port(let port): "\(network.rawValue)://127.0.0.1:\(port)"
        case .socket(let path): "unix://\(path)"
        }
    }
}

/// Grammar of `--tcp` and `--udp`: `[addr:]ports[:ports]`, ports single or an inclusive range. With `--tcp` either
/// side may be the absolute path of a unix socket: `/here:80`, `8080:/there`, `/here:/there`.
package enum PortSpec {
    /// Longest path of a unix socket, without the NUL behind it (`sun_path`).
    private static let pathLimit = 107

    /// Reads all specs of one network; the commas between specs are taken off by the option already.
    package static func parse(_ specs: [String], _ network: PortForward.Network) throws -> [PortForward] {
        try specs.flatMap { try parse($0, network) }
    }

    /// Refuses two forwards of one local port or socket.
    package static func check(_ forwards: [PortForward]) throws {
        guard !forwards.isEmpty else { throw CommandError("no port-forwards requested") }
        var seen: Set<PortForward> = []
        for forward in forwards {
            var key = forward
            key.remote = .port(0)
            guard seen.insert(key).inserted else {
                switch forward.local {
                case .port(let port, let address):
                    let shown = address.map { SocketAddress($0, port: port).description } ?? "\(port)"
                    throw CommandError("\(forward.network.rawValue) port \(shown) is forwarded twice")
                case .socket(let path): throw CommandError("the socket \(path) is forwarded twice")
                }
            }
        }
    }

    private static func parse(_ spec: String, _ network: PortForward.Network) throws -> [PortForward] {
        let wrong = { (reason: String) in
            CommandError("invalid port-forward \"\(Table.clean(spec))\": \(reason)")
        }
        if spec.hasPrefix("/") || spec.range(ofText: ":/") != nil {
            guard network == .tcp else { throw wrong("unix sockets go with --tcp only") }
            return [try sockets(spec, wrong)]
        }
        var rest = spec[...]
        let address = try address(&rest, wrong)
        let sides = rest.split(separator: ":", omittingEmptySubsequences: false)
        guard 1...2 ~= sides.count else { throw wrong("want [address:]port[-port][:port[-port]]") }
        guard let local = range(sides[0]) else {
            throw wrong("not a port or range of ports: \"\(sides[0])\"")
        }
        guard let remote = sides.count == 2 ? range(sides[1]) : local else {
            throw wrong("not a port or range of ports: \"\(sides[1])\"")
        }
        guard local.count == remote.count else { throw wrong("the two ranges differ in length") }
        return zip(local, remote).map {
            PortForward(network: network, local: .port($0, on: address), remote: .port($1))
        }
    }

    /// Takes the address off the front, if there is one.
    private static func address(
        _ rest: inout Substring, _ wrong: (String) -> CommandError
    ) throws -> IPAddress? {
        if rest.hasPrefix("[") {
            guard let end = rest.firstIndex(of: "]"), let parsed = IPAddress(rest[..<end].dropFirst()),
                !parsed.isV4, rest[end...].hasPrefix("]:")
            else { throw wrong("not an IPv6 address in brackets") }
            rest = rest[end...].dropFirst(2)
            return parsed
        }
        guard let colon = rest.firstIndex(of: ":"), rest[..<colon].contains(".") else { return nil }
        guard let parsed = IPAddress(rest[..<colon]), parsed.isV4 else { throw wrong("not an IPv4 address") }
        rest = rest[rest.index(after: colon)...]
        return parsed
    }

    /// A spec with a path on at least one side. The colon that parts the sides is the last one, or the one before
    /// the second path.
    private static func sockets(_ spec: String, _ wrong: (String) -> CommandError) throws -> PortForward {
        let colon = spec.range(ofText: ":/")?.lowerBound ?? spec.lastIndex(of: ":")
        guard let colon else { throw wrong("want /here:port, port:/there or /here:/there") }
        let (left, right) = (spec[..<colon], spec[spec.index(after: colon)...])
        let local: PortForward.Local
        if left.hasPrefix("/") {
            local = .socket(try path(left, wrong))
        } else {
            var rest = left
            let address = try address(&rest, wrong)
            guard let port = port(rest) else { throw wrong("not a port: \"\(rest)\"") }
            local = .port(port, on: address)
        }
        guard !right.hasPrefix("/") else {
            return PortForward(network: .tcp, local: local, remote: .socket(try path(right, wrong)))
        }
        guard let port = port(right) else { throw wrong("not a port: \"\(right)\"") }
        return PortForward(network: .tcp, local: local, remote: .port(port))
    }

    private static func path(_ text: Substring, _ wrong: (String) -> CommandError) throws -> String {
        guard 2...pathLimit ~= text.utf8.count, text.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }),
            !text.contains(":")
        else { throw wrong("not the path of a unix socket: \"\(Table.clean(String(text)))\"") }
        return String(text)
    }

    private static func range(_ text: Substring) -> ClosedRange<UInt16>? {
        let ends = text.split(separator: "-", omittingEmptySubsequences: false).map(port)
        guard 1...2 ~= ends.count, let first = ends[0], let last = ends[ends.count - 1], first <= last else {
            return nil
        }
        return first...last
    }

    private static func port(_ text: Substring) -> UInt16? {
        guard !text.isEmpty, text.utf8.allSatisfy({ 48...57 ~= $0 }), let port = UInt16(text), port > 0 else {
            return nil
        }
        return port
    }
}
