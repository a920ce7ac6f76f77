// SPDX-License-Identifier: Apache-2.0

/// The first lines of an HTTP/1.1 request.
///
///     GET /api/v2/users/me?x=1 HTTP/1.1\r\n
///     Host: coder.example.org\r\n
///     \r\n
struct RequestHead: Sendable, Equatable {
    /// One header line: the name as sent, the value without white space around it.
    struct Field: Sendable, Equatable {
        var name: String
        var value: String
    }

    /// How the end of the body is found. RFC 9112 §6.3.
    enum BodyFraming: Sendable, Equatable {
        case none
        case length(Int)
        case chunked
    }

    var method: String
    /// Path and query as sent.
    var target: String
    /// 0 or 1 of `HTTP/1.x`.
    var minorVersion: Int
    var fields: [Field]
    var framing: BodyFraming

    /// The value of the first header line of that name, in any case.
    func first(_ name: String) -> String? {
        fields.first { $0.name.lowercased() == name }?.value
    }

    /// All comma-separated elements of the header lines of that name, in lower case.
    func tokens(_ name: String) -> [String] {
        fields.filter { $0.name.lowercased() == name }.flatMap { field in
            field.value.split(separator: ",").map { $0.lowercased().trimmingSpaces() }
        }
    }

    /// Whether the connection may carry another request. RFC 9112 §9.3.
    var keepsAlive: Bool {
        let options = tokens("connection")
        return minorVersion == 1 ? !options.contains("close") : options.contains("keep-alive")
    }
}

/// Why a connection's bytes are not a request. Each ends the connection after one answer.
enum RequestError: Error, Equatable {
    /// Request line, header line, version, or chunk that breaks RFC 9112.
    case malformed(String)
    /// Head longer than 64 KiB, or more than 128 header lines.
    case headTooLarge
    /// Body longer than the limit.
    case bodyTooLarge
    /// Another version than HTTP/1.0 or 1.1.
    case version
    /// A transfer coding other than `chunked`.
    case transferCoding
    /// The client went, or was too slow, before its body was complete.
    case endedEarly

    /// Status of the answer.
    var status: Int {
        switch self {
        case .malformed: 400
        case .endedEarly: 408
        case .headTooLarge: 431
        case .bodyTooLarge: 413
        case .version: 505
        case .transferCoding: 501
        }
    }
}

/// Cuts a byte stream into requests. No I/O: append bytes, then ask. Strict where leniency would let two readers
/// of one stream disagree about where a request ends (request smuggling).
struct RequestParser {
    /// How much a client may send.
    struct Limits: Sendable {
        /// Request line and headers: browsers and proxies stay far below 64 KiB.
        var headBytes = 65_536
        /// Header lines: Go's servers see fewer than 40 behind any proxy.
        var fields = 128
        /// JSON bodies: upstream has no limit; `state push` sends base64 state of a few MiB.
        var bodyBytes = 10 * 1024 * 1024
    }

    private let limits: Limits
    private var bytes: [UInt8] = []
    private var start = 0
    /// Lines of the head that have arrived, without their ends, and how far it was looked for more of them; all
    /// counted from `start`, so that no byte is looked at twice.
    private var lines: [Range<Int>] = []
    private var scanned = 0
    private var lineStart = 0
    /// The body that is arriving in chunks.
    private var chunked: ChunkedBody?

    init(limits: Limits = Limits()) { self.limits = limits }

    /// Bytes that were received and not used yet: what belongs to the next protocol after an upgrade.
    var leftOver: ArraySlice<UInt8> { bytes[start...] }

    /// Whether a request has begun to arrive.
    var isEmpty: Bool { start == bytes.count }

    /// Bytes of the current body that are here.
    var bodyBytes: Int { chunked?.body.count ?? bytes.count - start }

    /// Adds received bytes.
    mutating func append(_ more: some Collection<UInt8>) {
        if start > 0 {
            bytes.removeFirst(start)
            start = 0
        }
        bytes += more
    }

    /// The next head, or nil until more bytes arrive.
    mutating func nextHead() throws(RequestError) -> RequestHead? {
        // RFC 9112 §2.2: a server SHOULD ignore at least one empty line before the request line.
        if lines.isEmpty, lineStart == 0 {
            while start < bytes.count, bytes[start] == 13 || bytes[start] == 10 { start += 1 }
        }
        while let newline = bytes[(start + scanned)...].firstIndex(of: 10) {
            let end = newline - start
            let content = end > lineStart && bytes[newline - 1] == 13 ? end - 1 : end
            let line = lineStart..<content
            (lineStart, scanned) = (end + 1, end + 1)
            guard lineStart <= limits.headBytes else { throw .headTooLarge }
            guard !line.isEmpty else { return try takeHead() }
            guard lines.count <= limits.fields else { throw .headTooLarge }
            lines.append(line)
            if lines.count == 1 { try Self.checkRequestLine(slice(line)) }
        }
        scanned = bytes.count - start
        guard scanned <= limits.headBytes else { throw .headTooLarge }
        // A stranger that speaks another protocol is refused at its first bytes, not after 64 KiB.
        if lines.isEmpty, let first = bytes[start...].first, !Self.isToken(first) {
            throw .malformed("request line")
        }
        return nil
    }

