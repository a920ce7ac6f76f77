// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

struct PortMappingVectors: Decodable {
    struct Wire: Decodable { var wire: String }
    var `self`: String
    var local_port: UInt16
    var pmp_external_address_request: String
    var pmp_map_request_7200s: String
    var pmp_delete_request: String
    var pmp_external_address_response: Wire
    var pmp_map_response: Wire
    var pcp_announce_request: String
    var pcp_announce_response_ok: String
    var pcp_announce_response_not_authorized: String
    var pcp_map_request: Wire
    var pcp_map_response: Wire
    var ssdp_all: String
    var ssdp_igd: String
}

/// The testing macros cannot capture spans.
enum PortMappingWire {
    static func pmp(_ bytes: [UInt8]) throws(PortMappingError) -> NATPMP.Answer {
        try NATPMP.parse(bytes.span.bytes)
    }
    static func pcp(_ bytes: [UInt8], _ nonce: TransactionID) throws(PortMappingError) -> PCP.Answer {
        try PCP.parse(bytes.span.bytes, nonce: nonce)
    }
}

// path-selection.md §10, P15
@Suite struct PortMappingCodecTests {
    private let vectors: PortMappingVectors
    private let own: IPAddress
    private let nonce = TransactionID(high: 0xa0a1_a2a3_a4a5_a6a7, low: 0xa8a9_aaab)

    init() throws {
        vectors = try PathVectors.load("portmap")
        own = try #require(IPAddress(vectors.`self`))
    }

    @Test func natPMP() throws {
        #expect(Hex.text(NATPMP.externalAddressRequest) == vectors.pmp_external_address_request)
        let port = vectors.local_port
        #expect(
            Hex.text(NATPMP.mapRequest(internalPort: port, externalPort: 0, lifetimeSeconds: 7_200))
                == vectors.pmp_map_request_7200s)
        #expect(
            Hex.text(NATPMP.mapRequest(internalPort: port, externalPort: 0, lifetimeSeconds: 0))
                == vectors.pmp_delete_request)
        #expect(
            try PortMappingWire.pmp(PathVectors.bytes(vectors.pmp_external_address_response.wire))
                == .externalAddress(IPAddress(v4: 0xcb00_7109), epoch: 777))
        #expect(
            try PortMappingWire.pmp(PathVectors.bytes(vectors.pmp_map_response.wire))
                == .mapped(internalPort: 41_641, externalPort: 41_700, lifetimeSeconds: 3_600, epoch: 777))
    }

    @Test func pcp() throws {
        #expect(Hex.text(PCP.announceRequest(own: own)) == vectors.pcp_announce_request)
        let request = PCP.mapRequest(
            own: own, nonce: nonce, internalPort: vectors.local_port, suggested: nil, lifetimeSeconds: 7_200)
        #expect(Hex.text(request) == vectors.pcp_map_request.wire)
        #expect(
            try PortMappingWire.pcp(PathVectors.bytes(vectors.pcp_announce_response_ok), nonce)
                == .announced(epoch: 12_345))
        #expect(
            try PortMappingWire.pcp(PathVectors.bytes(vectors.pcp_announce_response_not_authorized), nonce)
                == .refused(operation: 0, result: 2, lifetimeSeconds: 0, epoch: 12_345))
        let answer = try PathVectors.bytes(vectors.pcp_map_response.wire)
        #expect(
            try PortMappingWire.pcp(answer, nonce)
                == .mapped(
                    external: #require(SocketAddress("203.0.113.9:41700")), internalPort: 41_641,
                    lifetimeSeconds: 3_600, epoch: 12_345))
        #expect(throws: PortMappingError.notOurs) {
            try PortMappingWire.pcp(answer, TransactionID(high: 1, low: 2))
        }
    }

    @Test func everyTruncationIsRefused() throws {
        let pcp = try PathVectors.bytes(vectors.pcp_map_response.wire)
        for length in 0..<pcp.count {
            #expect(throws: PortMappingError.self) { try PortMappingWire.pcp(Array(pcp[..<length]), nonce) }
        }
        let pmp = try PathVectors.bytes(vectors.pmp_map_response.wire)
        for length in 0..<pmp.count {
            #expect(throws: PortMappingError.self) { try PortMappingWire.pmp(Array(pmp[..<length])) }
        }
    }

    @Test func searchesAndLocations() throws {
        #expect(
            UPnP.searches.map { String(decoding: $0, as: UTF8.self) } == [vectors.ssdp_all, vectors.ssdp_igd])
        let answer = """
            HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
            ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
            LOCATION: http://10.0.0.1:5000/rootDesc.xml\r\n\r\n
            """
        #expect(
            UPnP.location(inSearchAnswer: Array(answer.utf8))
                == UPnP.Location(port: 5_000, path: "/rootDesc.xml"))
        // Printers answer `ssdp:all`, too.
        let printer = answer.replacing("InternetGatewayDevice", with: "Printer")
        #expect(UPnP.location(inSearchAnswer: Array(printer.utf8)) == nil)
        #expect(UPnP.location(inSearchAnswer: Array("NOTIFY * HTTP/1.1\r\n\r\n".utf8)) == nil)
        for bad in ["http://h:99999/x", "https://h/x", "ftp://h", "", "http://h/a b", "http://h/\u{7f}"] {
            #expect(UPnP.Location(bad[...]) == nil, "\(bad)")
        }
        #expect(UPnP.Location("http://[fe80::1]/x") == UPnP.Location(port: 80, path: "/x"))
        let base = UPnP.Location(port: 5_000, path: "/a/root.xml")
        #expect(UPnP.Location("ctl", relativeTo: base) == UPnP.Location(port: 5_000, path: "/a/ctl"))
        #expect(UPnP.Location("/ctl", relativeTo: base) == UPnP.Location(port: 5_000, path: "/ctl"))
    }

    @Test func answersOfHTTP() {
        let plain = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        #expect(UPnP.answer(Array(plain.utf8))?.body == "hello")
        let chunked =
            "HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
        let answer = UPnP.answer(Array(chunked.utf8))
        #expect(answer?.status == 500 && answer?.body == "hello")
        #expect(UPnP.answer(Array("HTTP/1.1 200 OK\r\n".utf8)) == nil)
        #expect(UPnP.answer(Array("junk\r\n\r\n".utf8)) == nil)
        // A chunk that promises more than there is.
        let cut = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffff\r\nhel"
        #expect(UPnP.answer(Array(cut.utf8))?.body == "")
    }

    @Test func garbageCannotHarm() {
        var random = SeededGenerator(seed: 11)
        for _ in 0..<2_000 {
            let bytes = (0..<Int(random.next() % 300)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            _ = try? PortMappingWire.pmp(bytes)
            _ = try? PortMappingWire.pcp(bytes, nonce)
            _ = UPnP.location(inSearchAnswer: bytes)
            _ = UPnP.answer(bytes)
            let text = String(
                decoding: bytes.map { "</service>:controlURL type".utf8.randomByte($0) }, as: UTF8.self)
            _ = UPnP.service(inDescription: text, at: UPnP.Location(port: 1, path: "/"))
            #expect(UPnP.element("nowhere", of: text[...]) == nil)
        }
    }
}

extension String.UTF8View {
    fileprivate func randomByte(_ number: UInt8) -> UInt8 {
        self[index(startIndex, offsetBy: Int(number) % count)]
    }
}
