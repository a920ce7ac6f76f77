// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// What stands behind an open channel: a session, a relayed socket. Lives on its connection's thread.
protocol ChannelPart: AnyObject {
    /// Adds the descriptors to wait for now. Never one without a reason: a hang-up alone would spin.
    func addInterests(_ ssh: borrowing SSHConnection, to list: inout PollList)
    /// A descriptor added with `tag` is ready.
    func ready(_ tag: UInt8, _ ssh: inout SSHConnection)
    /// Takes received bytes; returns how many left memory already. The rest is reported by `ssh.consumed`
    /// later.
    func received(_ bytes: UnsafeRawBufferPointer) -> Int
    /// The peer sends no more.
    func endOfData(_ ssh: inout SSHConnection)
    /// Called after events and readiness, to move what can move.
    func pump(_ ssh: inout SSHConnection)
    /// The channel is gone: give everything back. What the peer sent and nobody has taken yet is the result.
    func closed() -> LateInput?
    /// The channel never came to be: forget it.
    var isRefused: Bool { get }
    /// Has work that waits for nothing: the connection should not sleep.
    var wantsTurn: Bool { get }
}

extension ChannelPart {
    var isRefused: Bool { false }
    var wantsTurn: Bool { false }
}

/// Descriptors of one `poll(2)` and whom to tell.
struct PollList {
    private(set) var descriptors: [pollfd] = []
    private(set) var targets: [(part: (any ChannelPart)?, tag: UInt8)] = []

    mutating func removeAll() {
        descriptors.removeAll(keepingCapacity: true)
        targets.removeAll(keepingCapacity: true)
    }

    mutating func add(_ number: Int32, _ events: Int32, _ part: (any ChannelPart)?, tag: UInt8) {
        guard events != 0 else { return }
        descriptors.append(pollfd(fd: number, events: Int16(events), revents: 0))
        targets.append((part, tag))
    }

    /// Waits; nil: for ever. Returns the indices of what is ready.
    mutating func wait(milliseconds: Int32?) -> [Int] {
        guard poll(&descriptors, nfds_t(descriptors.count), milliseconds ?? -1) > 0 else { return [] }
        return descriptors.indices.filter { descriptors[$0].revents != 0 }
    }
}

/// Received bytes on their way into a descriptor. Bounded by the channel's window, because what waits here
/// has not been reported as consumed.
struct InputQueue: ~Copyable {
    private var queue = ByteQueue(capacity: 64)
    private(set) var isBroken = false

    var isEmpty: Bool { queue.isEmpty }
    var count: Int { queue.count }

    /// Writes what goes at once, keeps the rest; returns how much left memory.
    mutating func take(_ bytes: UnsafeRawBufferPointer, into number: Int32?, isSocket: Bool) -> Int {
        guard !isBroken else { return bytes.count }
        var taken = 0
        if queue.isEmpty, let number {
            switch Descriptor.write(number, bytes, isSocket: isSocket) {
            case .moved(let count): taken = count
            case .failed: return breakOff(bytes.count)
            case .wouldBlock, .end: break
            }
        }
        if taken < bytes.count { queue.append(UnsafeRawBufferPointer(rebasing: bytes[taken...])) }
        return taken
    }

    /// Writes what waits; returns how much left memory.
    mutating func flush(into number: Int32, isSocket: Bool) -> Int {
        guard !queue.isEmpty else { return 0 }
        switch Descriptor.write(number, queue.bytes, isSocket: isSocket) {
        case .moved(let count):
            queue.consume(count)
            return count
        case .failed: return breakOff(queue.count)
        case .wouldBlock, .end: return 0
        }
    }

    /// Nobody reads any more: what waits and what comes is dropped.
    private mutating func breakOff(_ count: Int) -> Int {
        isBroken = true
        let dropped = queue.isEmpty ? count : queue.count
        queue.consume(queue.count)
        return dropped
    }
}

extension SSHConnection {
    /// Reads `number` straight into packets of `channel` until nothing is there, the window is closed, or
    /// enough for one round was moved. True: the end was reached.
    mutating func copy(from number: Int32, to channel: ChannelID, _ stream: DataStream = .standard) -> Bool {
        var moved = 0
        while moved < 128 * 1024 {
            var result = TransferResult.wouldBlock
            let count = write(channel, stream: stream, upTo: 64 * 1024) { space in
                result = Descriptor.read(number, into: space)
                if case .moved(let count) = result { return count }
                return 0
            }
            switch result {
            case .moved: moved += count
            case .wouldBlock: return false
            case .end, .failed: return true
            }
        }
        return false
    }
}
