// SPDX-License-Identifier: Apache-2.0

internal import Glibc
package import LinuxIO
internal import Synchronization

/// Writes packets to a file in the pcap format, as IP packets without anything in front (LINKTYPE_RAW). The file is
/// written by a thread of its own, behind a bounded queue: a slow file or a full disk costs packets, which are counted,
/// but never the time of who hands them over. Any thread may call it.
///
///     | magic 4 | major 2 | minor 2 | zone 4 | accuracy 4 | longest packet 4 | link type 4 |
///     | seconds 4 | microseconds 4 | length here 4 | length on the wire 4 | packet | ...
package final class PacketCapture: Sendable {
    /// What became of the packets.
    package struct Summary: Hashable, Sendable {
        package var written = 0
        /// Not in the file: the queue was full, or the file could not be written.
        package var lost = 0
        /// Why the file could not be written.
        package var failure: SystemError?
    }

    private struct State {
        var queue: [UInt8] = []
        /// Packets in the queue.
        var queued = 0
        /// Packets that the thread is about to write.
        var leaving = 0
        var summary = Summary()
        var isEnding = false
    }

    /// Bytes that may wait for the file: a pause of tens of milliseconds at the highest rate. Full: what comes is lost.
    package static let queueBytes = 16 << 20
    private static let longestPacket = 65_535
    /// draft-ietf-opsawg-pcaplinktype: raw IP, the version tells which.
    private static let linkTypeRaw: UInt32 = 101

    private let limit: Int
    private let state = Mutex(State())
    private let wakeUp: WakeUp
    private let hasEnded: WakeUp

    /// Makes the file, or empties it; only its owner may read it, for it holds what people sent.
    package convenience init(path: String) throws {
        let number = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard number >= 0 else { throw SystemError(call: "open \(path)") }
        try self.init(writing: OwnedDescriptor(taking: number))
    }

    /// Writes to this descriptor, at most `limit` bytes late.
    package init(writing file: consuming OwnedDescriptor, limit: Int = queueBytes) throws(SystemError) {
        self.limit = limit
        wakeUp = try WakeUp()
        hasEnded = try WakeUp()
        let number = file.release()
        do {
            try DedicatedThread(name: "packet-capture") { [self] in write(OwnedDescriptor(taking: number)) }
                .detach()
        } catch {
            close(number)
            throw error
        }
    }

    /// Queues a copy of a packet; what lies behind the packet's own end is left out.
    package func take(_ packet: RawSpan) {
        let wall = Clock.wallTime()
        packet.withUnsafeBytes { bytes in
            let length = min(Self.length(of: bytes), Self.longestPacket)
            let isFirst = state.withLock { state in
                guard !state.isEnding, state.summary.failure == nil,
                    state.queue.count + 16 + length <= limit
                else {
                    state.summary.lost += 1
                    return false
                }
                let isFirst = state.queue.isEmpty
                let size = UInt32(length)
                let header = [UInt32(truncatingIfNeeded: wall.seconds), wall.nanoseconds / 1_000, size, size]
                header.withUnsafeBytes { state.queue.append(contentsOf: $0) }
                state.queue.append(contentsOf: bytes[..<length])
                state.queued += 1
                return isFirst
            }
            if isFirst { wakeUp.signal() }
        }
    }

    /// Takes no more packets and waits until those that are queued are written, or for so long. To be called once.
    package func finish(within seconds: Int32) -> Summary {
        state.withLock { $0.isEnding = true }
        wakeUp.signal()
        var wait = pollfd(fd: hasEnded.number, events: Int16(POLLIN), revents: 0)
        _ = poll(&wait, 1, seconds * 1_000)
        return state.withLock { state in
            var summary = state.summary
            summary.lost += state.queued + state.leaving
            return summary
        }
    }

    /// Length of an IP packet after its own header, never more than there is.
    private static func length(of bytes: UnsafeRawBufferPointer) -> Int {
        guard bytes.count >= 20 else { return bytes.count }
        let at = { (offset: Int) in Int(bytes[offset]) << 8 | Int(bytes[offset + 1]) }
        return min(bytes[0] >> 4 == 4 ? at(2) : 40 + at(4), bytes.count)
    }

    // MARK: The thread

    private func write(_ file: consuming OwnedDescriptor) {
        let number = file.number
        var batch: [UInt8] = []
        let start: [UInt32] = [
            0xa1b2_c3d4, 2 | 4 << 16, 0, 0, UInt32(Self.longestPacket), Self.linkTypeRaw,
        ]
        start.withUnsafeBytes { batch.append(contentsOf: $0) }
        var position = 0
        while true {
            if !batch.isEmpty {
                let failure = Self.write(batch, number)
                if failure == nil {
                    position += batch.count
                } else {
                    // No packet in half; without effect on what is no regular file.
                    _ = ftruncate(number, off_t(position))
                }
                finishBatch(failure)
                batch.removeAll(keepingCapacity: true)
            }
            let isEnding = state.withLock { state in
                swap(&state.queue, &batch)
                (state.leaving, state.queued) = (state.queued, 0)
                return state.isEnding
            }
            guard batch.isEmpty else { continue }
            if isEnding { break }
            wakeUp.wait()
            wakeUp.drain()
        }
        file.close()
        hasEnded.signal()
    }

    private static func write(_ bytes: [UInt8], _ number: Int32) -> SystemError? {
        bytes.withUnsafeBytes { bytes in
            do throws(SystemError) {
                try Descriptor.writeAll(number, bytes)
                return nil
            } catch {
                return error
            }
        }
    }

    private func finishBatch(_ failure: SystemError?) {
        state.withLock { state in
            if let failure {
                state.summary.failure = state.summary.failure ?? failure
                state.summary.lost += state.leaving
            } else {
                state.summary.written += state.leaving
            }
            state.leaving = 0
        }
    }
}
