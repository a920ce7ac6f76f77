// SPDX-License-Identifier: Apache-2.0

extension UAPI.Setting {
    /// Reads one line without its end. Does not know whether the line is in its place.
    package init(line: ArraySlice<UInt8>) throws(UAPI.Failure) {
        guard let equals = line.firstIndex(of: 0x3d) else { throw .syntax }
        let key = String(decoding: line[..<equals], as: UTF8.self)
        self = try Self.parse(key, UAPI.Value(line[(equals + 1)...]))
    }

    private static func parse(_ key: String, _ value: UAPI.Value) throws(UAPI.Failure) -> Self {
        switch key {
        case "private_key": return .privateKey(try value.privateKey())
        case "listen_port": return .listenPort(UInt16(try value.number(upTo: 65_535)))
        case "fwmark": return .firewallMark(UInt32(try value.number(upTo: UInt64(UInt32.max))))
        case "public_key": return .peer(try value.publicKey())
        case "preshared_key": return .presharedKey(try value.presharedKey())
        case "endpoint": return .endpoint(try value.endpoint())
        case "persistent_keepalive_interval":
            return .persistentKeepalive(UInt16(try value.number(upTo: 65_535)))
        case "allowed_ip":
            let (prefix, isRemoved) = try value.prefix()
            return isRemoved ? .noAllowedIP(prefix) : .allowedIP(prefix)
        case "replace_peers", "remove", "update_only", "replace_allowed_ips":
            guard value.whole == "true" else { throw .badValue }
            switch key {
            case "replace_peers": return .replacePeers
            case "remove": return .remove
            case "update_only": return .updateOnly
            default: return .replaceAllowedIPs
            }
        case "protocol_version":
            guard value.whole == "1" else { throw .badValue }
            return .protocolVersion
        default: throw .unknownKey
        }
    }
}

extension UAPI {
    /// What stands behind the `=`.
    fileprivate struct Value {
        let whole: Substring

        init(_ bytes: ArraySlice<UInt8>) { whole = Substring(decoding: bytes, as: UTF8.self) }

        /// Digits only.
        func number(upTo limit: UInt64) throws(Failure) -> UInt64 {
            try Self.number(whole, upTo: limit)
        }

        private static func number(_ text: Substring, upTo limit: UInt64) throws(Failure) -> UInt64 {
            guard (1...20).contains(text.utf8.count), text.utf8.allSatisfy({ (48...57).contains($0) }),
                let number = UInt64(text), number <= limit
            else { throw .badValue }
            return number
        }

        private func keyBytes() throws(Failure) -> [UInt8] {
            do {
                return try Hex.bytes(whole, count: 32)
            } catch {
                throw .badValue
            }
        }

        private static func isZero(_ bytes: [UInt8]) -> Bool { bytes.reduce(0, |) == 0 }

        func privateKey() throws(Failure) -> PrivateKey? {
            let bytes = try keyBytes()
            guard !Self.isZero(bytes) else { return nil }
            do {
                return try PrivateKey(bytes: bytes)
            } catch {
                throw .badValue
            }
        }

        func publicKey() throws(Failure) -> NodePublicKey {
            let bytes = try keyBytes()
            do {
                return try NodePublicKey(bytes: bytes)
            } catch {
                throw .badValue
            }
        }

        func presharedKey() throws(Failure) -> WireGuard.PresharedKey? {
            let bytes = try keyBytes()
            guard !Self.isZero(bytes) else { return nil }
            do {
                return try WireGuard.PresharedKey(bytes: bytes)
            } catch {
                throw .badValue
            }
        }

        /// `10.0.0.0/8`, `fd00::/8`; a minus sign in front takes the prefix away.
        func prefix() throws(Failure) -> (IPPrefix, isRemoved: Bool) {
            let isRemoved = whole.first == "-"
            let rest = isRemoved ? whole.dropFirst() : whole
            let parts = rest.split(separator: "/", omittingEmptySubsequences: false)
            guard parts.count == 2, let address = IPAddress(parts[0]) else { throw .badValue }
            let bits = Int(try Self.number(parts[1], upTo: UInt64(address.bitWidth)))
            return (IPPrefix(address, bits: bits), isRemoved)
        }

        /// `192.0.2.1:51820`, `[2001:db8::1]:51820`, `[fe80::1%eth0]:51820`.
        func endpoint() throws(Failure) -> Endpoint {
            guard let colon = whole.lastIndex(of: ":") else { throw .badValue }
            let port = UInt16(try Self.number(whole[whole.index(after: colon)...], upTo: 65_535))
            let host = whole[..<colon]
            guard host.first == "[", host.last == "]", host.utf8.count > 2 else {
                guard let ip = IPAddress(host), ip.isV4 else { throw .badValue }
                return Endpoint(SocketAddress(ip, port: port))
            }
            let parts = host.dropFirst().dropLast().split(
                separator: "%", maxSplits: 1, omittingEmptySubsequences: false)
            guard let ip = IPAddress(parts[0]), !ip.isV4 else { throw .badValue }
            let scope = parts.count == 2 ? parts[1] : ""
            // IFNAMSIZ is 16 with the end of the string; names have no blanks and no slashes.
            guard scope.utf8.count < 16, parts.count == 1 || !scope.isEmpty,
                scope.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f && $0 != 0x2f && $0 != 0x5d })
            else { throw .badValue }
            return Endpoint(SocketAddress(ip, port: port), scope: String(scope))
        }
    }
}
