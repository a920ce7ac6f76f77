// SPDX-License-Identifier: Apache-2.0

internal import CSodium

// Cookie reply, 64 bytes: 0 type 3   4 receiver index   8 nonce (24)   32 cookie (16 + 16)

extension WireGuard {
    /// Where a datagram came from, as far as cookies and rate limits care.
    @frozen
    package enum Source: Hashable, Sendable {
        /// A UDP address.
        case address(SocketAddress)
        /// A node behind a relay; the relay has checked that it holds the key.
        case relay(region: UInt16, NodePublicKey)

        /// What a cookie is bound to: address and little-endian port, or key and region. A local choice.
        func withBytes<R>(_ body: (UnsafeRawBufferPointer) -> R) -> R {
            switch self {
            case .address(let address):
                return unsafe address.ip.withBytes { unsafe Self.join($0, address.port, body) }
            case .relay(let region, let key):
                return unsafe key.withUnsafeBytes { unsafe Self.join($0, region, body) }
            }
        }

        private static func join<R>(
            _ bytes: UnsafeRawBufferPointer, _ number: UInt16, _ body: (UnsafeRawBufferPointer) -> R
        ) -> R {
            var joined = InlineArray<34, UInt8>(repeating: 0)
            return unsafe withUnsafeMutableBytes(of: &joined) {
                unsafe $0.copyMemory(from: bytes)
                unsafe $0[bytes.count] = UInt8(truncatingIfNeeded: number)
                unsafe $0[bytes.count + 1] = UInt8(truncatingIfNeeded: number >> 8)
                return unsafe body(UnsafeRawBufferPointer(rebasing: $0[..<(bytes.count + 2)]))
            }
        }

        /// Who shares a rate limit: an IPv4 address, an IPv6 /64, or a node.
        fileprivate var group: SourceGroup {
            switch self {
            case .address(let address) where address.ip.isV4: SourceGroup(a: 4, b: UInt64(address.ip.v4))
            case .address(let address): SourceGroup(a: 6, b: address.ip.high)
            case .relay(_, let key): SourceGroup(a: key.words.0 | 1 << 63, b: key.words.1)
            }
        }
    }

    fileprivate struct SourceGroup: Hashable {
        let a: UInt64
        let b: UInt64
    }

    /// Cookies of whitepaper §5.4.7 as functions of their inputs.
    package enum Cookie {
        /// What a source must show: MAC(secret, source).
        package static func value(secret: Bytes32, source: Source) -> Bytes16 {
            unsafe secret.withBytes { key in
                unsafe source.withBytes { unsafe BLAKE2s.mac(key: key, $0) }
            }
        }

        /// MAC over the first `length` bytes of a message, with a cookie or a MAC1 key as the key.
        static func mac(key: UnsafeRawBufferPointer, _ message: UnsafeRawPointer, _ length: Int) -> Bytes16 {
            unsafe BLAKE2s.mac(key: key, UnsafeRawBufferPointer(start: message, count: length))
        }

        /// Writes a reply of 64 bytes.
        package static func writeReply(
            into message: UnsafeMutableRawPointer, receiver: UInt32, nonce: [UInt64], cookie: Bytes16,
            mac1: Bytes16, cookieKey: Bytes32
        ) {
            unsafe message.store32(MessageType.cookieReply, at: 0)
            unsafe message.store32(receiver, at: 4)
            for index in 0..<3 { unsafe message.store64(nonce[index], at: 8 + index * 8) }
            let bytes = unsafe message.assumingMemoryBound(to: UInt8.self)
            unsafe cookie.withBytes { text in
                unsafe mac1.withBytes { data in
                    unsafe cookieKey.withBytes { key in
                        _ = unsafe crypto_aead_xchacha20poly1305_ietf_encrypt(
                            bytes + 32, nil, text.baseAddress!.assumingMemoryBound(to: UInt8.self), 16,
                            data.baseAddress!.assumingMemoryBound(to: UInt8.self), 16, nil, bytes + 8,
                            key.baseAddress!.assumingMemoryBound(to: UInt8.self))
                    }
                }
            }
        }

        /// Opens a reply of 64 bytes to the message that carried `mac1`.
        package static func openReply(
            _ message: UnsafeRawPointer, mac1: Bytes16, cookieKey: Bytes32
        ) -> Bytes16? {
            let bytes = unsafe message.assumingMemoryBound(to: UInt8.self)
            var cookie = Bytes16()
            let status = unsafe cookie.withMutableBytes { text in
                unsafe mac1.withBytes { data in
                    unsafe cookieKey.withBytes { key in
                        unsafe crypto_aead_xchacha20poly1305_ietf_decrypt(
                            text.baseAddress!.assumingMemoryBound(to: UInt8.self), nil, nil, bytes + 32, 32,
                            data.baseAddress!.assumingMemoryBound(to: UInt8.self), 16, bytes + 8,
                            key.baseAddress!.assumingMemoryBound(to: UInt8.self))
                    }
                }
            }
            return status == 0 ? cookie : nil
        }
    }

    /// Decides whether handshakes come faster than they should be answered: a bucket that fills with each one
    /// and drains at the rate of the limits.
    struct LoadMeter {
        private var level: UInt64 = 0
        private var drained = Instant(nanoseconds: 0)
        private var until = Instant(nanoseconds: 0)

        /// Counts a handshake message with a right MAC1. True: ask for cookies.
        mutating func isUnderLoad(now: Instant, limits: Limits) -> Bool {
            let cost = 1_000_000_000 / max(limits.handshakeRate, 1)
            let passed = now.since(drained).nanoseconds
            level = level > passed ? level - passed : 0
            drained = max(now, drained)
            if level >= cost &* UInt64(limits.handshakeBurst) {
                until = now + limits.loadTime
            } else {
                level += cost
            }
            return now < until
        }
    }

    /// Allows each source so many handshakes per second: a token bucket per source. Bounded; forgets
    /// sources after a second, once per second.
    struct SourceLimiter {
        private var buckets: [SourceGroup: (tokens: UInt64, at: Instant)] = [:]
        private var swept = Instant(nanoseconds: 0)

        mutating func allows(_ source: Source, now: Instant, limits: Limits) -> Bool {
            let cost = 1_000_000_000 / max(limits.sourceRate, 1)
            let full = cost &* limits.sourceBurst
            if now.since(swept) >= .seconds(1) {
                swept = now
                buckets = buckets.filter { now.since($0.value.at) < .seconds(1) }
            }
            let group = source.group
            guard let bucket = buckets[group] else {
                guard buckets.count < limits.sources else { return false }
                buckets[group] = (full - min(cost, full), now)
                return true
            }
            let tokens = min(full, bucket.tokens &+ now.since(bucket.at).nanoseconds)
            let isAllowed = tokens >= cost
            buckets[group] = (isAllowed ? tokens - cost : tokens, now)
            return isAllowed
        }
    }
}
