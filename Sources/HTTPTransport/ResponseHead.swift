// SPDX-License-Identifier: Apache-2.0

/// Status line and header fields of a response, parsed where NIO's parser would read too far: before a raw upgrade
/// takes the socket away, and for a proxy's CONNECT.
struct ResponseHead {
    var status: Int
    var reason: String
    var headers: HeaderFields

    /// Heads are small; a peer that sends more than 64 KiB without an empty line is not an HTTP server.
    static let lengthLimit = 65_536

    /// The head and its length in bytes, nil while the empty line is still missing.
    static func parse(_ bytes: some Collection<UInt8>) throws(HTTPError) -> (ResponseHead, length: Int)? {
        let wrong = { (detail: String) in HTTPError(.protocolViolation, origin: "the server", detail: detail)
        }
        guard let length = endOfHead(bytes) else {
            if bytes.count > lengthLimit { throw wrong("a response head of more than 64 KiB") }
            // Say early that this is something else than HTTP: it may never send a line break.
            if !bytes.starts(with: "HTTP/1.".utf8.prefix(bytes.count)) { throw wrong("no HTTP response") }
            return nil
        }
        let text = String(decoding: bytes.prefix(length), as: UTF8.self)
        var lines = text.split(omittingEmptySubsequences: true) { $0 == "\r\n" || $0 == "\n" }[...]
        guard let statusLine = lines.popFirst(), statusLine.hasPrefix("HTTP/1.") else {
            throw wrong("no HTTP response")
        }
        let words = statusLine.split(separator: " ", maxSplits: 2)
        guard words.count >= 2, words[1].utf8.count == 3, let status = Int(words[1]), status >= 100 else {
            throw wrong("a bad status line")
        }
        var headers = HeaderFields()
        for line in lines {
            guard let colon = line.firstIndex(of: ":") else { throw wrong("a bad header line") }
            headers.add(
                String(line[..<colon].trimmingSpaces),
                String(line[line.index(after: colon)...].trimmingSpaces))
        }
        return (
            ResponseHead(status: status, reason: words.count > 2 ? String(words[2]) : "", headers: headers),
            length
        )
    }

    private static func endOfHead(_ bytes: some Collection<UInt8>) -> Int? {
        var lineLength = 0
        var offset = 0
        for byte in bytes.prefix(lengthLimit) {
            offset += 1
            if byte == 10 {
                if lineLength == 0 { return offset }
                lineLength = 0
            } else if byte != 13 {
                lineLength += 1
            }
        }
        return nil
    }
}
