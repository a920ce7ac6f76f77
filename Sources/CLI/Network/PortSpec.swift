// SPDX-License-Identifier: Apache-2.0

package import Mesh

/// One port to forward: where to listen, and which port of the workspace it leads to.
package struct PortForward: Hashable, Sendable {
    package enum Network: String, Sendable {
        case tcp
        case udp
    }

    package var network: Network
    /// nil: `[::1]` if possible, and `127.0.0.1`.
    package var address: IPAddress?
    package var local: UInt16
    package var remote: UInt16
}

/// Grammar of `--tcp` and `--udp`: `[addr:]ports[:ports]`, ports single or an inclusive range.
package enum PortSpec {
    /// Reads all specs of one network; the commas between specs are taken off by the option already.
    package static func parse(_ specs: [String], _ network: PortForward.Network) throws -> [PortForward] {
        try specs.flatMap { try parse($0, network) }
    }

    /// Refuses two forwards on one local port.
    package static func check(_ forwards: [PortForward]) throws {
        guard !forwards.isEmpty else { throw CommandError("no port-forwards requested") }
        var seen: Set<PortForward> = []
        for forward in forwards {
            var key = forward
            key.remote = 0
            guard seen.insert(key).inserted else {
                let address = forward.address.map { SocketAddress($0, port: forward.local).description }
                throw CommandError(
                    "\(forward.network.rawValue) port \(address ?? String(forward.local)) is forwarded twice")
            }
        }
    }

    private static func parse(_ spec: String, _ network: PortForward.Network) throws -> [PortForward] {
        let wrong = { (reason: String) in
            CommandError("invalid port-forward \"\(Table.clean(spec))\": \(reason)")
        }
        var rest = spec[...]
        var address: IPAddress?
        if rest.hasPrefix("[") {
            guard let end = rest.firstIndex(of: "]"), let parsed = IPAddress(rest[..<end].dropFirst()),
                !parsed.isV4,
                rest[end...].hasPrefix("]:")
            else { throw wrong("not an IPv6 address in brackets") }
            address = parsed
            rest = rest[end...].dropFirst(2)
        } else if let colon = rest.firstIndex(of: ":"), rest[..<colon].contains(".") {
            guard let parsed = IPAddress(rest[..<colon]), parsed.isV4 else {
                throw wrong("not an IPv4 address")
            }
            address = parsed
            rest = rest[rest.index(after: colon)...]
        }
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
            PortForward(network: network, address: address, local: $0, remote: $1)
        }
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
