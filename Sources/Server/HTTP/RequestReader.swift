// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import Synchronization

/// Reads the requests of one connection. A body waits in the socket until a route asks for it: whoever asks for an
/// unknown path, or is not let in, cannot make the server keep anything. One task uses it.
final class RequestReader: Sendable {
    private let stream: ByteStream
    private let parser = Mutex(RequestParser())
    private let pending = Mutex(Pending())

    /// The body of the current request.
    private struct Pending {
        var framing = RequestHead.BodyFraming.none
        var expectsContinue = false
        /// Where the next request begins cannot be known.
        var isBroken = false
    }

    /// How long a client may take for a request's head, from its first byte to its last.
    private static let headSeconds: Int64 = 30
    /// How long a client may take for a body: this, and a second for so many bytes of it.
    private static let bodySeconds: Int64 = 30
    private static let bodyBytesPerSecond = 16_384
    /// How long a connection may wait for its next request.
    private static let idleSeconds: Int64 = 180
    /// A body that no route wanted is read to its end if it is no longer than this, so that the connection can go on.
    private static let drainedBytes = 65_536

    init(stream: ByteStream) { self.stream = stream }

    /// Bytes that came after the last request.
    var leftOver: [UInt8] { parser.withLock { Array($0.leftOver) } }

    /// The next head, or nil when the client is done, or did not finish it in time: by `limit` if that is given.
    func nextHead(until limit: NIODeadline? = nil) async throws -> RequestHead? {
        var deadline = limit
        while true {
            if let head = try parser.withLock({ try $0.nextHead() }) {
                pending.withLock {
                    $0.framing = head.framing
                    $0.expectsContinue = head.tokens("expect").contains("100-continue")
                }
                return head
            }
            if deadline == nil, !parser.withLock({ $0.isEmpty }) {
                deadline = .now() + .seconds(Self.headSeconds)
            }
            let timeout = deadline.map { $0 - .now() } ?? .seconds(Self.idleSeconds)
            guard let bytes = try await stream.read(timeout: timeout) else { return nil }
            parser.withLock { $0.append(bytes.readableBytesView) }
        }
    }

    /// The body of the current request; empty when it has none, or was read before.
    func body(limit: Int) async throws(RequestError) -> [UInt8] {
        let (framing, expectsContinue) = pending.withLock { ($0.framing, $0.expectsContinue) }
        guard framing != .none else { return [] }
        let started = NIODeadline.now()
        do {
            if case .length(let count) = framing, count > limit { throw RequestError.bodyTooLarge }
            if expectsContinue {
                pending.withLock { $0.expectsContinue = false }
                try await stream.write("HTTP/1.1 100 Continue\r\n\r\n".utf8)
            }
            while true {
                let (body, count) = try parser.withLock {
                    (try $0.nextBody(framing, limit: limit), $0.bodyBytes)
                }
                if let body {
                    pending.withLock { $0.framing = .none }
                    return body
                }
                let seconds = Self.bodySeconds + Int64(count / Self.bodyBytesPerSecond)
                let timeout = started + .seconds(seconds) - .now()
                guard let bytes = try await stream.read(timeout: timeout) else {
                    throw RequestError.endedEarly
                }
                parser.withLock { $0.append(bytes.readableBytesView) }
            }
        } catch {
            pending.withLock { $0.isBroken = true }
            throw error as? RequestError ?? .endedEarly
        }
    }

    /// Whether the connection must end after this answer: the rest of the body is in the way, and long or never sent.
    var isSpoiled: Bool {
        pending.withLock { pending in
            switch pending.framing {
            case .none: false
            // A client that waits for leave to send its body has been refused it: it may send it, or not.
            case .length(let count): pending.isBroken || pending.expectsContinue || count > Self.drainedBytes
            case .chunked: pending.isBroken || pending.expectsContinue
            }
        }
    }

    /// Reads the rest of a body that nobody wanted. False when the connection cannot carry another request.
    func finish() async -> Bool {
        guard !isSpoiled else { return false }
        return (try? await body(limit: Self.drainedBytes)) != nil
    }
}
