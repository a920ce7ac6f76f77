// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Synchronization

/// An HTTP server that answers as a test wants it to, one request per connection, on a thread of its own.
final class StubHTTP: Sendable {
    /// A request: its path and its body.
    struct Request: Sendable {
        var path: String
        var body: String
    }

    /// What it answers; nil: the connection is closed without an answer.
    struct Answer: Sendable {
        var status = 200
        var body = ""
    }

    let port: Int
    private let listener: Int32
    private let isOver = Atomic<Bool>(false)
    private let seen = Mutex<[Request]>([])
    private let answer: @Sendable (_ request: Request, _ number: Int) -> Answer?

    /// `number`: how many requests there were before.
    init(_ answer: @escaping @Sendable (_ request: Request, _ number: Int) -> Answer?) throws {
        self.answer = answer
        let address = KernelAddress.loopback(v4: true)
        listener = try StreamSocket.listen(on: address, bothFamilies: false).release()
        port = Int(try StreamSocket.localAddress(listener).port)
        try DedicatedThread(name: "stub-http") { self.run() }.detach()
    }

    var requests: [Request] { seen.withLock { $0 } }
    var count: Int { seen.withLock { $0.count } }

    func stop() { isOver.store(true, ordering: .releasing) }

    private func run() {
        while !isOver.load(ordering: .acquiring) {
            var wait = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, 50) > 0, let accepted = StreamSocket.accept(listener) else { continue }
            let number = accepted.take().release()
            serve(number)
            close(number)
        }
        close(listener)
    }

    private func serve(_ number: Int32) {
        try? Descriptor.setNonBlocking(number, false)
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(number, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var text = ""
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let parts = text.split(separator: "\r\n\r\n", maxSplits: 1, omittingEmptySubsequences: false)
            if parts.count == 2 {
                let length = parts[0].lowercased().split(separator: "\r\n").first {
                    $0.hasPrefix("content-length: ")
                }
                let wanted = length.flatMap { Int($0.dropFirst("content-length: ".count)) } ?? 0
                if parts[1].utf8.count >= wanted { break }
            }
            let count = recv(number, &buffer, buffer.count, 0)
            guard count > 0 else { return }
            text += String(decoding: buffer[..<count], as: UTF8.self)
        }
        let words = text.split(separator: " ", maxSplits: 2)
        let body =
            text.split(separator: "\r\n\r\n", maxSplits: 1, omittingEmptySubsequences: false).last ?? ""
        let request = Request(path: words.count > 1 ? String(words[1]) : "", body: String(body))
        let before = seen.withLock { seen in
            seen.append(request)
            return seen.count - 1
        }
        guard let answer = answer(request, before) else { return }
        let head =
            "HTTP/1.1 \(answer.status) Status\r\nContent-Type: application/json\r\n"
            + "Content-Length: \(answer.body.utf8.count)\r\nConnection: close\r\n\r\n"
        let bytes = Array((head + answer.body).utf8)
        _ = send(number, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }
}
