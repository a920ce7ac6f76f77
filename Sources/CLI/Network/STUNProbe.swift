// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

/// Asks all STUN servers of a map, from one socket per family, and waits at most a second and a half.
enum STUNProbe {
    struct Outcome: Sendable {
        /// Own address as the first server of the family saw it.
        var v4: SocketAddress?
        var v6: SocketAddress?
        /// Whether IPv4 servers saw different addresses; nil with fewer than two answers.
        var mappingVaries: Bool?
        /// Whether our own outside address reaches us; nil without one.
        var hairPinning: Bool?
        /// Names of nodes that answered.
        var answered: Set<String> = []
        var canSendV4 = false
        var canSendV6 = false
        /// Whether the system has IPv6 at all.
        var hasV6 = false
    }

    private static let limit: UInt64 = 1_500_000_000
    /// Requests are repeated, because one lost datagram says nothing.
    private static let pause: UInt64 = 300_000_000

    static func run(_ map: DERPMap) async -> Outcome {
        let servers = map.stunServers
        return await withCheckedContinuation { continuation in
            do {
                try DedicatedThread(name: "stun-probe") { continuation.resume(returning: probe(servers)) }
                    .detach()
            } catch {
                continuation.resume(returning: Outcome())
            }
        }
    }

    private struct Target {
        var node: String
        var address: SocketAddress
        var id: TransactionID
        var isAnswered = false
    }

    private static func probe(_ servers: [DERPMap.STUNServer]) -> Outcome {
        var outcome = Outcome()
        let sockets = [AF_INET, AF_INET6].map {
            socket($0, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        }
        defer { sockets.forEach { if $0 >= 0 { close($0) } } }
        outcome.hasV6 = sockets[1] >= 0
        var targets = servers.flatMap(targets)
        // Only another server's answer says something about the NAT.
        var told: [SocketAddress] = []
        let end = Clock.monotonicNanoseconds() + limit
        var nextSend: UInt64 = 0
        while targets.contains(where: { !$0.isAnswered }) {
            let now = Clock.monotonicNanoseconds()
            guard now < end else { break }
            if now >= nextSend {
                for target in targets where !target.isAnswered { send(target, sockets, &outcome) }
                nextSend = now + pause
            }
            var polls = sockets.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            guard poll(&polls, 2, 50) > 0 else { continue }
            for entry in polls where entry.revents != 0 { receive(entry.fd, &targets, &told, &outcome) }
        }
        if let own = outcome.v4, sockets[0] >= 0 { outcome.hairPinning = hairpins(own, sockets[0]) }
        return outcome
    }

    /// Sends a request from another socket to our own outside address and waits a tenth of a second for it.
    private static func hairpins(_ own: SocketAddress, _ listening: Int32) -> Bool {
        let other = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard other >= 0 else { return false }
        defer { close(other) }
        var generator = SystemRandomNumberGenerator()
        let id = TransactionID(
            high: generator.next(), low: UInt32(truncatingIfNeeded: generator.next() as UInt64))
        var request = [UInt8](repeating: 0, count: STUN.requestBytes)
        request.withUnsafeMutableBytes { STUN.writeRequest(id, into: $0) }
        _ = LocalSocket.withKernelAddress(own) { sendto(other, request, request.count, 0, $0, $1) }
        let end = Clock.monotonicNanoseconds() + 100_000_000
        var buffer = [UInt8](repeating: 0, count: 2_048)
        while Clock.monotonicNanoseconds() < end {
            var polls = [pollfd(fd: listening, events: Int16(POLLIN), revents: 0)]
            guard poll(&polls, 1, 20) > 0 else { continue }
            let count = recv(listening, &buffer, buffer.count, Int32(MSG_DONTWAIT))
            guard count > 0,
                let seen = try? STUN.parseRequest(Array(buffer[..<count]).span.bytes, strict: true)
            else { continue }
            if seen == id { return true }
        }
        return false
    }

    private static func targets(_ server: DERPMap.STUNServer) -> [Target] {
        var addresses = server.addresses.map { SocketAddress($0, port: server.port) }
        if addresses.isEmpty, !server.hostName.isEmpty {
            addresses = Resolver.lookUp(server.hostName, port: server.port).map {
                let ip =
                    $0.isV4
                    ? IPAddress(v4: UInt32(truncatingIfNeeded: $0.low))
                    : IPAddress(high: $0.high, low: $0.low)
                return SocketAddress(ip, port: $0.port)
            }
        }
        var generator = SystemRandomNumberGenerator()
        return addresses.map { address in
            let id = TransactionID(
                high: generator.next(), low: UInt32(truncatingIfNeeded: generator.next() as UInt64))
            return Target(node: server.node, address: address, id: id)
        }
    }

    private static func send(_ target: Target, _ sockets: [Int32], _ outcome: inout Outcome) {
        let isV4 = target.address.ip.isV4
        let number = sockets[isV4 ? 0 : 1]
        guard number >= 0 else { return }
        var request = [UInt8](repeating: 0, count: STUN.requestBytes)
        request.withUnsafeMutableBytes { STUN.writeRequest(target.id, into: $0) }
        let count = LocalSocket.withKernelAddress(target.address) {
            sendto(number, request, request.count, 0, $0, $1)
        }
        guard count == request.count else { return }
        if isV4 { outcome.canSendV4 = true } else { outcome.canSendV6 = true }
    }

    private static func receive(
        _ number: Int32, _ targets: inout [Target], _ told: inout [SocketAddress], _ outcome: inout Outcome
    ) {
        var buffer = [UInt8](repeating: 0, count: 2_048)
        let count = recv(number, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        guard count > 0 else { return }
        // Anything may arrive at an open port: what is no answer to a request of ours is dropped.
        guard let (id, mapped) = try? STUN.parseResponse(Array(buffer[..<count]).span.bytes),
            let index = targets.firstIndex(where: { $0.id == id && !$0.isAnswered })
        else { return }
        targets[index].isAnswered = true
        outcome.answered.insert(targets[index].node)
        guard mapped.ip.isV4 else {
            outcome.v6 = outcome.v6 ?? mapped
            return
        }
        let isAnother = !told.contains(targets[index].address)
        told.append(targets[index].address)
        if let known = outcome.v4 {
            guard isAnother else { return }
            if known != mapped { outcome.mappingVaries = true }
            outcome.mappingVaries = outcome.mappingVaries ?? false
        } else {
            outcome.v4 = mapped
        }
    }
}
