// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

/// Which protocols for opening ports the router speaks, and whether ICMP comes through. Asks only: no port is
/// opened. Waits at most 0.7 s, also for names of relays.
package enum RouterProbe {
    package struct Outcome: Hashable, Sendable {
        /// Nil where there is no router to ask.
        package var upnp: Bool?
        package var pmp: Bool?
        package var pcp: Bool?
        /// A relay answered an ICMP echo.
        package var icmpv4 = false

        /// Nothing is known.
        package init() {}
    }

    private static let limit: UInt64 = 700_000_000
    /// Requests are repeated, because one lost datagram says nothing.
    private static let pause: UInt64 = 200_000_000
    /// Relays that are sent an echo.
    private static let echoes = 8

    static func run(_ map: DERPMap) async -> Outcome {
        let hosts = map.regions.values.flatMap(\.nodes).filter { !$0.isSTUNOnly }.map {
            $0.ipv4.isEmpty || $0.ipv4 == "none" ? $0.hostName : $0.ipv4
        }
        let names = FoundNames(Array(Set(hosts).sorted().prefix(echoes)), NameLookups())
        do {
            return try await DedicatedThread.run(name: "router-probe") { probe(names) }
        } catch {
            return Outcome()
        }
    }

    private static func probe(_ names: FoundNames) -> Outcome {
        var outcome = Outcome()
        let router = Router()
        if router != nil { (outcome.upnp, outcome.pmp, outcome.pcp) = (false, false, false) }
        let echo = Echo()
        let end = Clock.monotonicNanoseconds() + limit
        var nextSend: UInt64 = 0
        while true {
            let now = Clock.monotonicNanoseconds()
            guard now < end else { return outcome }
            for (_, found) in names.takeAll() { echo?.add(found.first(where: \.isV4)) }
            if now >= nextSend {
                nextSend = now + pause
                router?.ask()
                echo?.send()
            }
            var polls = [router?.socket.number ?? -1, echo?.number ?? -1].map {
                pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
            }
            guard poll(&polls, 2, 50) > 0 else { continue }
            if polls[0].revents != 0 { router?.receive(&outcome) }
            if polls[1].revents != 0, echo?.isAnswered() == true { outcome.icmpv4 = true }
        }
    }

    /// What an answer of the router shows.
    package static func note(_ bytes: [UInt8], fromPort port: UInt16, _ outcome: inout Outcome) {
        guard port == NATPMP.port else {
            if UPnP.location(inSearchAnswer: bytes) != nil { outcome.upnp = true }
            return
        }
        if bytes.first == 2 {
            guard let answer = try? PCP.parse(bytes.span.bytes, nonce: PCP.Nonce(high: 0, low: 0)) else {
                return
            }
            if case .announced = answer { outcome.pcp = true }
        } else if case .externalAddress? = try? NATPMP.parse(bytes.span.bytes) {
            outcome.pmp = true
        }
    }

    /// The default gateway, when it is one that port mapping would be asked of.
    private final class Router {
        let socket: SmallUDPSocket
        private let gateway: KernelAddress
        private let own: IPAddress

        init?() {
            guard let gateway = DefaultRoute.current(v4: true)?.gateway,
                let source = DefaultRoute.source(towards: gateway),
                let socket = try? SmallUDPSocket(v4: true)
            else { return nil }
            own = IPAddress(source)
            self.gateway = gateway
            self.socket = socket
        }

        func ask() {
            var target = gateway
            target.port = NATPMP.port
            socket.send(PCP.announceRequest(own: own), to: target)
            socket.send(NATPMP.externalAddressRequest, to: target)
            target.port = UPnP.port
            var group = KernelAddress.any(v4: true, port: UPnP.port)
            group.low |= UInt64(UPnP.group.v4)
            for search in UPnP.searches {
                socket.send(search, to: target)
                socket.send(search, to: group)
            }
        }

        func receive(_ outcome: inout Outcome) {
            for _ in 0..<32 {
                guard let (bytes, source) = socket.receive() else { return }
                guard source.low == gateway.low else { continue }
                RouterProbe.note(bytes, fromPort: source.port, &outcome)
            }
        }
    }

    /// ICMP echo requests to relays. The kernel lets all users send them, or root alone, or nobody.
    private final class Echo {
        let number: Int32
        private let isRaw: Bool
        private var targets: [SocketAddress] = []
        private let mark: [UInt8]
        private var sequence: UInt8 = 0

        init?() {
            let flags = Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
            let datagram = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | flags, Int32(IPPROTO_ICMP))
            let mustBeRaw = datagram < 0
            isRaw = mustBeRaw
            number =
                mustBeRaw ? socket(AF_INET, Int32(SOCK_RAW.rawValue) | flags, Int32(IPPROTO_ICMP)) : datagram
            var generator = SystemRandomNumberGenerator()
            mark = (0..<8).map { _ in UInt8.random(in: 0...255, using: &generator) }
            if number < 0 { return nil }
        }

        deinit { if number >= 0 { close(number) } }

        /// Sends to this address too: at once, and with the others from then on.
        func add(_ address: KernelAddress?) {
            guard let target = address.map({ SocketAddress($0) }) else { return }
            targets.append(target)
            send(to: [target])
        }

        func send() { send(to: targets) }

        private func send(to targets: [SocketAddress]) {
            sequence &+= 1
            // Type 8, code 0, checksum, identifier, sequence number, data: RFC 792.
            var message: [UInt8] = [8, 0, 0, 0, mark[0], mark[1], 0, sequence] + mark
            var sum: UInt32 = 0
            for at in stride(from: 0, to: message.count, by: 2) {
                sum += UInt32(message[at]) << 8 | UInt32(message[at + 1])
            }
            while sum >> 16 != 0 { sum = (sum & 0xffff) + sum >> 16 }
            message[2] = UInt8(truncatingIfNeeded: ~sum >> 8)
            message[3] = UInt8(truncatingIfNeeded: ~sum)
            for target in targets {
                _ = LocalSocket.withKernelAddress(target) {
                    sendto(number, message, message.count, Int32(MSG_DONTWAIT), $0, $1)
                }
            }
        }

        /// Whether what waits holds an answer with our data.
        func isAnswered() -> Bool {
            var buffer = [UInt8](repeating: 0, count: 2_048)
            for _ in 0..<64 {
                let count = recv(number, &buffer, buffer.count, Int32(MSG_DONTWAIT))
                guard count > 0 else { return false }
                // A raw socket gets the IP header too.
                let start = isRaw ? Int(buffer[0] & 15) * 4 : 0
                guard count >= start + 16, buffer[start] == 0 else { continue }
                if Array(buffer[start + 8..<start + 16]) == mark { return true }
            }
            return false
        }
    }
}
