// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Logging
internal import Mesh

/// Our own STUN responder, so that nodes learn their mapped addresses without anybody else's help.
struct STUNListener: Sendable {
    private let responder: STUNResponder
    /// UDP port, the same for IPv4 and IPv6.
    let port: Int
    /// Answers at the next port, when that is free: one that asks both learns whether its NAT maps by destination.
    private let second: STUNResponder?
    /// Its port; nil without it.
    var secondPort: Int? { second == nil ? nil : port + 1 }

    /// Opens it as the options say. Nil, with a warning, when it cannot be: clients then use the relay, or addresses
    /// that they know.
    static func open(_ options: ServerOptions, logger: Logger) -> STUNListener? {
        options.blockDirect ? nil : open(options.stunListenAddress, logger: logger)
    }

    /// Why it cannot be opened.
    struct Unusable: Error, CustomStringConvertible {
        var description: String
    }

    /// Opens it at `host:port`, or warns; an empty text is none.
    private static func open(_ address: String, logger: Logger) -> STUNListener? {
        do {
            return try bound(address)
        } catch {
            logger.warning(
                "no STUN: direct connections through NATs will be harder to find",
                metadata: ["error": "\(error)"])
            return nil
        }
    }

    /// Opens it at `host:port`; an empty text is none.
    static func bound(_ address: String) throws(Unusable) -> STUNListener? {
        guard !address.isEmpty else { return nil }
        guard let (host, port) = HostPort.split(address), let number = UInt16(exactly: port ?? 3478) else {
            throw Unusable(description: "STUN: \"\(address)\" is not an address of the form host:port")
        }
        var candidates: [(v4: String?, v6: String?)] = [(host, nil), (nil, host)]
        // Without IPv6 on this machine, IPv4 alone will do.
        if host.isEmpty { candidates = [("0.0.0.0", "::"), ("0.0.0.0", nil)] }
        var cause = "no such address"
        for candidate in candidates {
            let v4 = candidate.v4.flatMap { IPAddress($0) }.flatMap {
                $0.isV4 ? SocketAddress($0, port: number) : nil
            }
            let v6 = candidate.v6.flatMap { IPAddress($0) }.flatMap {
                $0.isV4 ? nil : SocketAddress($0, port: number)
            }
            guard v4 != nil || v6 != nil else { continue }
            do {
                let responder = try STUNResponder(v4: v4, v6: v6)
                guard let bound = responder.localV4 ?? responder.localV6 else { continue }
                return STUNListener(
                    responder: responder, port: Int(bound.port),
                    second: Self.next(responder, bound.port))
            } catch {
                cause = "\(error)"
            }
        }
        throw Unusable(description: "STUN on UDP \(address): \(cause)")
    }

    /// The same addresses, one port further. That it is taken is no fault.
    private static func next(_ first: STUNResponder, _ port: UInt16) -> STUNResponder? {
        guard port < .max else { return nil }
        func further(_ address: SocketAddress?) -> SocketAddress? {
            address.map { SocketAddress($0.ip, port: port + 1) }
        }
        do {
            return try STUNResponder(v4: further(first.localV4), v6: further(first.localV6))
        } catch {
            return nil
        }
    }

    /// What it did so far.
    var counters: STUNResponder.Counters {
        var result = responder.counters
        result.answered += second?.counters.answered ?? 0
        result.ignored += second?.counters.ignored ?? 0
        return result
    }

    func close() {
        responder.close()
        second?.close()
    }
}
