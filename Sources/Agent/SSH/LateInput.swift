// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// What a client sent before it closed its channel, or went away, on the way to a reader that is slow: `cat > file`
/// behind a pipe, the target of a forward. sshd delivers it, so we do.
final class LateInput {
    private var descriptor: OwnedDescriptor?
    private var queue: InputQueue
    private let isSocket: Bool
    /// When it is given up, unless the reader takes something before.
    private(set) var deadline: UInt64

    /// 30 s: a reader that takes nothing for so long will not come back to it.
    private static let patienceNanoseconds: UInt64 = 30_000_000_000

    init(_ descriptor: consuming OwnedDescriptor, _ queue: consuming InputQueue, isSocket: Bool) {
        self.descriptor = consume descriptor
        self.queue = queue
        self.isSocket = isSocket
        deadline = Clock.monotonicNanoseconds() &+ Self.patienceNanoseconds
    }

    var number: Int32? { descriptor?.number }
    var count: Int { queue.count }

    /// Writes what goes. True: nothing is left to do.
    func flush(now: UInt64) -> Bool {
        guard let number = descriptor?.number else { return true }
        if queue.flush(into: number, isSocket: isSocket) > 0 { deadline = now &+ Self.patienceNanoseconds }
        return queue.isEmpty || queue.isBroken || now >= deadline
    }
}

/// The late inputs of one connection.
struct LateInputs {
    /// 64 of them with 64 MiB: a client that opens and closes channels in front of readers that stand still gets no
    /// more; the oldest is given up.
    private static let limit = 64, bytesLimit = 64 << 20

    private var inputs: [LateInput] = []

    mutating func add(_ input: LateInput) {
        inputs.append(input)
        while inputs.count > Self.limit
            || (inputs.count > 1 && inputs.reduce(0) { $0 + $1.count } > Self.bytesLimit)
        {
            inputs.removeFirst()
        }
    }

    func addInterests(to list: inout PollList, tag: UInt8) {
        for input in inputs { if let number = input.number { list.add(number, POLLOUT, nil, tag: tag) } }
    }

    mutating func flush(now: UInt64) { inputs.removeAll { $0.flush(now: now) } }

    var nextDeadline: UInt64? { inputs.map(\.deadline).min() }

    /// Delivers the rest when the connection is over. Blocks, until the service stops at the latest.
    mutating func deliver(until control: ConnectionControl) {
        var list = PollList()
        while !inputs.isEmpty, !control.isStopped {
            list.removeAll()
            list.add(control.wakeUp.number, POLLIN, nil, tag: 0)
            addInterests(to: &list, tag: 1)
            _ = list.wait(milliseconds: 1_000)
            control.wakeUp.drain()
            flush(now: Clock.monotonicNanoseconds())
        }
    }
}
