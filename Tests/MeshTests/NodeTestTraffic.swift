// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh

// Bytes that two nodes exchange in tests.
extension NodePair {
    static let echoPort: UInt16 = 7

    /// Serves each stream by sending back what comes, until end of file.
    func serveEcho(port: UInt16 = echoPort) async throws -> Task<Void, Never> {
        let incoming = try await server.listen(port: port)
        return Task {
            for await stream in incoming {
                guard let descriptor = try? stream.descriptor() else { continue }
                let number = descriptor.release()
                let thread = try? DedicatedThread(name: "test-echo") {
                    var chunk = [UInt8](repeating: 0, count: 65_536)
                    while true {
                        let count = read(number, &chunk, chunk.count)
                        guard count > 0, Blocking.write(number, Array(chunk[..<count])) else { break }
                    }
                    OwnedDescriptor(taking: number).close()
                }
                thread?.detach()
            }
        }
    }

    /// Sends `count` bytes of a pattern through the echo server; true when exactly they come back.
    static func echoes(_ number: Int32, count: Int, seed: UInt64) async -> Bool {
        async let sent = Blocking.run { () -> (UInt64, Int) in
            var generator = SeededGenerator(seed: seed)
            var digest = Digest()
            var left = count
            while left > 0 {
                let size = min(left, 1 + Int(generator.next() % 100_000))
                let first = generator.next()
                let chunk = (0..<size).map { UInt8(truncatingIfNeeded: first &+ UInt64($0) &* 31) }
                guard Blocking.write(number, chunk) else { break }
                digest.take(chunk)
                left -= size
            }
            Descriptor.finishWriting(number)
            return (digest.value, digest.count)
        }
        async let received = Blocking.run { Blocking.digest(number) }
        let (a, b) = await (sent, received)
        return a == b && a.1 == count
    }
}
