// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

/// Network interfaces that are up and have an address other than a link-local one.
struct NetworkInterface: Sendable {
    var name: String
    var mtu: Int
    var addresses: [String]

    /// Below this a full-size packet of the mesh does not fit. 1280 + WireGuard, UDP and IPv6 headers.
    static let mtuFloor = 1_378

    /// Those whose packets are too small for the mesh.
    static func narrow() -> [(name: String, mtu: Int)] {
        all().filter { $0.mtu > 0 && $0.mtu < mtuFloor }.map { ($0.name, $0.mtu) }
    }

    static func all() -> [NetworkInterface] {
        var list: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&list) == 0 else { return [] }
        defer { freeifaddrs(list) }
        var result: [NetworkInterface] = []
        var next = list
        while let entry = next?.pointee {
            next = entry.ifa_next
            guard entry.ifa_flags & UInt32(IFF_UP) != 0, let address = text(of: entry) else {
                continue
            }
            let name = String(cString: entry.ifa_name)
            if let index = result.firstIndex(where: { $0.name == name }) {
                result[index].addresses.append(address)
            } else {
                result.append(NetworkInterface(name: name, mtu: mtu(of: name), addresses: [address]))
            }
        }
        return result
    }

    private static func text(of entry: ifaddrs) -> String? {
        guard let address = entry.ifa_addr, let mask = entry.ifa_netmask,
            [AF_INET, AF_INET6].contains(Int32(address.pointee.sa_family))
        else { return nil }
        let isV4 = Int32(address.pointee.sa_family) == AF_INET
        let size = isV4 ? MemoryLayout<sockaddr_in>.size : MemoryLayout<sockaddr_in6>.size
        var host = [CChar](repeating: 0, count: 64)
        guard getnameinfo(address, socklen_t(size), &host, 64, nil, 0, NI_NUMERICHOST) == 0 else {
            return nil
        }
        let name = String(decoding: host.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        guard let ip = IPAddress(name.prefix { $0 != "%" }), !ip.isLinkLocal else { return nil }
        let offset = isV4 ? 4 : 8
        let bits = UnsafeRawBufferPointer(start: mask, count: size)[offset..<offset + (isV4 ? 4 : 16)].reduce(
            0
        ) {
            $0 + $1.nonzeroBitCount
        }
        return "\(ip)/\(bits)"
    }

    private static func mtu(of name: String) -> Int {
        guard let text = try? TextFile.read("/sys/class/net/\(name)/mtu") else { return 0 }
        return Int(text.trimmed) ?? 0
    }
}
