// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Synchronization
import Testing

@Suite struct LinkStateTests {
    @Test func theDefaultRouteIsTheKernels() throws {
        // /proc says the same in other words: destination 0, mask 0, gateway as little-endian hexadecimal digits.
        let file = fopen("/proc/thread-self/net/route", "r")
        defer { if let file { fclose(file) } }
        var best: (metric: UInt32, gateway: UInt32)?
        var line = [CChar](repeating: 0, count: 512)
        while let file, fgets(&line, 512, file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            let words = text.split { $0 == "\t" || $0 == " " }
            guard words.count > 7, words[1] == "00000000", words[7] == "00000000",
                let metric = UInt32(words[6]), let gateway = UInt32(words[2], radix: 16),
                best == nil || metric < best!.metric
            else { continue }
            best = (metric, gateway.byteSwapped)
        }
        let route = DefaultRoute.current(v4: true)
        #expect((route == nil) == (best == nil))
        if let best, best.gateway != 0 {
            #expect(route?.gateway.map { UInt32(truncatingIfNeeded: $0.low) } == best.gateway)
        }
    }

    @Test(.enabled(if: getuid() == 0, "needs root")) func anEmptyNamespaceHasNone() throws {
        let found = Mutex<[Bool]>([])
        let thread = try DedicatedThread(name: "empty") {
            guard (try? NetworkNamespace.enterNew()) != nil else { return }
            found.withLock { found in
                found = [true, false].map { DefaultRoute.current(v4: $0) == nil }
                let somewhere = KernelAddress(high: 0, low: 0xffff_0a00_0001, port: 0, isV4: true)
                found.append(DefaultRoute.source(towards: somewhere) == nil)
            }
        }
        thread.join()
        #expect(found.withLock { $0 } == [true, true, true])
    }

    @Test func packetsToOurselvesComeFromOurselves() {
        #expect(
            DefaultRoute.source(towards: .loopback(v4: true))?.low == KernelAddress.loopback(v4: true).low)
    }

    @Test func smallDatagramsGoBackAndForth() throws {
        let a = try SmallUDPSocket(v4: true)
        let b = try SmallUDPSocket(v4: true)
        let isEmpty = a.receive() == nil
        #expect(isEmpty)
        let target = try StreamSocket.localAddress(b.number)
        let isSent = a.send([1, 2, 3], to: .loopback(v4: true, port: target.port))
        #expect(isSent)
        for _ in 0..<200 {
            if let (bytes, source) = b.receive() {
                #expect(bytes == [1, 2, 3] && source.isV4)
                return
            }
            _ = poll(nil, 0, 10)
        }
        Issue.record("nothing arrived")
    }

    @Test func aQuietClockSaysNothing() throws {
        let watch = try ClockWatch()
        let hasJumped = watch.drain()
        #expect(!hasJumped)
        let slept = Clock.sleptNanoseconds()
        _ = poll(nil, 0, 20)
        #expect(Clock.sleptNanoseconds() < slept + 500_000_000)
    }
}