    private mutating func takeHead() throws(RequestError) -> RequestHead {
        let head = try Self.parse(lines.map(slice))
        start += lineStart
        (lines, scanned, lineStart) = ([], 0, 0)
        return head
    }

    private func slice(_ range: Range<Int>) -> ArraySlice<UInt8> {
        bytes[(start + range.lowerBound)..<(start + range.upperBound)]
    }

    /// The whole body framed as `framing` says, or nil until more bytes arrive. `limit`: bytes of it, if less than
    /// the limit of all bodies.
    mutating func nextBody(
        _ framing: RequestHead.BodyFraming, limit: Int = .max
    ) throws(RequestError) -> [UInt8]? {
        let limit = min(limit, limits.bodyBytes)
        switch framing {
        case .none: return []
        case .length(let count):
            guard count <= limit else { throw .bodyTooLarge }
            guard bytes.count - start >= count else { return nil }
            defer { start += count }
            return Array(bytes[start..<start + count])
        case .chunked:
            var body = chunked ?? ChunkedBody(limit: limit)
            chunked = nil  // so that the bytes are not copied
            start += try body.take(bytes[start...])
            if body.isComplete { return body.body }
            chunked = body
            return nil
        }
    }
}

// MARK: Lines

extension RequestParser {
    private static func checkRequestLine(_ line: ArraySlice<UInt8>) throws(RequestError) {
        guard line.split(separator: 32, omittingEmptySubsequences: false).count == 3 else {
            throw .malformed("request line")
        }
    }

    private static func parse(_ lines: [ArraySlice<UInt8>]) throws(RequestError) -> RequestHead {
        guard let first = lines.first else { throw .malformed("request line") }
        let parts = first.split(separator: 32, omittingEmptySubsequences: false)
        guard parts.count == 3, !parts[0].isEmpty, parts[0].count <= 32, parts[0].allSatisfy(isToken),
            !parts[1].isEmpty, parts[1].allSatisfy({ (0x21...0x7E).contains($0) })
        else { throw .malformed("request line") }
        let version = String(decoding: parts[2], as: UTF8.self)
        guard version == "HTTP/1.1" || version == "HTTP/1.0" else { throw .version }
        var fields: [RequestHead.Field] = []
        for line in lines.dropFirst() { fields.append(try field(line)) }
        var head = RequestHead(
            method: String(decoding: parts[0], as: UTF8.self),
            target: String(decoding: parts[1], as: UTF8.self),
            minorVersion: version == "HTTP/1.1" ? 1 : 0, fields: fields, framing: .none)
        head.framing = try framing(head)
        return head
    }

    private static func field(_ line: ArraySlice<UInt8>) throws(RequestError) -> RequestHead.Field {
        // RFC 9112 §5.1: no white space between name and colon; §5.2: no folding.
        guard let colon = line.firstIndex(of: UInt8(ascii: ":")), colon > line.startIndex,
            line[..<colon].allSatisfy(isToken)
        else { throw .malformed("header line") }
        let value = line[(colon + 1)...]
        guard value.allSatisfy({ $0 >= 0x20 && $0 != 0x7F || $0 == 9 }) else {
            throw .malformed("header value")
        }
        return RequestHead.Field(
            name: String(decoding: line[..<colon], as: UTF8.self),
            value: String(decoding: value, as: UTF8.self).trimmingSpaces())
    }

    /// RFC 9112 §6.3: both framings at once, or two different lengths, are refused.
    private static func framing(_ head: RequestHead) throws(RequestError) -> RequestHead.BodyFraming {
        let codings = head.tokens("transfer-encoding")
        let lengths = Set(head.tokens("content-length"))
        if !codings.isEmpty {
            guard lengths.isEmpty else { throw .malformed("both transfer-encoding and content-length") }
            guard codings == ["chunked"] else { throw .transferCoding }
            return .chunked
        }
        guard let length = lengths.first else { return .none }
        guard lengths.count == 1, !length.isEmpty, length.utf8.allSatisfy({ (48...57).contains($0) }),
            length.utf8.count <= 15, let count = Int(length)
        else { throw .malformed("content-length") }
        return count == 0 ? .none : .length(count)
    }

    /// RFC 9110 §5.6.2.
    private static func isToken(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
        }
    }
}

extension String {
    /// Without spaces and tabs at both ends.
    func trimmingSpaces() -> String {
        var text = self[...]
        while let first = text.first, first == " " || first == "\t" { text.removeFirst() }
        while let last = text.last, last == " " || last == "\t" { text.removeLast() }
        return String(text)
    }
}
