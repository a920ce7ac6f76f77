// SPDX-License-Identifier: Apache-2.0

import RPC
import Testing

@Suite struct DRPCTests {
    @Test(arguments: [
        (UInt64(0), "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (1 << 63, "80808080808080808001"),
    ])
    func `numbers are written in seven-bit groups`(number: UInt64, expected: String) throws {
        var output: [UInt8] = []
        DRPCPacket.appendNumber(number, to: &output)
        #expect(hex(output) == expected)
        guard number > 0 else { return }
        let reader = ReaderEnd()
        reader.append([0x05] + output + output + [0])
        let packet = try #require(try reader.nextPacket())
        #expect(packet.stream == number && packet.message == number)
    }

    @Test func `an over-long number is an error`() {
        let reader = ReaderEnd()
        reader.append([0x05] + [UInt8](repeating: 0x80, count: 10))
        #expect(throws: DRPCError.overlongNumber) { _ = try reader.nextPacket() }
    }

    @Test func `a unary call, an error, a cancel and metadata give the documented bytes`() {
        let client = DRPCEnd(role: .client)
        client.invoke("/coder.agent.v2.Agent/GetManifest")
        client.sendMessage([])
        client.closeSend()
        #expect(
            hex(client.takeOutput())
                == "030101212f636f6465722e6167656e742e76322e4167656e742f4765744d616e6966657374"
                + "05010200" + "0d010300")
        let other = DRPCEnd(role: .client)
        other.invoke("x")
        other.sendMessage([])
        _ = other.takeOutput()
        other.cancel()
        #expect(hex(other.takeOutput()) == "89010300")
        let third = DRPCEnd(role: .client)
        third.invoke("x", metadata: [("a", "bc")])
        #expect(hex(third.takeOutput()).hasPrefix("0f0101090a070a016112026263"))
        third.close()
        #expect(hex(third.takeOutput()) == "0b010300")
    }

    @Test func `the documented error is read, with and without a code`() throws {
        let client = DRPCEnd(role: .client)
        client.invoke("x")
        client.receive(bytes("0701010a000000000000000c6e6f"))
        #expect(try client.nextEvent() == .ended(.failed(code: 12, text: "no")))
        #expect(!client.isCallLive)
        let other = DRPCEnd(role: .client)
        other.invoke("x")
        other.receive(bytes("070101026e6f"))
        #expect(try other.nextEvent() == .ended(.failed(code: 0, text: "no")))
    }

    @Test func `a server writes the documented error`() throws {
        let server = DRPCEnd(role: .server)
        server.receive(bytes("0301010178"))
        #expect(try server.nextEvent() == .invoked(name: "x", metadata: [:]))
        server.sendError(code: 12, text: "no")
        #expect(hex(server.takeOutput()) == "0701010a000000000000000c6e6f")
        server.closeSend()
        server.sendMessage([1])
        #expect(server.takeOutput().isEmpty, "a finished call says nothing more")
    }

    @Test func `a packet may come in frames of one byte, and bytes one at a time`() throws {
        let data = Array("some message".utf8)
        var output: [UInt8] = []
        DRPCPacket(stream: 1, message: 1, kind: 2, data: data).write(into: &output, splitSize: 1)
        let reader = ReaderEnd()
        var packets: [DRPCPacket] = []
        for byte in output {
            reader.append([byte])
            while let packet = try reader.nextPacket() { packets.append(packet) }
        }
        #expect(packets.map(\.data) == [data])
        #expect(reader.bufferedCount == 0)
    }

