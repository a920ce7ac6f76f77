// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

/// The bytes that load tests send, so that the other end can tell whether all arrived, once and in order: a block
/// of pseudo-random bytes, repeated. Its length is a prime, so no lost or doubled run of packets goes unnoticed.
enum MeshPattern {
    /// The largest prime below 1 MiB.
    static let period = 1_048_573
    private static let seed: UInt64 = 0x6d65_7368

    /// Two periods, so that any piece of one period's length lies in one run.
    private static let bytes: [UInt8] = {
        var generator = SeededGenerator(seed: seed)
        var block: [UInt8] = []
        block.reserveCapacity(period + 8)
        while block.count < period {
            withUnsafeBytes(of: generator.next().littleEndian) { block.append(contentsOf: $0) }
        }
        block.removeLast(block.count - period)
        return block + block
    }()

    /// Calls `body` with the bytes at `offset` of the endless pattern, at most `limit` of them.
    static func with<R>(
        at offset: Int, limit: Int, _ body: (UnsafeRawBufferPointer) throws -> R
    ) rethrows -> R {
        try bytes.withUnsafeBytes { all in
            let start = offset % period
            return try body(UnsafeRawBufferPointer(rebasing: all[start..<start + min(limit, period)]))
        }
    }
}

/// Checks a stream against the pattern.
struct MeshChecker {
    /// Bytes so far.
    private(set) var count = 0
    /// Where the first wrong byte was, if any.
    private(set) var firstWrong: Int?

    /// Takes the next bytes of the stream.
    mutating func take(_ bytes: UnsafeRawBufferPointer) {
        var rest = bytes
        while !rest.isEmpty {
            let length = min(rest.count, MeshPattern.period)
            if firstWrong == nil {
                MeshPattern.with(at: count, limit: length) { wanted in
                    guard memcmp(wanted.baseAddress!, rest.baseAddress!, length) != 0 else { return }
                    firstWrong = count + (zip(wanted, rest).enumerated().first { $0.1.0 != $0.1.1 }?.0 ?? 0)
                }
            }
            count += length
            rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(length))
        }
    }
}

/// A stream of the mesh that one thread reads and writes, waiting as long as it takes.
struct MeshSocket: ~Copyable {
    private let descriptor: OwnedDescriptor
    private let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 256 << 10, alignment: 64)

    init(_ descriptor: consuming OwnedDescriptor) throws(SystemError) {
        try Descriptor.setNonBlocking(descriptor.number, false)
        self.descriptor = descriptor
    }

    deinit { memory.deallocate() }

    var number: Int32 { descriptor.number }

    /// The next bytes, at most `limit`; nil at the end. Valid until the next call.
    func read(limit: Int = 256 << 10) throws(SystemError) -> UnsafeRawBufferPointer? {
        while true {
            let count = Glibc.read(number, memory.baseAddress, min(limit, memory.count))
            if count > 0 { return UnsafeRawBufferPointer(rebasing: memory[..<count]) }
            if count == 0 { return nil }
            guard errno == EINTR || errno == EAGAIN else { throw SystemError(call: "read") }
        }
    }

    func write(_ bytes: UnsafeRawBufferPointer) throws(SystemError) {
        try Descriptor.writeAll(number, bytes)
    }

    /// Writes so many bytes of the pattern, at most `rate` of them in a second when it is not 0.
    func writePattern(
        _ count: Int, from start: Int = 0, rate: Int = 0, _ written: (Int) -> Void = { _ in }
    ) throws {
        let began = Clock.monotonicNanoseconds()
        let limit = rate == 0 ? 256 << 10 : max(1, min(rate / 50, 256 << 10))
        var offset = start
        while offset < start + count {
            let piece = min(start + count - offset, limit)
            try MeshPattern.with(at: offset, limit: piece) { try write($0) }
            offset += piece
            written(piece)
            guard rate > 0 else { continue }
            let due = Double(offset - start) / Double(rate)
            let early = due - Double(Clock.monotonicNanoseconds() - began) / 1e9
            if early > 0.001 { _ = poll(nil, 0, Int32(early * 1_000)) }
        }
    }

    /// One line without its end, at most 4 KiB; what was read of it when the stream ends first.
    func line() throws -> String {
        var bytes: [UInt8] = []
        while bytes.count < 4_096, let piece = try read(limit: 1), piece[0] != 10 { bytes.append(piece[0]) }
        return String(decoding: bytes, as: UTF8.self)
    }

    func say(_ line: String) throws { try Array("\(line)\n".utf8).withUnsafeBytes { try write($0) } }

    func finishWriting() { Descriptor.finishWriting(number) }
}
