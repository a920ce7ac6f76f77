// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import SSH
import Testing

/// Random courses of sftp requests over files of this machine, through a session: `SIM_SEEDS=1000` runs that many.
@Suite(.serialized) struct SFTPLocalFuzzTests {
    static let seeds: [UInt64] = {
        func number(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }
        if let one = number("SIM_SEED") { return [one] }
        return Array(1...max(1, (number("SIM_SEEDS") ?? 12) / 4))
    }()

    /// xorshift64*.
    private struct Generator: RandomNumberGenerator {
        var state: UInt64
        init(_ seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
        mutating func next() -> UInt64 {
            state ^= state >> 12
            state ^= state << 25
            state ^= state >> 27
            return state &* 0x2545_f491_4f6c_dd1d
        }
    }

    private static func number(_ value: UInt32) -> [UInt8] {
        [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> $0) }
    }
    private static func long(_ value: UInt64) -> [UInt8] {
        number(UInt32(truncatingIfNeeded: value >> 32)) + number(UInt32(truncatingIfNeeded: value))
    }
    private static func string(_ text: String) -> [UInt8] {
        number(UInt32(text.utf8.count)) + Array(text.utf8)
    }
    private static func join(_ parts: [UInt8]...) -> [UInt8] { parts.flatMap(\.self) }

    /// Names are relative, so that nothing outside of the scratch folder is reached.
    private static let names = [
        "a", "b", "d", "d/x", "d/y", "link", "missing/z", "", String(repeating: "n", count: 5_000), "a/b",
    ]

    private static func offset(_ generator: inout Generator) -> [UInt8] {
        long(generator.next() % 9 == 0 ? .max : generator.next() % 3_000_000)
    }

    private static func attributes(_ generator: inout Generator) -> [UInt8] {
        switch generator.next() % 4 {
        case 0: join(number(1), long(generator.next() % 2_000_000))
        case 1: join(number(4), number(UInt32(generator.next() % 0o10000)))
        case 2: join(number(8), number(1), number(2))
        default: number(0)
        }
    }

    private static func request(_ generator: inout Generator) -> (type: UInt8, fields: [UInt8]) {
        let name = string(names.randomElement(using: &generator) ?? "a")
        let other = string(names.randomElement(using: &generator) ?? "b")
        let handle = join(number(4), number(UInt32(generator.next() % 6)))
        let data = [UInt8](repeating: 7, count: Int(generator.next() % 9_000))
        let extended = { (name: String, fields: [UInt8]) -> (UInt8, [UInt8]) in (200, string(name) + fields) }
        switch generator.next() % 26 {
        case 0...3: return (3, join(name, number(UInt32(generator.next() % 64)), attributes(&generator)))
        case 4: return (4, handle)
        case 5, 6: return (5, join(handle, offset(&generator), number(UInt32(generator.next() % 300_000))))
        case 7, 8: return (6, join(handle, offset(&generator), number(UInt32(data.count)), data))
        case 9: return (7, name)
        case 10: return (8, handle)
        case 11: return (9, join(name, attributes(&generator)))
        case 12: return (10, join(handle, attributes(&generator)))
        case 13: return (11, name)
        case 14: return (12, handle)
        case 15: return (13, name)
        case 16: return (14, join(name, attributes(&generator)))
        case 17: return (15, name)
        case 18: return (18, join(name, other))
        case 19: return (20, join(other, name))
        case 20: return (19, name)
        case 21: return extended("posix-rename@openssh.com", join(name, other))
        case 22: return extended("hardlink@openssh.com", join(name, other))
        case 23: return extended("fsync@openssh.com", handle)
        case 24:
            let target = join(number(4), number(UInt32(generator.next() % 6)))
            let range = join(offset(&generator), long(generator.next() % 500_000))
            return extended("copy-data", join(handle, range, target, offset(&generator)))
        default: return extended("statvfs@openssh.com", name)
        }
    }

    @Test(arguments: seeds) func everyRequestIsAnsweredOnce(seed: UInt64) throws {
        var generator = Generator(seed)
        let harness = try SSHHarness()
        let client = try RawClient(harness.service)
        client.keepsBytes = true
        let channel = try client.open(.session)
        #expect(try client.request(channel, .subsystem("sftp")))
        try client.write(channel, Self.join(Self.number(5), [1], Self.number(3)))
        for id in UInt32(1)...250 {
            let (type, fields) = Self.request(&generator)
            let body = Self.join([type], Self.number(id), fields)
            try client.write(channel, Self.number(UInt32(body.count)) + body)
        }
        client.ssh.sendEOF(channel)
        let end = try client.pump { if case .request(channel, .exitStatus, _) = $0 { true } else { false } }
        #expect(end == .request(channel, .exitStatus(0), wantsReply: false))
        #expect(Self.ids(client.bytes) == Array(1...250), "seed \(seed)")
    }

    /// Numbers of the answers behind VERSION.
    private static func ids(_ bytes: [UInt8]) -> [UInt32] {
        let word = { (bytes: ArraySlice<UInt8>) in bytes.reduce(UInt32(0)) { $0 << 8 | UInt32($1) } }
        var rest = bytes[...]
        var result: [UInt32] = []
        while rest.count >= 9 {
            let length = Int(word(rest.prefix(4)))
            let body = rest.dropFirst(4).prefix(length)
            if body.first != 2 { result.append(word(body.dropFirst().prefix(4))) }
            rest = rest.dropFirst(4 + length)
        }
        return result
    }
}
