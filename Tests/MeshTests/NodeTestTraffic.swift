// SPDX-License-Identifier: Apache-2.0

import CSodium
import Glibc
import LinuxIO
import Mesh
import Synchronization

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
    static func echoes(
        _ number: Int32, count: Int, seed: UInt64, until isOver: Flag? = nil
    ) async -> Bool {
        async let sent = Blocking.run { () -> (UInt64, Int) in
            var generator = SeededGenerator(seed: seed)
            var digest = Digest()
            var left = count
            while left > 0 || isOver?.isSet == false {
                let size = min(max(left, 1 << 20), 1 + Int(generator.next() % 100_000))
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
        return a == b && a.1 >= count
    }
}

extension NodePair {
    /// Both ends of a stream from client to server.
    struct Stream {
        let near: Int32
        let far: Int32

        func close() {
            OwnedDescriptor(taking: near).close()
            OwnedDescriptor(taking: far).close()
        }
    }

    /// A stream to a port that takes this one stream.
    func stream(port: UInt16) async throws -> Stream {
        let incoming = try await server.listen(port: port)
        let near = try await client.dial(SocketAddress(Self.serverAddress, port: port))
        var iterator = incoming.makeAsyncIterator()
        guard let taken = await iterator.next() else { throw NodeError.closed }
        return Stream(near: near.release(), far: try taken.descriptor().release())
    }
}

/// Said by one thread, seen by others.
final class Flag: Sendable {
    private let value = Atomic(false)
    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
}

/// Bytes in one direction, with a SHA-256 at both ends.
enum Transfer {
    struct Result: Sendable {
        var count: Int
        var isExact: Bool
    }

    private struct Half: Equatable, Sendable {
        var count = 0
        var hash: [UInt8] = []
    }

    /// Writes at least so many bytes, and on until the flag is set, then ends the direction; reads it to its end.
    static func run(
        from: Int32, to: Int32, seed: UInt64, atLeast: Int, until isOver: Flag? = nil
    ) async -> Result {
        async let sent = Blocking.run { write(from, seed, atLeast, isOver) }
        async let received = Blocking.run { read(to) }
        let (a, b) = await (sent, received)
        return Result(count: b.count, isExact: a == b)
    }

    private static func write(_ number: Int32, _ seed: UInt64, _ atLeast: Int, _ isOver: Flag?) -> Half {
        var generator = SeededGenerator(seed: seed)
        let block = (0..<1 << 17).map { _ in generator.next() }
        var half = Half()
        var state = crypto_hash_sha256_state()
        crypto_hash_sha256_init(&state)
        block.withUnsafeBytes { block in
            while half.count < atLeast || isOver?.isSet == false {
                // Pieces of any length from anywhere in the block.
                let start = Int(generator.next() % UInt64(block.count / 2))
                let size = 1 + Int(generator.next() % UInt64(block.count / 2))
                let piece = UnsafeRawBufferPointer(rebasing: block[start..<start + size])
                crypto_hash_sha256_update(
                    &state, piece.baseAddress!.assumingMemoryBound(to: UInt8.self), UInt64(size))
                guard (try? Descriptor.writeAll(number, piece)) != nil else { return }
                half.count += size
            }
        }
        Descriptor.finishWriting(number)
        half.hash = finish(&state)
        return half
    }

    private static func read(_ number: Int32) -> Half {
        var half = Half()
        var state = crypto_hash_sha256_state()
        crypto_hash_sha256_init(&state)
        var chunk = [UInt8](repeating: 0, count: 1 << 18)
        while true {
            let count = Glibc.read(number, &chunk, chunk.count)
            guard count > 0 else { break }
            crypto_hash_sha256_update(&state, chunk, UInt64(count))
            half.count += count
        }
        half.hash = finish(&state)
        return half
    }

    private static func finish(_ state: inout crypto_hash_sha256_state) -> [UInt8] {
        var hash = [UInt8](repeating: 0, count: 32)
        crypto_hash_sha256_final(&state, &hash)
        return hash
    }
}

/// A connected pair of real TCP sockets on the loopback interface.
struct TCPPair {
    let inner: Int32
    let outer: Int32

    init() throws {
        let listener = try StreamSocket.listen(on: .loopback(v4: true), bothFamilies: false)
        let outer = try StreamSocket.connect(to: StreamSocket.localAddress(listener.number))
        var wait = pollfd(fd: listener.number, events: Int16(POLLIN), revents: 0)
        _ = poll(&wait, 1, 5_000)
        guard let accepted = StreamSocket.accept(listener.number) else {
            throw SystemError(call: "accept")
        }
        inner = accepted.take().release()
        try Descriptor.setNonBlocking(outer.number, false)
        self.outer = outer.release()
    }
}

extension Blocking {
    /// Exactly so many bytes, or fewer at the end.
    static func exactly(_ count: Int, from number: Int32) -> [UInt8] {
        var result: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: count)
        while result.count < count {
            let got = Glibc.read(number, &chunk, count - result.count)
            guard got > 0 else { break }
            result += chunk[..<got]
        }
        return result
    }
}
