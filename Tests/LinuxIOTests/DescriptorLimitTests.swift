// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Testing

@Suite(.serialized) struct DescriptorLimitTests {
    private static let kind = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)

    private func limit() -> rlimit {
        var limit = rlimit()
        getrlimit(Self.kind, &limit)
        return limit
    }

    @Test func childrenKeepTheLimitFromBefore() throws {
        var before = limit()
        if before.rlim_cur == before.rlim_max {
            before.rlim_cur /= 2
            setrlimit(Self.kind, &before)
        }
        DescriptorLimit.raise()
        #expect(limit().rlim_cur == before.rlim_max)
        #expect(DescriptorLimit.current == Int(clamping: before.rlim_max))
        let pipe = try Descriptor.pipe()
        let (reading, writing) = pipe.release()
        let child = try ChildProcess(
            path: Array("/bin/sh".utf8), arguments: ["sh", "-c", "ulimit -n"].map { Array($0.utf8) },
            environment: [], directory: nil, streams: .descriptors(writing, writing, writing))
        close(writing)
        var text = [UInt8](repeating: 0, count: 64)
        let count = read(reading, &text, text.count)
        close(reading)
        while child.reap() == nil { poll(nil, 0, 5) }
        #expect(String(decoding: text.prefix(max(0, count)), as: UTF8.self) == "\(before.rlim_cur)\n")
        #expect(limit().rlim_cur == before.rlim_max)
    }
}
