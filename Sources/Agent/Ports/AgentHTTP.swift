// SPDX-License-Identifier: Apache-2.0

internal import Dispatch
internal import Glibc
package import LinuxIO
package import Mesh
internal import Synchronization

/// Port 4: the agent's HTTP API, as far as there is one: greeting, listening ports, netcheck, files. One request per
/// connection, on a thread of its own. agent.md §5.3.
package struct AgentHTTP: Sendable {
    /// 20 s for reading and for writing. agent.md §5.3.
    private static let timeoutSeconds = 20
    private struct Port: Encodable {
        var process_name: String
        var network: String
        var port: UInt16
    }

    private struct Ports: Encodable {
        var ports: [Port]
    }

    private struct Recordings: Encodable {
        struct Entry: Encodable {
            var recording: PathRecording
        }
        var recordings: [Entry]
    }

    private let home: String
    let own: @Sendable () -> OwnNode?
    let status: @Sendable () async -> NodeStatus?
    let recordings: @Sendable () async -> [NodeRecording]

    package init(
        home: String = "/", own: @escaping @Sendable () -> OwnNode?,
        status: @escaping @Sendable () async -> NodeStatus? = { nil },
        recordings: @escaping @Sendable () async -> [NodeRecording] = { [] }
    ) {
        self.home = home
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
        guard let exchange = HTTPExchange(number) else { return }
        if AgentFiles(home: home).serve(exchange) { return }
        guard ["GET", "HEAD"].contains(exchange.method) else {
            return exchange.answer(
                "405 Method Not Allowed", HTTPExchange.Message(message: "Method not allowed."))
        }
        switch exchange.path {
        case "/": exchange.answer("200 OK", HTTPExchange.Message(message: "Hello from the agent!"))
        case "/api/v0/listening-ports":
            let ports = ListeningPort.all().map {
                Port(process_name: $0.process, network: "tcp", port: $0.port)
            }
            exchange.answer("200 OK", Ports(ports: ports))
        case "/api/v0/path-recordings": exchange.answer("200 OK", recorded(of: peer))
        case "/api/v0/netcheck": exchange.answer("200 OK", AgentNetcheck(own(), wait(for: status) ?? nil))
        default: exchange.answer("404 Not Found", HTTPExchange.Message(message: "Route not found."))
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
}
