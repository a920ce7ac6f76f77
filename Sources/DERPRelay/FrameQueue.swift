// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// Whole frames that wait for a client, behind each other in one piece of memory, so that one call writes many of
/// them. The oldest can be dropped. Holds no memory while empty and idle. Used by the relay's thread only.
struct FrameQueue: ~Copyable {
    private var memory: UnsafeMutableRawPointer?
    private var capacity = 0
    private var head = 0
    private var tail = 0
    /// Of each frame: milliseconds of its arrival in the upper half, bytes in the lower.
    private var entries: UnsafeMutablePointer<UInt64>?
    private var entryCapacity = 0
    private var firstEntry = 0
    private(set) var frames = 0

    init() {}

    deinit {
        memory?.deallocate()
        entries?.deallocate()
    }

    var isEmpty: Bool { frames == 0 }
    var bytes: Int { tail - head }
    /// The waiting frames.
    var contents: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: memory.map { $0 + head }, count: bytes)
    }

    /// When the oldest frame came; not for an empty queue.
    var oldestMilliseconds: UInt32 { UInt32(truncatingIfNeeded: entries![firstEntry] >> 32) }

    /// Room for a frame of `length` at the end, to be filled at once.
    mutating func append(_ length: Int, milliseconds: UInt32) -> UnsafeMutableRawPointer {
        if capacity - tail < length { makeRoom(length) }
        if frames == entryCapacity { growEntries() }
        let index = (firstEntry + frames) & (entryCapacity - 1)
        entries![index] = UInt64(milliseconds) << 32 | UInt64(length)
        frames += 1
        defer { tail += length }
        return memory! + tail
    }

    /// Whole frames from the front, up to `limit` bytes but at least one.
    func prefix(_ limit: Int) -> UnsafeRawBufferPointer {
        guard let entries, bytes > limit else { return contents }
        var count = 0
        for index in 0..<frames {
            let entry = entries[(firstEntry + index) & (entryCapacity - 1)]
            let length = Int(truncatingIfNeeded: entry & 0xffff_ffff)
            if count > 0, count + length > limit { break }
            count += length
        }
        return UnsafeRawBufferPointer(rebasing: contents[..<count])
    }

    /// Drops the oldest frame; returns its length.
    mutating func dropFirst() -> Int {
        let length = popEntry()
        head += length
        if frames == 0 {
            head = 0
            tail = 0
        }
        return length
    }

    /// Takes `written` bytes from the front. Bytes of a frame that was only begun are appended to `rest` and taken,
    /// too: a frame that was begun must be finished before anything else.
    mutating func consume(_ written: Int, rest: inout [UInt8], _ note: (UInt32) -> Void) {
        var left = written
        while left > 0 {
            note(oldestMilliseconds)
            let length = popEntry()
            if length > left {
                rest.append(
                    contentsOf: UnsafeRawBufferPointer(start: memory! + head + left, count: length - left))
            }
            left -= min(left, length)
            head += length
        }
        if frames == 0 {
            head = 0
            tail = 0
        }
    }

    /// Gives the memory back.
    mutating func releaseIfEmpty() {
        guard frames == 0, memory != nil else { return }
        memory?.deallocate()
        entries?.deallocate()
        memory = nil
        entries = nil
        capacity = 0
        entryCapacity = 0
        firstEntry = 0
    }

    private mutating func popEntry() -> Int {
        let length = Int(truncatingIfNeeded: entries![firstEntry] & 0xffff_ffff)
        firstEntry = (firstEntry + 1) & (entryCapacity - 1)
        frames -= 1
        return length
    }

    private mutating func makeRoom(_ length: Int) {
        let count = bytes
        // Moving no more than was consumed keeps the cost per byte constant.
        if head >= count, capacity - count >= length {
            memmove(memory!, memory! + head, count)
        } else {
            var size = max(capacity * 2, 4_096)
            while size - count < length { size *= 2 }
            let larger = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
            if let memory {
                memcpy(larger, memory + head, count)
                memory.deallocate()
            }
            memory = larger
            capacity = size
        }
        head = 0
        tail = count
    }

    private mutating func growEntries() {
        let size = max(entryCapacity * 2, 16)
        let larger = UnsafeMutablePointer<UInt64>.allocate(capacity: size)
        for index in 0..<frames { larger[index] = entries![(firstEntry + index) & (entryCapacity - 1)] }
        entries?.deallocate()
        entries = larger
        entryCapacity = size
        firstEntry = 0
    }
}
