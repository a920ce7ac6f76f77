// SPDX-License-Identifier: Apache-2.0

import Glibc
import HTTPTransport
import LinuxIO
import Mesh
import Synchronization
import Tailnet
import Testing

/// How relays are dialled where something in between does not let everything through.
@Suite(.timeLimit(.minutes(1))) struct RelayConnectorTests {
    /// Answers each request by a script, and remembers which upgrade was asked for.
    private final class Gate: Sendable {
        let port: UInt16
        private let listener: OwnedDescriptor
        private let state: Mutex<(asked: [String], answers: [String])>

        init(_ answers: [String]) throws {
            listener = try StreamSocket.listen(on: .loopback(v4: true), bothFamilies: false)
            port = try StreamSocket.localAddress(listener.number).port
            state = Mutex((asked: [], answers: answers))
            let number = listener.number
            try DedicatedThread(name: "test-gate") { [self] in
                while let answer = state.withLock({ $0.answers.first }) {
                    var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
                    _ = poll(&wait, 1, 10_000)
                    guard let accepted = StreamSocket.accept(number) else { return }
                    serve(accepted.take(), answer)
                }
            }.detach()
        }

        var asked: [String] { state.withLock { $0.asked } }

        private func serve(_ socket: consuming OwnedDescriptor, _ answer: String) {
            try? Descriptor.setNonBlocking(socket.number, false)
            var head = ""
            var buffer = [UInt8](repeating: 0, count: 4_096)
            while !head.contains("\r\n\r\n") {
                let count = read(socket.number, &buffer, buffer.count)
                guard count > 0 else { return }
                head += String(decoding: buffer[..<count], as: UTF8.self)
            }
            state.withLock { state in
                state.asked.append(head.lowercased().contains("websocket") ? "websocket" : "derp")
                state.answers.removeFirst()
            }
            _ = answer.utf8.withContiguousStorageIfAvailable {
                write(socket.number, $0.baseAddress, $0.count)
            }
        }
    }

    private static let refusal = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    private static let upgraded =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"

    private func region(_ ports: UInt16...) -> DERPMap.Region {
        DERPMap.Region(
            id: 1, code: "test", name: "Test",
            nodes: ports.enumerated().map { place, port in
                var node = DERPMap.Node(name: "1\(place)", regionID: 1, hostName: "127.0.0.1")
                node.derpPort = Int(port)
                node.forcesHTTP = true
                return node
            })
    }

    /// An ingress says 404 to everything while the server starts.
    @Test func aRefusalThatIsNotAboutTheUpgradeIsForgotten() async throws {
        let gate = try Gate([Self.refusal, Self.refusal, Self.upgraded])
        let client = HTTPClient()
        let connector = RelayConnector(client: client)
        await #expect(throws: HTTPError.self) {
            try await connector.connect(region: region(gate.port)).close()
        }
        #expect(connector.forcedWebSocketReasons().isEmpty)
        try await connector.connect(region: region(gate.port)).close()
        #expect(gate.asked == ["derp", "websocket", "derp"])
        await client.shutDown()
    }

    @Test func aNodeThatSaysNothingDoesNotHoldUpTheNext() async throws {
        // It takes connections and never answers.
        let silent = try StreamSocket.listen(on: .loopback(v4: true), bothFamilies: false)
        let port = try StreamSocket.localAddress(silent.number).port
        let gate = try Gate([Self.upgraded])
        let client = HTTPClient()
        try await RelayConnector(client: client).connect(region: region(port, gate.port)).close()
        #expect(gate.asked == ["derp"])
        await client.shutDown()
        silent.close()
    }
}