    @Test func `ids may not go down, kinds may not change`() throws {
        let cases: [(String, DRPCError)] = [
            ("0502010005010100", .idWentDown),  // stream 2, then 1
            ("0501020005010100", .idWentDown),  // message 2, then 1
            ("0501010005010100", .idWentDown),  // used up by done
            ("05000100", .idWentDown), ("05010000", .idWentDown),
            ("0401010161" + "0701010162", .kindChanged),
        ]
        for (text, error) in cases {
            let reader = ReaderEnd()
            reader.append(bytes(text))
            #expect(throws: error, "\(text)") {
                while try reader.nextPacket() != nil {}
            }
        }
    }

    @Test func `a higher id discards an unfinished packet`() throws {
        let reader = ReaderEnd()
        reader.append(bytes("0401010161" + "0501020162"))
        #expect(try reader.nextPacket()?.data == Array("b".utf8))
        #expect(try reader.nextPacket() == nil)
    }

    @Test func `4 MiB pass, one byte more does not`() throws {
        for (size, passes) in [(4 << 20, true), ((4 << 20) + 1, false)] {
            var output: [UInt8] = []
            DRPCPacket(stream: 1, message: 1, kind: 2, data: [UInt8](repeating: 1, count: size))
                .write(into: &output)
            let reader = ReaderEnd()
            reader.append(output)
            if passes {
                #expect(try reader.nextPacket()?.data.count == size)
            } else {
                #expect(throws: DRPCError.packetTooLarge(limit: 4 << 20)) { _ = try reader.nextPacket() }
            }
        }
    }

    @Test func `an unknown kind is ignored only with the control bit`() throws {
        let client = DRPCEnd(role: .client)
        client.invoke("x")
        client.receive(bytes("95010100" + "05010200"))
        #expect(try client.nextEvent() == .message([]))
        client.receive(bytes("15010300"))
        #expect(throws: DRPCError.unknownKind(10)) { _ = try client.nextEvent() }
    }

    @Test func `calls follow each other on one transport`() throws {
        let server = DRPCEnd(role: .server)
        server.receive(bytes("0301010161" + "05010200" + "0d010300"))
        #expect(try server.nextEvent() == .invoked(name: "a", metadata: [:]))
        #expect(try server.nextEvent() == .message([]))
        #expect(try server.nextEvent() == .sendClosed)
        server.sendMessage([9])
        server.closeSend()
        #expect(!server.isCallLive)
        server.receive(bytes("0f0201090a070a016112026263" + "0302020162" + "0b020300"))
        #expect(try server.nextEvent() == .invoked(name: "b", metadata: ["a": "bc"]))
        #expect(try server.nextEvent() == .ended(.closed))
        server.receive(bytes("05020400"))
        #expect(try server.nextEvent() == nil, "late packets of a finished call are ignored")
    }

    @Test func `a second invoke on a live call is fatal, malformed metadata too`() {
        let server = DRPCEnd(role: .server)
        server.receive(bytes("0301010161" + "0301020161"))
        #expect(throws: DRPCError.unexpectedInvoke) { while try server.nextEvent() != nil {} }
        for metadata in ["0a05120162", "0a070a016112026263ff", "0a0912026263" + "0a0161", "0aff"] {
            #expect(throws: DRPCError.malformedMetadata) { _ = try DRPCMetadata.decode(bytes(metadata)) }
        }
        #expect(DRPCMetadata.encode([("a", "bc")]) == bytes("0a070a016112026263"))
    }

    @Test func `both sides closing ends a call`() throws {
        let client = DRPCEnd(role: .client)
        client.invoke("x")
        client.closeSend()
        client.receive(bytes("05010100" + "0d010200"))
        #expect(try client.nextEvent() == .message([]))
        #expect(try client.nextEvent() == .ended(.closed))
    }

    @Test func `random input never crashes`() {
        var generator = Numbers(state: 7)
        for _ in 0..<2_000 {
            let server = DRPCEnd(role: .server)
            server.receive(bytes("0301010161"))
            server.receive((0..<(generator.next() % 60)).map { _ in UInt8(generator.next() % 256) })
            while let event = try? server.nextEvent() { _ = event }
            #expect(server.bufferedCount < 100)
        }
    }
}

@Suite struct VersionTests {
    @Test(arguments: [
        ("", "invalid version string: "), ("2", "invalid version string: 2"),
        ("2.x", "invalid minor version: 2.x"),
        ("x.2", "invalid major version: x.2"), ("1.0", "version 1.0 is no longer supported"),
        ("2.8", "server is at version 2.7, behind requested minor version 2.8"),
        ("3.0", "server is at version 2.7, behind requested major version 3.0"),
    ])
    func `unsupported versions are refused with upstream's words`(text: String, detail: String) {
        #expect(throws: APIVersion.Refused(detail)) { try APIVersion.validate(text) }
    }

    @Test func `supported versions pass`() throws {
        #expect(try APIVersion.validate("2.0") == APIVersion(major: 2, minor: 0))
        #expect(try APIVersion.validate("2.7") == .current)
    }

    @Test func `ids have the usual text, bytes and node id`() throws {
        let text = "b1e2c3d4-0506-4708-890a-0b0c0d0e0f10"
        let id = try #require(RawUUID(text))
        #expect(id.description == text)
        #expect(RawUUID(id.bytes(as: [UInt8].self)) == id)
        #expect(id.nodeID == 8_572_026_794_359_779_568)
        #expect(RawUUID("b1e2c3d4-0506-4708-890a0-b0c0d0e0f10") == nil)
        #expect(RawUUID([1, 2, 3]) == nil)
    }
}

/// A transport behind a reference, so that expectations can call what changes it.
final class DRPCEnd {
    private var transport: DRPCTransport
    init(role: DRPCTransport.Role) { transport = DRPCTransport(role: role) }
    var isCallLive: Bool { transport.isCallLive }
    var bufferedCount: Int { transport.bufferedCount }
    func invoke(_ name: String, metadata: [(key: String, value: String)] = []) {
        transport.invoke(name, metadata: metadata)
    }
    func sendMessage(_ data: [UInt8]) { transport.sendMessage(data) }
    func closeSend() { transport.closeSend() }
    func close() { transport.close() }
    func cancel() { transport.cancel() }
    func sendError(code: UInt64, text: String) { transport.sendError(code: code, text: text) }
    func takeOutput() -> [UInt8] { transport.takeOutput() }
    func receive(_ bytes: [UInt8]) { transport.receive(bytes) }
    func nextEvent() throws(DRPCError) -> DRPCTransport.Event? { try transport.nextEvent() }
}

/// The same for a packet reader.
final class ReaderEnd {
    private var reader = DRPCPacketReader()
    var bufferedCount: Int { reader.bufferedCount }
    func append(_ bytes: [UInt8]) { reader.append(bytes) }
    func nextPacket() throws(DRPCError) -> DRPCPacket? { try reader.nextPacket() }
}
