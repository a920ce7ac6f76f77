// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import Glibc

/// One request and its answer on a blocking socket, whose time limits were set before.
struct HTTPExchange {
    /// 16 KiB: longest request head.
    private static let headLimit = 16_384
    /// Bytes that are moved at once.
    private static let pieceBytes = 64 * 1024

    struct Message: Encodable {
        var message: String
    }

    private let number: Int32
    let method: String
    /// Without the query.
    let path: String
    let query: [String: String]
    /// Bytes of the body; nil: the request does not say.
    let bodyBytes: Int?
    /// What came with the head.
    private let early: [UInt8]

    /// Reads a head. nil: the peer is gone, or was answered that it is malformed.
    init?(_ number: Int32) {
        guard let (head, rest) = Self.readHead(number) else { return nil }
        let lines = String(decoding: head, as: UTF8.self).split(whereSeparator: \.isNewline)
        let words = lines.first?.split(separator: " ").map(String.init) ?? []
        guard words.count == 3, words[2].hasPrefix("HTTP/1.") else {
            Self.answer(number, "400 Bad Request", Message(message: "Malformed request."))
            return nil
        }
        self.number = number
        method = words[0]
        let parts = words[1].split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        path = String(parts[0])
        query = parts.count > 1 ? Self.query(parts[1]) : [:]
        let length = lines.dropFirst().first { $0.lowercased().hasPrefix("content-length:") }
        bodyBytes = length.flatMap { Int($0.dropFirst(15).filter { !$0.isWhitespace }) }.flatMap {
            $0 < 0 ? nil : $0
        }
        early = rest
    }

    private static func readHead(_ number: Int32) -> (head: [UInt8], rest: [UInt8])? {
        var head: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 2_048)
        let end: [UInt8] = [13, 10, 13, 10]
        while head.count < headLimit {
            let count = Glibc.read(number, &piece, piece.count)
            guard count > 0 else { return nil }
            let from = max(0, head.count - 3)
            head += piece[..<count]
            if let found = head[from...].firstRange(of: end) {
                return (Array(head[..<found.upperBound]), Array(head[found.upperBound...]))
            }
        }
        return nil
    }

    private static func query(_ text: Substring) -> [String: String] {
        var result: [String: String] = [:]
        for pair in text.split(separator: "&") {
            let parts = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            result[decoded(parts[0])] = parts.count > 1 ? decoded(parts[1]) : ""
        }
        return result
    }

    private static func decoded(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = String(decoding: rest.prefix(2), as: UTF8.self)
            if byte == UInt8(ascii: "%"), digits.utf8.count == 2, let value = UInt8(digits, radix: 16) {
                bytes.append(value)
                rest = rest.dropFirst(2)
            } else {
                bytes.append(byte == UInt8(ascii: "+") ? 32 : byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// Hands the body over in pieces; false: it did not come whole, or `take` had enough.
    func readBody(_ take: (UnsafeRawBufferPointer) -> Bool) -> Bool {
        guard let bodyBytes else { return false }
        let first = early.prefix(bodyBytes)
        var left = bodyBytes - first.count
        guard first.isEmpty || first.withUnsafeBytes(take) else { return false }
        var piece = [UInt8](repeating: 0, count: Self.pieceBytes)
        while left > 0 {
            let count = Glibc.read(number, &piece, min(piece.count, left))
            guard count > 0, piece[..<count].withUnsafeBytes(take) else { return false }
            left -= count
        }
        return true
    }

    /// The body as JSON; nil: it is not, or is longer than `limit`.
    func json<Value: Decodable>(_ type: Value.Type, limit: Int) -> Value? {
        var bytes: [UInt8] = []
        let isWhole = readBody { piece in
            bytes += piece
            return bytes.count <= limit
        }
        guard isWhole else { return nil }
        return try? JSONDecoder().decode(type, from: Data(bytes))
    }

    func answer(_ status: String, _ value: some Encodable) { Self.answer(number, status, value) }

    private static func answer(_ number: Int32, _ status: String, _ value: some Encodable) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let body = try? encoder.encode(value) else { return }
        guard sendHead(number, status, "application/json; charset=utf-8", body.count) else { return }
        _ = Array(body).withUnsafeBytes { send(number, $0) }
        shutdown(number, Int32(SHUT_WR))
    }

    /// Answers with `count` bytes of an open file.
    func answer(file: Int32, from offset: Int, count: Int, type: String) {
        guard Self.sendHead(number, "200 OK", type, count) else { return }
        var piece = [UInt8](repeating: 0, count: Self.pieceBytes)
        var done = 0
        while done < count {
            let got = pread(file, &piece, min(piece.count, count - done), off_t(offset + done))
            guard got > 0, piece[..<got].withUnsafeBytes({ Self.send(number, $0) }) else { return }
            done += got
        }
        shutdown(number, Int32(SHUT_WR))
    }

    private static func sendHead(_ number: Int32, _ status: String, _ type: String, _ count: Int) -> Bool {
        let head =
            "HTTP/1.1 \(status)\r\nContent-Type: \(type)\r\nContent-Length: \(count)\r\n"
            + "Connection: close\r\n\r\n"
        return Array(head.utf8).withUnsafeBytes { send(number, $0) }
    }

    private static func send(_ number: Int32, _ bytes: UnsafeRawBufferPointer) -> Bool {
        var sent = 0
        while sent < bytes.count {
            let count = Glibc.send(
                number, bytes.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
            guard count > 0 else { return false }
            sent += count
        }
        return true
    }
}
