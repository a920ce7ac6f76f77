// SPDX-License-Identifier: Apache-2.0

import CLI
import Foundation
import LinuxIO
import Testing

/// `coder speedtest --pcap-file`.
@Suite(.timeLimit(.minutes(1))) struct PacketCaptureTests {
    /// What a file says, read the slow way.
    private struct Capture {
        var packets: [[UInt8]] = []
        var times: [Double] = []

        init(_ file: [UInt8]) throws {
            func number(_ at: Int) -> Int { (0..<4).reduce(0) { $0 | Int(file[at + $1]) << (8 * $1) } }
            try #require(file.count >= 24)
            #expect(Array(file[..<4]) == [0xd4, 0xc3, 0xb2, 0xa1] && Array(file[4..<8]) == [2, 0, 4, 0])
            #expect(number(16) == 65_535 && number(20) == 101)
            var at = 24
            while at < file.count {
                try #require(at + 16 <= file.count)
                let length = number(at + 8)
                try #require(number(at + 12) == length && at + 16 + length <= file.count)
                times.append(Double(number(at)) + Double(number(at + 4)) / 1e6)
                packets.append(Array(file[at + 16..<at + 16 + length]))
                at += 16 + length
            }
        }
    }

    /// UDP from port 1 to port 9, with so many bytes and, behind its end, padding.
    private func packet(_ number: UInt8, bytes: Int, v4: Bool, padding: Int = 0) -> [UInt8] {
        let length = 8 + bytes
        let udp =
            [0, 1, 0, 9, UInt8(length >> 8), UInt8(length & 255), 0, 0]
            + [UInt8](repeating: number, count: bytes)
        let total = 20 + length
        let header: [UInt8] =
            v4
            ? [
                0x45, 0, UInt8(total >> 8), UInt8(total & 255), 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127,
                0,
            ]
                + [0, 1]
            : [0x60, 0, 0, 0, UInt8(length >> 8), UInt8(length & 255), 17, 64]
                + [UInt8](repeating: 0, count: 15) + [1] + [UInt8](repeating: 0, count: 15) + [1]
        return header + udp + [UInt8](repeating: 0xee, count: padding)
    }

    private func file() -> String {
        FileManager.default.temporaryDirectory.appending(path: "coder-\(UUID().uuidString).pcap").path
    }

    @Test func theFileHoldsEveryPacketInOrder() throws {
        let path = file()
        defer { unlink(path) }
        let capture = try PacketCapture(path: path)
        var wanted: [[UInt8]] = []
        for number in UInt8(0)..<200 {
            let size = Int(number) * 7
            wanted.append(packet(number, bytes: size, v4: number % 2 == 0))
            capture.take(packet(number, bytes: size, v4: number % 2 == 0, padding: 5).span.bytes)
        }
        let summary = capture.finish(within: 20)
        #expect(summary.written == 200 && summary.lost == 0 && summary.failure == nil)
        let found = try Capture(Array(Data(contentsOf: URL(filePath: path))))
        #expect(found.packets == wanted)
        let now = Date.now.timeIntervalSince1970
        #expect(found.times.allSatisfy { $0 <= now + 1 && $0 > now - 60 })
        #expect(found.times == found.times.sorted())
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
        #expect(mode == 0o600)
        guard FileManager.default.isExecutableFile(atPath: "/usr/bin/tcpdump") else { return }
        let tcpdump = Process()
        let output = Pipe()
        tcpdump.executableURL = URL(filePath: "/usr/bin/tcpdump")
        tcpdump.arguments = ["-n", "-r", path]
        tcpdump.standardOutput = output
        try tcpdump.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        tcpdump.waitUntilExit()
        #expect(tcpdump.terminationStatus == 0)
        let lines = text.split(separator: "\n")
        #expect(lines.count(where: { $0.contains("IP 127.0.0.1.1 > 127.0.0.1.9: UDP") }) == 100, "\(text)")
        #expect(lines.count(where: { $0.contains("IP6 ::1.1 > ::1.9: UDP") }) == 100, "\(text)")
    }

    @Test func aFullDiskCostsPacketsAndNothingElse() throws {
        let capture = try PacketCapture(path: "/dev/full")
        for _ in 0..<1_000 { capture.take(packet(1, bytes: 1_000, v4: true).span.bytes) }
        let summary = capture.finish(within: 20)
        #expect(summary.written == 0 && summary.lost == 1_000)
        #expect(summary.failure?.code == ENOSPC)
    }

    @Test func aSlowFileCostsPacketsAndNothingElse() throws {
        // Nobody reads: the thread that writes waits as long as the process lives.
        let (_, writing) = try Descriptor.pipe().release()
        let capture = try PacketCapture(writing: OwnedDescriptor(taking: writing), limit: 100_000)
        for _ in 0..<1_000 { capture.take(packet(1, bytes: 1_000, v4: true).span.bytes) }
        let summary = capture.finish(within: 0)
        // The pipe itself holds 64 KiB.
        #expect(summary.written + summary.lost == 1_000 && summary.written < 70 && summary.failure == nil)
    }

    @Test func aFileThatCannotBeMadeIsNamed() {
        #expect(throws: SystemError.self) { try PacketCapture(path: "/nonexistent/folder/file.pcap") }
    }
}
