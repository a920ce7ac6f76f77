// SPDX-License-Identifier: Apache-2.0

internal import Dispatch
internal import FoundationEssentials
internal import Glibc
package import LinuxIO
package import Mesh
internal import Synchronization

/// Port 4: the agent's HTTP API, as far as there is one: greeting, listening ports, netcheck. One request per
/// connection, on a thread of its own. agent.md §5.3.
package struct AgentHTTP: Sendable {
    /// 20 s for reading and for writing. agent.md §5.3.
    private static let timeoutSeconds = 20
    /// 16 KiB: longest request head.
    private static let headLimit = 16_384

    private struct Message: Encodable {
        var message: String
    }

    private struct Port: Encodable {
        var process_name: String
        var network: String
        var port: UInt16
    }

    private struct Ports: Encodable {
        var ports: [Port]
    }

    private struct Netcheck: Encodable {
        struct Report: Encodable {
            var PreferredDERP: Int
            var RegionLatency: [String: Double]
            var endpoints: [String]
            var UDP: Bool?
            var MappingVariesByDestIP: Bool?
            var GlobalV4: String
            var DirectBlocked: Bool
        }
        var severity: String
        var netcheck: Report
        var interfaces: [Interface]
    }

    private struct Interface: Encodable {
        var name: String
        var address: String
    }

    private struct Recordings: Encodable {
        struct Entry: Encodable {
            var recording: PathRecording
        }
        var recordings: [Entry]
    }

    let own: @Sendable () -> OwnNode?
    let status: @Sendable () async -> NodeStatus?
    let recordings: @Sendable () async -> [NodeRecording]

    package init(
        own: @escaping @Sendable () -> OwnNode?,
        status: @escaping @Sendable () async -> NodeStatus? = { nil },
        recordings: @escaping @Sendable () async -> [NodeRecording] = { [] }
    ) {
        self.own = own
        self.status = status
        self.recordings = recordings
    }

    /// Serves one connection of the peer with this address in the tunnel. Blocks.
    package func serve(_ socket: consuming OwnedDescriptor, from peer: IPAddress? = nil) {
        let number = socket.number
        var time = timeval(tv_sec: Self.timeoutSeconds, tv_usec: 0)
        setsockopt(number, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(number, SOL_SOCKET, SO_SNDTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
        guard let head = readHead(number) else { return }
        let words = head.prefix { $0 != 13 && $0 != 10 }.split(separator: UInt8(ascii: " "))
            .map { String(decoding: $0, as: UTF8.self) }
        guard words.count == 3, words[2].hasPrefix("HTTP/1.") else {
            return answer(number, "400 Bad Request", Message(message: "Malformed request."))
        }
        guard words[0] == "GET" || words[0] == "HEAD" else {
            return answer(number, "405 Method Not Allowed", Message(message: "Method not allowed."))
        }
        switch words[1].split(separator: "?", omittingEmptySubsequences: false).first ?? "" {
        case "/": answer(number, "200 OK", Message(message: "Hello from the agent!"))
        case "/api/v0/listening-ports":
            let ports = ListeningPort.all().map {
                Port(process_name: $0.process, network: "tcp", port: $0.port)
            }
            answer(number, "200 OK", Ports(ports: ports))
        case "/api/v0/path-recordings": answer(number, "200 OK", recorded(of: peer))
        case "/api/v0/netcheck": answer(number, "200 OK", netcheck())
        default: answer(number, "404 Not Found", Message(message: "Route not found."))
        }
    }

    private final class Found<Value: Sendable>: Sendable {
        let value = Mutex<Value?>(nil)
    }

    /// What the node says. Blocks this thread, which serves nobody else.
    private func wait<Value: Sendable>(for body: @escaping @Sendable () async -> Value) -> Value? {
        let found = Found<Value>()
        let isDone = DispatchSemaphore(value: 0)
        Task {
            let result = await body()
            found.value.withLock { $0 = result }
            isDone.signal()
        }
        guard isDone.wait(timeout: .now() + .seconds(Self.timeoutSeconds)) == .success else { return nil }
        return found.value.withLock { $0 }
    }

    /// What the flight recorder holds of the peer that asks: where others connect from is none of its business.
    private func recorded(of peer: IPAddress?) -> Recordings {
        let own = (wait(for: recordings) ?? []).filter { recording in
            peer.map { recording.addresses.contains($0) } ?? false
        }
        return Recordings(recordings: own.map { Recordings.Entry(recording: $0.recording) })
    }

    private func netcheck() -> Netcheck {
        let node = own()
        let status = wait(for: status) ?? nil
        let interfaces = (try? InterfaceAddress.all()) ?? []
        return Netcheck(
            severity: node.map { $0.homeRegion != 0 ? "ok" : "error" } ?? "error",
            netcheck: .init(
                PreferredDERP: node?.homeRegion ?? 0, RegionLatency: node?.latencies ?? [:],
                endpoints: node?.endpoints.map(\.description) ?? [], UDP: status?.network.hasUDP,
                MappingVariesByDestIP: status?.network.mappingVaries,
                GlobalV4: status?.globalV4.map(\.description) ?? "",
                DirectBlocked: status?.network.blocksDirect ?? false),
            interfaces: interfaces.filter(\.isUp).map { entry in
                let address = entry.address
                let ip =
                    address.isV4
                    ? IPAddress(v4: UInt32(truncatingIfNeeded: address.low))
                    : IPAddress(high: address.high, low: address.low)
                return Interface(name: entry.interface, address: ip.description)
            })
    }

    private func readHead(_ number: Int32) -> [UInt8]? {
        var head: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 2_048)
        while head.count < Self.headLimit {
            let count = Glibc.read(number, &piece, piece.count)
            guard count > 0 else { return nil }
            head += piece[..<count]
            if head.suffix(count + 3).containsBlankLine { return head }
        }
        return nil
    }

    private func answer(_ number: Int32, _ status: String, _ value: some Encodable) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let body = try? encoder.encode(value) else { return }
        let head =
            "HTTP/1.1 \(status)\r\nContent-Type: application/json; charset=utf-8\r\n"
            + "Content-Length: \(body.count)\r\nConnection: close\r\n\r\n"
        let bytes = Array(head.utf8) + body
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(number, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return }
            sent += count
        }
        shutdown(number, Int32(SHUT_WR))
    }
}

extension ArraySlice<UInt8> {
    fileprivate var containsBlankLine: Bool {
        var run = 0
        for byte in self {
            switch (byte, run) {
            case (13, 0), (10, 1), (13, 2): run += 1
            case (10, 3): return true
            case (13, _): run = 1
            default: run = 0
            }
        }
        return false
    }
}
