// SPDX-License-Identifier: Apache-2.0

/// UPnP Internet Gateway Device: finding a router by SSDP, and asking it for a port by SOAP over HTTP. Texts only;
/// UPnP Device Architecture 1.1 §1.3, IGD WANIPConnection 1 and 2.
package enum UPnP {
    /// Port of SSDP.
    package static let port: UInt16 = 1900
    /// 239.255.255.250
    package static let group = IPAddress(v4: 0xefff_fffa)

    /// The two searches, in the order in which they are sent.
    package static let searches: [[UInt8]] = [
        "ssdp:all", "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    ].map { target in
        Array(
            ("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: \(target)\r\n"
                + "MAN: \"ssdp:discover\"\r\nMX: 2\r\n\r\n").utf8)
    }

    /// What a gateway offers: where its description or its control is. The host is always the gateway itself.
    package struct Location: Hashable, Sendable {
        package var port: UInt16
        package var path: String

        package init(port: UInt16, path: String) {
            self.port = port
            self.path = path
        }

        /// Reads an `http` URL, or a path relative to `base`; the host is not used.
        package init?(_ text: Substring, relativeTo base: Location? = nil) {
            guard text.utf8.count <= 1_024, base?.path.isEmpty != true,
                text.utf8.allSatisfy({ 0x21...0x7e ~= $0 })
            else { return nil }
            if text.lowercased().hasPrefix("http://") {
                let rest = text.dropFirst(7)
                let authority = rest.prefix { $0 != "/" }
                let path = rest[authority.endIndex...]
                var port: UInt16 = 80
                if let colon = authority.lastIndex(of: ":"), !authority[colon...].contains("]") {
                    guard let number = UInt16(authority[authority.index(after: colon)...]) else { return nil }
                    port = number
                }
                self.init(port: port, path: path.isEmpty ? "/" : String(path))
            } else if let base, !text.contains("://"), !text.isEmpty {
                let slash = base.path.lastIndex(of: "/") ?? base.path.startIndex
                let folder = String(base.path[...slash])
                self.init(port: base.port, path: text.hasPrefix("/") ? String(text) : folder + String(text))
            } else {
                return nil
            }
        }
    }

    /// Location of the description in an answer to a search; nil for answers of other devices.
    package static func location(inSearchAnswer bytes: [UInt8]) -> Location? {
        guard bytes.count <= 4_096 else { return nil }
        let text = String(decoding: bytes, as: UTF8.self)
        let lines = text.split(omittingEmptySubsequences: true) { $0.isNewline }
        guard let first = lines.first, first.hasPrefix("HTTP/1."), first.contains(" 200") else { return nil }
        var location: Location?
        var isGateway = false
        for line in lines.dropFirst() {
            guard let colon = line.firstIndex(of: ":") else { continue }
            let name = line[..<colon].lowercased()
            let value = trim(line[line.index(after: colon)...])
            if name == "location" { location = Location(value) }
            if name == "st" || name == "usn",
                value.contains("InternetGatewayDevice") || value.contains(":WAN")
            {
                isGateway = true
            }
        }
        return isGateway ? location : nil
    }

    /// A service that can map ports.
    package struct Service: Hashable, Sendable {
        package var type: String
        package var control: Location

        /// Only the second version chooses a free port by itself.
        package var choosesPort: Bool { type.hasSuffix("WANIPConnection:2") }
    }

    private static let serviceTypes = ["WANIPConnection:2", "WANIPConnection:1", "WANPPPConnection:1"]

    /// The best mapping service of a device description.
    package static func service(inDescription text: String, at base: Location) -> Service? {
        var found: [(rank: Int, service: Service)] = []
        var rest = text[...]
        while found.count < 16, let block = element("service", in: &rest) {
            guard let type = element("serviceType", of: block), let path = element("controlURL", of: block),
                let rank = serviceTypes.firstIndex(where: { type.hasSuffix(":\($0)") }),
                type.utf8.count <= 128, !type.contains(where: { "\"<>\r\n".contains($0) }),
                let control = Location(path, relativeTo: base)
            else { continue }
            found.append((rank, Service(type: String(type), control: control)))
        }
        return found.min { $0.rank < $1.rank }?.service
    }

    // MARK: HTTP

    /// `GET` of a description.
    package static func descriptionRequest(_ location: Location, gateway: IPAddress) -> [UInt8] {
        Array(
            ("GET \(location.path) HTTP/1.1\r\nHost: \(gateway):\(location.port)\r\n"
                + "Connection: close\r\n\r\n").utf8)
    }

    /// A SOAP call.
    package static func call(
        _ action: String, _ arguments: KeyValuePairs<String, String>, of service: Service, gateway: IPAddress
    ) -> [UInt8] {
        let fields = arguments.map { "<\($0.key)>\($0.value)</\($0.key)>" }.joined()
        let body = """
            <?xml version="1.0"?>\r
            <s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" \
            s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>\
            <u:\(action) xmlns:u="\(service.type)">\(fields)</u:\(action)></s:Body></s:Envelope>\r

            """
        return Array(
            ("POST \(service.control.path) HTTP/1.1\r\nHost: \(gateway):\(service.control.port)\r\n"
                + "Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"\(service.type)#\(action)\"\r\n"
                + "Content-Length: \(body.utf8.count)\r\nConnection: close\r\n\r\n" + body).utf8)
    }

    /// Status and body of a whole answer; chunks are joined.
    package static func answer(_ bytes: [UInt8]) -> (status: Int, body: String)? {
        let mark = Array("\r\n\r\n".utf8)
        guard bytes.count <= responseLimit,
            let end = bytes.indices.first(where: { bytes[$0...].starts(with: mark) })
        else { return nil }
        let head = String(decoding: bytes[..<end], as: UTF8.self)
        let words = head.prefix { $0 != "\r\n" }.split(separator: " ")
        guard words.count >= 2, words[0].hasPrefix("HTTP/1."), let status = Int(words[1]) else { return nil }
        var body = bytes[(end + mark.count)...]
        if head.lowercased().contains("transfer-encoding: chunked") { body = joinChunks(body) }
        return (status, String(decoding: body, as: UTF8.self))
    }

    /// Whether an answer that says its length is there as a whole: some routers leave the connection open.
    package static func isComplete(_ bytes: [UInt8]) -> Bool {
        let mark = Array("\r\n\r\n".utf8)
        guard let end = bytes.indices.first(where: { bytes[$0...].starts(with: mark) }) else { return false }
        let lines = String(decoding: bytes[..<end], as: UTF8.self).lowercased().split { $0.isNewline }
        guard let line = lines.first(where: { $0.hasPrefix("content-length:") }),
            let length = Int(trim(line.dropFirst(15)))
        else { return false }
        return bytes.count - end - mark.count >= length
    }

    /// Longest HTTP answer that is read, bytes.
    package static let responseLimit = 64 << 10

    private static func joinChunks(_ bytes: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
        var result: [UInt8] = []
        var rest = bytes
        while let end = rest.firstIndex(of: 10) {
            let digits = String(decoding: rest[rest.startIndex..<end], as: UTF8.self)
                .prefix { $0.isHexDigit }
            guard let count = Int(digits, radix: 16), count > 0, count <= rest.endIndex - end - 1 else {
                break
            }
            result += rest[(end + 1)..<(end + 1 + count)]
            rest = rest[min(end + 1 + count + 2, rest.endIndex)...]
        }
        return result[...]
    }

    // MARK: XML, as far as it is needed

    /// Text of the first element of this name, whatever its namespace prefix.
    package static func element(_ name: String, of text: Substring) -> Substring? {
        var rest = text
        return element(name, in: &rest).map(trim)
    }

    /// The content of the next element of this name; `text` goes on behind it.
    private static func element(_ name: String, in text: inout Substring) -> Substring? {
        while let open = text.firstIndex(of: "<") {
            let tag = text[text.index(after: open)...].prefix { $0 != ">" }
            guard tag.endIndex < text.endIndex else { return nil }
            let contentStart = text.index(after: tag.endIndex)
            text = text[contentStart...]
            let full = tag.prefix { !$0.isWhitespace && $0 != "/" }
            let local = full.split(separator: ":").last ?? full
            guard local == name, !tag.hasSuffix("/") else { continue }
            guard let close = text.firstRange(of: "</\(full)>") else { return nil }
            let content = text[..<close.lowerBound]
            text = text[close.upperBound...]
            return content
        }
        return nil
    }

    private static func trim(_ text: Substring) -> Substring {
        let start = text.firstIndex { !$0.isWhitespace } ?? text.endIndex
        let end = text.lastIndex { !$0.isWhitespace }.map { text.index(after: $0) } ?? start
        return text[start..<max(start, end)]
    }
}
