// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc
import LinuxIO
import Testing

/// The parts of `coder support bundle`: the archive, and what is left out of it.
@Suite struct SupportTests {
    private static let stamp = ZipWriter.Stamp(
        year: 2026, month: 2, day: 28, hour: 23, minute: 59, second: 59)

    @Test func anArchiveIsReadByOthers() throws {
        var zip = ZipWriter(stamp: Self.stamp)
        try zip.add("a/empty.txt", [])
        try zip.add("a/ü.json", Array("{}\n".utf8))
        try zip.add("large", (0..<200_000).map { UInt8(truncatingIfNeeded: $0 &* 7) })
        let file = try PrivateName.file("/tmp/coder-zip-test-")
        defer { unlink(file.path) }
        try zip.finish().withUnsafeBytes { try Descriptor.writeAll(file.descriptor.number, $0) }
        let script = """
            import sys, zipfile
            z = zipfile.ZipFile(sys.argv[1])
            assert z.testzip() is None
            for i in z.infolist(): print(ascii(i.filename), i.file_size, i.date_time, oct(i.external_attr >> 16))
            assert z.read('large') == bytes(i * 7 & 255 for i in range(200000))
            """
        let pipe = try Descriptor.pipe()
        let (reading, writing) = pipe.release()
        let words = ["/usr/bin/env", "python3", "-c", script, file.path]
        let child = try ChildProcess(
            path: Array(words[0].utf8), arguments: words.map { Array($0.utf8) },
            environment: [Array("PATH=/usr/bin:/bin".utf8)], directory: nil,
            streams: .descriptors(writing, writing, writing))
        close(writing)
        var text: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 4_096)
        while case let count = read(reading, &piece, piece.count), count > 0 { text += piece[..<count] }
        close(reading)
        while child.reap() == nil { poll(nil, 0, 5) }
        let row = "(2026, 2, 28, 23, 59, 58) 0o100600\n"
        #expect(
            String(decoding: text, as: UTF8.self)
                == "'a/empty.txt' 0 \(row)'a/\\xfc.json' 3 \(row)'large' 200000 \(row)")
    }

    @Test(arguments: ["", "/etc/passwd", "a/../../b", "twice"]) func namesAreSafe(_ name: String) throws {
        var zip = ZipWriter(stamp: Self.stamp)
        try zip.add("twice", [])
        #expect(throws: ZipWriter.Failure.badName(name)) { try zip.add(name, []) }
    }

    @Test(
        arguments: [
            (#"{"name":"dev","ttl_ms":5}"#, #"{"name":"dev","ttl_ms":5}"#),
            (#"{"auth_token":"abc","n":{"Password":7}}"#, #"{"auth_token":"***","n":{"Password":"***"}}"#),
            (
                #"{"client_secret":"","token":null,"is_token":true}"#,
                #"{"client_secret":"","token":null,"is_token":true}"#
            ),
            (
                #"{"environment_variables":{"A":"b","C":["d"]}}"#,
                #"{"environment_variables":{"A":"***","C":["***"]}}"#
            ),
            (#"["say session-12345678 aloud"]"#, #"["say *** aloud"]"#),
            (
                #"{"name":"x","value":"v","default":"d","annotations":{"secret":"true"}}"#,
                #"{"name":"x","value":"***","default":"***","annotations":{"secret":"***"}}"#
            ),
        ]) func secretsAreLeftOut(_ before: String, _ after: String) throws
    {
        let redaction = Redaction(known: ["session-12345678", ""])
        #expect(redaction.json(try JSON.parse(before.utf8)).compact == after)
    }

    @Test func parametersKeepTheirNames() throws {
        let parameters = try JSON.parse(#"[{"name":"region","value":"eu"},{"name":"key","value":""}]"#.utf8)
        #expect(
            Redaction(known: []).parameters(parameters).compact
                == #"[{"name":"region","value":"***"},{"name":"key","value":"***"}]"#)
        #expect(Redaction(known: ["12345678"]).text("a12345678b") == "a***b")
    }
}
