// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// The reverse proxies before the server, and the fields in which they say who their client is. Nobody else's fields
/// are believed.
struct TrustedProxies: Sendable {
    /// A range that is none.
    struct Unreadable: Error, CustomStringConvertible {
        var text: String
        var description: String {
            "--proxy-trusted-origins: \"\(text)\" is no range of addresses, such as 10.0.0.0/8"
        }
    }

    private let origins: [IPPrefix]
    private let fields: [String]

    /// `origins`: ranges of the proxies' addresses. `headers`: names of fields, the first usable one counts.
    init(origins: [String], headers: [String]) throws(Unreadable) {
        self.origins = try origins.map { text throws(Unreadable) in
            guard let origin = IPPrefix(text) else { throw Unreadable(text: text) }
            return origin
        }
        fields = headers.map { $0.lowercased() }
    }

    /// Address of the client of a request that came from `peer`. A list names the hops from the first to the last: the
    /// last that is no proxy of ours is as far as it can be believed.
    func client(of head: RequestHead, peer: String) -> String {
        guard isTrusted(peer) else { return peer }
        for field in fields {
            let hops = head.tokens(field)
            guard !hops.isEmpty, hops.allSatisfy({ IPAddress($0) != nil }) else { continue }
            return hops.last { !isTrusted($0) } ?? hops[0]
        }
        return peer
    }

    private func isTrusted(_ text: String) -> Bool {
        guard let address = IPAddress(text)?.unmapped else { return false }
        return origins.contains { $0.contains(address) }
    }
}
