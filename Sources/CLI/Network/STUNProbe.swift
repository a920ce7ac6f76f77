// SPDX-License-Identifier: Apache-2.0

internal import Glibc
package import LinuxIO
package import Mesh

/// Asks all STUN servers of a map, from one socket per family: each for a second and a half from when its address is
/// known. Names are looked up at once, and a name that takes longer than two seconds is not waited for.
package enum STUNProbe {
    package struct Outcome: Sendable {
        /// Own address as the first server of the family saw it.
        package var v4: SocketAddress?
        package var v6: SocketAddress?
        /// Whether IPv4 servers saw different addresses; nil with fewer than two answers.
        package var mappingVaries: Bool?
        /// Whether our own outside address reaches us; nil without one.
        package var hairPinning: Bool?
        /// Names of nodes that answered.
        package var answered: Set<String> = []
        package var canSendV4 = false
        package var canSendV6 = false
        /// Whether the system has IPv6 at all.
        package var hasV6 = false
    }

    /// For the answers of one address.
    private static let limit: UInt64 = 1_500_000_000
    /// For the address of a name.
    private static let nameLimit: UInt64 = 2_000_000_000
    /// Requests are repeated, because one lost datagram says nothing.
    private static let pause: UInt64 = 300_000_000

    package static func run(_ map: DERPMap, _ lookups: NameLookups = NameLookups()) async -> Outcome {
        let servers = map.stunServers
        let names = FoundNames(Set(servers.map(\.hostName)).subtracting([""]).sorted(), lookups)
        do {
            return try await DedicatedThread.run(name: "stun-probe") { probe(servers, names) }
        } catch {
            return Outcome()
        }
    }

    private struct Target {
        let node: String
        let address: SocketAddress
        let id: TransactionID
        let end: UInt64
        var nextSend: UInt64
        var isAnswered = false

        init(_ node: String, _ address: SocketAddress, now: UInt64) {
            var generator = SystemRandomNumberGenerator()
            self.node = node
            self.address = address
            id = TransactionID(
                high: generator.next(), low: UInt32(truncatingIfNeeded: generator.next() as UInt64))
            end = now + STUNProbe.limit
            nextSend = now
        }
    }

    private static func probe(_ servers: [DERPMap.STUNServer], _ names: FoundNames) -> Outcome {
        var outcome = Outcome()
        let sockets = [AF_INET, AF_INET6].map {
            socket($0, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        }
        defer { sockets.forEach { if $0 >= 0 { close($0) } } }
        outcome.hasV6 = sockets[1] >= 0
        let start = Clock.monotonicNanoseconds()
        var targets: [Target] = []
        for server in servers { add(server, [], to: &targets, now: start) }
        // Only another server's answer says something about the NAT.
        var told: [SocketAddress] = []
        while true {
            let now = Clock.monotonicNanoseconds()
            let areNamesOut = names.isWaiting && now < start + nameLimit
            for (name, found) in names.takeAll() {
                for server in servers where server.hostName == name {
                    add(server, found, to: &targets, now: now)
                }
            }
            guard areNamesOut || targets.contains(where: { !$0.isAnswered && now < $0.end }) else { break }
            for index in targets.indices where !targets[index].isAnswered && now >= targets[index].nextSend {
                send(targets[index], sockets, &outcome)
                targets[index].nextSend = now + pause
            }
            var polls = sockets.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            guard poll(&polls, 2, 20) > 0 else { continue }
            for entry in polls where entry.revents != 0 { receive(entry.fd, &targets, &told, &outcome) }
        }
        if let own = outcome.v4, sockets[0] >= 0 { outcome.hairPinning = hairpins(own, sockets[0]) }
        return outcome
    }

    /// Notes where to ask a server, when it is not asked there already.
    private static func add(
        _ server: DERPMap.STUNServer, _ found: [KernelAddress], to targets: inout [Target], now: UInt64
    ) {
        for address in server.sockets(adding: found.map { IPAddress($0) })
        where !targets.contains(where: { $0.node == server.node && $0.address == address }) {
            targets.append(Target(server.node, address, now: now))
        }
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
