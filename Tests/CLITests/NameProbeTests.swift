// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc
import LinuxIO
import Mesh
import Testing

/// `coder netcheck` where some names of the map are not answered by any resolver.
@Suite(.timeLimit(.minutes(1))) struct NameProbeTests {
    private static let seen = SocketAddress(IPAddress(v4: 0x7f00_0001), port: 9)

    /// Answers one STUN request on 127.0.0.1; the port.
    private func stunServer() throws -> UInt16 {
        let number = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(number, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        try #require(bound == 0)
        try DedicatedThread(name: "stub-stun") {
            defer { close(number) }
            var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, 30_000) > 0 else { return }
            var buffer = [UInt8](repeating: 0, count: 2_048)
            var peer = sockaddr_in()
            var length = socklen_t(MemoryLayout<sockaddr_in>.size)
            withUnsafeMutablePointer(to: &peer) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { peer in
                    let count = recvfrom(number, &buffer, buffer.count, 0, peer, &length)
                    guard count > 0,
                        let id = try? STUN.parseRequest(Array(buffer[..<count]).span.bytes, strict: true)
                    else { return }
                    let size = buffer.withUnsafeMutableBytes {
                        STUN.writeReply(id, mapped: Self.seen, into: $0)
                    }
                    sendto(number, buffer, size, 0, peer, length)
                }
            }
        }.detach()
        return try StreamSocket.localAddress(number).port
    }

    private func map(_ names: [String], port: UInt16) -> DERPMap {
        let nodes = names.map { name in
            var node = DERPMap.Node(name: name, regionID: 7, hostName: "\(name).test")
            node.stunPort = Int(port)
            return node
        }
        return DERPMap(regions: [7: DERPMap.Region(id: 7, code: "x", name: "X", nodes: nodes)])
    }

    @Test func deadNamesHoldUpNoServer() async throws {
        let dead = try WakeUp()
        defer { dead.signal() }
        let lookups = NameLookups { name in
            if name == "live.test" { return [.loopback(v4: true)] }
            dead.wait()
            return []
        }
        // Behind two dead ones.
        let map = map(["dead", "lost", "live"], port: try stunServer())
        let outcome = await STUNProbe.run(map, lookups)
        #expect(outcome.answered == ["live"])
        #expect(outcome.v4 == Self.seen)
    }
}
