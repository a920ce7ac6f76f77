// SPDX-License-Identifier: Apache-2.0

import HTTPTransport
import Testing

@Suite(.timeLimit(.minutes(1))) struct EventTests {
    static let streams: [(text: String, events: [ServerEvent])] = [
        ("event: data\ndata: {\"a\":1}\n\n", [.init(name: "data", data: "{\"a\":1}")]),
        ("data: a\ndata:b\n\n", [.init(name: "message", data: "a\nb")]),
        (
            "event: ping\n\n: comment\n\ndata: x\r\n\r\ndata\r\r",
            [
                .init(name: "message", data: "x"), .init(name: "message", data: ""),
            ]
        ),
        (
            "id: 7\nretry: 5\ndata:  two spaces\n\ndata: never ended",
            [
                .init(name: "message", data: " two spaces")
            ]
        ),
    ]

    @Test(arguments: streams.indices) func eventsAreTheSameInAnyPieces(_ index: Int) throws {
        let (text, expected) = Self.streams[index]
        let bytes = Array(text.utf8)
        for size in 1...max(1, bytes.count) {
            var parser = EventParser()
            var events: [ServerEvent] = []
            for start in stride(from: 0, to: bytes.count, by: size) {
                let found = parser.receive(bytes[start..<min(start + size, bytes.count)])
                events += try #require(found)
            }
            #expect(events == expected, "in pieces of \(size)")
        }
    }

    @Test func anEndlessEventIsRefused() {
        var parser = EventParser()
        let line = [UInt8](repeating: 97, count: 1 << 20)
        var isRefused = false
        for _ in 0..<5 where !isRefused { isRefused = parser.receive(line) == nil }
        #expect(isRefused)
    }

    @Test func eventsComeWhileTheStreamIsOpen() async throws {
        let server = try ScriptedServer { peer in
            guard peer.readHead()?.contains("Accept: text/event-stream") == true else { return }
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            peer.write("d\r\ndata: one\n\nda\r\n8\r\nta: two\n\r\n")
            peer.write("1\r\n\n\r\n")
            // Stays open until the client leaves.
            _ = peer.readBytes(1)
        }
        try await withClient { client in
            let stream = try await client.events(url(server.port, "/watch"))
            var seen: [String] = []
            try await stream.forEach { event in
                seen.append(event.data)
                return seen.count < 2
            }
            #expect(seen == ["one", "two"])
        }
    }

    @Test func aRefusalKeepsItsAnswer() async throws {
        let server = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write("HTTP/1.1 410 Gone\r\nContent-Length: 15\r\n\r\n{\"message\":\"m\"}")
            _ = peer.readBytes(1)
        }
        try await withClient { client in
            let error = await #expect(throws: HTTPError.self) {
                try await client.events(url(server.port, "/watch"))
            }
            #expect(error?.kind == .upgradeRefused)
            #expect(error?.response?.status == 410)
            #expect(error?.response?.text == "{\"message\":\"m\"}")
        }
    }

    @Test func silenceBreaksTheStream() async throws {
        let server = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write("HTTP/1.1 200 OK\r\n\r\nevent: ping\n\n")
            _ = peer.readBytes(1)
        }
        try await withClient { client in
            let stream = try await client.events(url(server.port, "/watch"), silence: .milliseconds(200))
            let error = await #expect(throws: HTTPError.self) { try await stream.forEach { _ in true } }
            #expect(error?.kind == .connectionLost)
        }
    }
}
