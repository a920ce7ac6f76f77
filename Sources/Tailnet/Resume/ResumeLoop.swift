// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
public import Resume
internal import Synchronization

/// One resumable stream in a thread of its own: moves bytes between local descriptors and the stream, over one
/// carrier after another. Any thread may call it; events come on its own thread and must not wait.
public final class ResumeLoop: Sendable {
    /// Which side of the stream.
    public enum Role: Sendable {
        /// Greets; the greeting of a new stream names this port.
        case client(port: UInt16)
        /// Answers greetings, as this stream with this token.
        case agent(id: ResumeID, token: StreamToken)
    }

    /// What its owner should know.
    public enum Event: Sendable {
        /// A carrier works.
        case attached
        /// The other side has said its last word, and all of it was delivered.
        case peerFinished
        /// There is none: the client's owner should give another.
        case detached
        /// It is over; the last event.
        case ended(End)
    }

    /// How a stream ended.
    public enum End: Hashable, Sendable {
        /// Every byte arrived, in both directions.
        case finished
        /// Client, before the first byte: the port is not ours. The local descriptors were not touched; `takeBack`.
        case notResumable
        /// Client, before the first byte: no answer, or half of one, before the carrier broke or `Patience.greeting`
        /// had passed. It says nothing about the agent. The descriptors as above.
        case unanswered
        /// Client, before the first byte: the agent has no room for another stream. The descriptors as above.
        case busy
        /// Client: nobody listens on the port.
        case refused
        /// The agent does not know the stream any more: its process is a new one, or waited too long.
        case forgotten
        /// The local or the other side gave it up.
        case reset
        /// No carrier for too long.
        case abandoned
        /// The other side broke the rules.
        case failed(ResumeError)

        /// Whether nothing was done with the local descriptors.
        var leavesLocal: Bool { [.notResumable, .unanswered, .busy].contains(self) }
    }

    /// How long things may take.
    public struct Patience: Sendable {
        /// 12 h without a carrier: a night with the lid closed.
        public var withoutCarrier: UInt64 = 12 * 3_600_000_000_000
        /// 60 s when only the peer's last word is missing.
        public var drained: UInt64 = 60_000_000_000
        /// 10 s for the answer to a greeting.
        public var greeting: UInt64 = 10_000_000_000

        /// The defaults.
        public init() {}
    }

    /// What a stream costs while nobody moves its bytes.
    public struct Rest: Hashable, Sendable {
        /// Since when it has no carrier, by `Clock`; nil while it has one.
        public var detachedAt: UInt64?
        /// Bytes that wait for the peer or for the local side.
        public var heldBytes = 0
    }

    struct Mailbox: ~Copyable {
        var carrier: (number: Int32, greeting: ResumeGreeting?)?
        var isStopped = false
        var rest = Rest()
        /// Whether the thread still looks.
        var isOpen = true
        /// Descriptors that were not used.
        var unused: [Int32] = []
    }

    let role: Role
    let limits: ResumableStream.Limits
    let patience: Patience
    let wakeUp: WakeUp
    let report: @Sendable (Event) -> Void
    private let mailbox = Mutex(Mailbox())

    /// A stream that is not running yet.
    public init(
        _ role: Role, limits: ResumableStream.Limits = .init(), patience: Patience = Patience(),
        report: @escaping @Sendable (Event) -> Void
    ) throws(SystemError) {
        self.role = role
        self.limits = limits
        self.patience = patience
        self.report = report
        wakeUp = try WakeUp()
    }

    /// Takes the local descriptors over and starts: a socket, or one to read and one to write.
    public func start(
        reading: consuming OwnedDescriptor, writing: consuming OwnedDescriptor? = nil
    ) throws(SystemError) {
        let read = reading.release()
        let write = writing.take()?.release() ?? -1
        do {
            let thread = try DedicatedThread(name: "resume") { [self] in
                let body = ResumeBody(
                    self, reading: OwnedDescriptor(taking: read),
                    writing: write < 0 ? nil : OwnedDescriptor(taking: write))
                let end = body.run()
                close(end.leavesLocal ? body.takeLocal() : [])
                report(.ended(end))
            }
            thread.detach()
        } catch {
            OwnedDescriptor(taking: read).close()
            if write >= 0 { OwnedDescriptor(taking: write).close() }
            close([])
            throw error
        }
    }

    /// Gives it a carrier to go on with; `greeting` is what the client said on it, at an agent.
    public func give(_ carrier: consuming OwnedDescriptor, greeting: ResumeGreeting? = nil) {
        let number = carrier.release()
        let unused: Int32 = mailbox.withLock { box in
            guard box.isOpen else { return number }
            defer { box.carrier = (number, greeting) }
            return box.carrier?.number ?? -1
        }
        if unused >= 0 { OwnedDescriptor(taking: unused).close() }
        wakeUp.signal()
    }

    /// Gives the stream up: the peer is told if that is possible.
    public func stop() {
        mailbox.withLock { $0.isStopped = true }
        wakeUp.signal()
    }

    /// After `.notResumable`, `.unanswered` or `.busy`: the local descriptors, one or two, once.
    public func takeBack() -> [Int32] {
        mailbox.withLock { box in
            defer { box.unused = [] }
            return box.unused
        }
    }

    /// Whether it takes no more carriers.
    public var hasEnded: Bool { mailbox.withLock { !$0.isOpen } }

    /// What it costs now.
    public var rest: Rest { mailbox.withLock { $0.rest } }

    // MARK: For the thread

    func note(_ rest: Rest) { mailbox.withLock { $0.rest = rest } }

    func takeCarrier() -> (number: Int32, greeting: ResumeGreeting?)? {
        mailbox.withLock { box in
            defer { box.carrier = nil }
            return box.carrier
        }
    }

    var isStopped: Bool { mailbox.withLock { $0.isStopped } }

    private func close(_ unused: [Int32]) {
        let carrier = mailbox.withLock { box in
            box.isOpen = false
            box.unused = unused
            defer { box.carrier = nil }
            return box.carrier?.number
        }
        if let carrier { OwnedDescriptor(taking: carrier).close() }
    }
}
