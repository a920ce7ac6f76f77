// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Mesh

/// `coder connect exists`: whether a host is reachable by a VPN's network. Run by ssh for each matching host, so it
/// asks the system's resolver only.
enum ConnectCommand {
    static let command = Command(
        name: "connect", summary: "Questions about the VPN.", isHidden: true,
        subcommands: [
            Command(
                name: "exists", usage: "<hostname>", summary: "Exit with 0 when the host is inside the VPN.",
                arguments: .exactly(1), run: { try exists($0.words[0]) ? 0 : 1 })
        ])

    /// The service prefix of the VPN.
    private static let prefix = IPPrefix("fd60:627a:a42b::/48")

    private static func exists(_ host: String) throws -> Bool {
        var hints = addrinfo()
        hints.ai_family = AF_INET6
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let failure = getaddrinfo(host, nil, &hints, &list)
        guard failure == 0 else {
            guard failure == EAI_NONAME || failure == -5 else {
                throw CommandError(
                    "cannot look up \(Table.clean(host)): \(String(cString: gai_strerror(failure)))")
            }
            return false
        }
        defer { freeaddrinfo(list) }
        var next = list
        while let entry = next {
            var text = [CChar](repeating: 0, count: 64)
            getnameinfo(
                entry.pointee.ai_addr, entry.pointee.ai_addrlen, &text, 64, nil, 0, NI_NUMERICHOST)
            let bytes = text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
            if let address = IPAddress(String(decoding: bytes, as: UTF8.self)),
                prefix?.contains(address) == true
            {
                return true
            }
            next = entry.pointee.ai_next
        }
        return false
    }
}
