// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// A channel that carries a socket: direct and forwarded TCP and unix connections, and ssh-agent.
final class RelayChannel: ChannelPart {
    private enum State {
        /// Our socket waits for its connect; the peer waits for our answer.
        case connecting
        /// Our socket is there; the peer has to accept the channel.
        case opening
        case open
        case over
    }

    private let channel: ChannelID
    private var descriptor: OwnedDescriptor?
    private var state: State
    /// Further addresses to try.
    private var candidates: [KernelAddress] = []
    private var input = InputQueue()
    private var inputEnded = false
    private var outputEnded = false
    private var unreported = 0

    /// A socket that the peer must accept.
    init(channel: ChannelID, accepted: consuming OwnedDescriptor) {
        self.channel = channel
        descriptor = consume accepted
        state = .opening
    }

    /// A target that is still to be connected; call `connect` next.
    init(channel: ChannelID) {
        self.channel = channel
        state = .connecting
    }

    // MARK: Connecting

    /// Tries the addresses one after the other, then accepts or refuses the channel.
    func connect(to addresses: [KernelAddress], _ ssh: inout SSHConnection) {
        candidates = addresses
        connectNext(&ssh, "no address")
    }

    private func connectNext(_ ssh: inout SSHConnection, _ reason: String) {
        guard state == .connecting else { return }
        descriptor = nil
        var reason = reason
        while !candidates.isEmpty {
            do {
                descriptor = try StreamSocket.connect(to: candidates.removeFirst())
                return
            } catch {
                reason = "\(error)"
            }
        }
        state = .over
        isRefused = true
        ssh.refuse(channel, .connectFailed, message: reason)
    }

    /// Connects to a unix socket and accepts or refuses the channel.
    func connect(toPath path: ByteString, _ ssh: inout SSHConnection) {
        do {
            guard path.isCString else { throw SystemError(call: "connect", code: EINVAL) }
            descriptor = try StreamSocket.connect(toPath: path.bytes)
            state = .open
            ssh.accept(channel)
        } catch {
            state = .over
            isRefused = true
            ssh.refuse(channel, .connectFailed, message: "\(error)")
        }
    }

    private(set) var isRefused = false

    /// The peer accepted a forwarded channel.
    func opened() {
        if state == .opening { state = .open }
    }

    // MARK: ChannelPart

    func addInterests(_ ssh: borrowing SSHConnection, to list: inout PollList) {
        guard let number = descriptor?.number else { return }
        switch state {
        case .connecting: list.add(number, POLLOUT, self, tag: 0)
        case .open:
            var events: Int32 = 0
            if !outputEnded, ssh.writableCount(channel) > 0 { events |= POLLIN }
            if !input.isEmpty { events |= POLLOUT }
            list.add(number, events, self, tag: 0)
        case .opening, .over: break
        }
    }

    func ready(_ tag: UInt8, _ ssh: inout SSHConnection) {
        guard let number = descriptor?.number else { return }
        if state == .connecting {
            do {
                try StreamSocket.outcome(number)
                state = .open
                ssh.accept(channel)
            } catch {
                connectNext(&ssh, "\(error)")
            }
            return
        }
        guard state == .open else { return }
        unreported += input.flush(into: number, isSocket: true)
        if !outputEnded, ssh.writableCount(channel) > 0, ssh.copy(from: number, to: channel) {
            outputEnded = true
            ssh.sendEOF(channel)
        }
    }

    func received(_ bytes: UnsafeRawBufferPointer) -> Int {
        input.take(bytes, into: state == .open ? descriptor?.number : nil, isSocket: true)
    }

    func endOfData(_ ssh: inout SSHConnection) { inputEnded = true }

    func pump(_ ssh: inout SSHConnection) {
        if unreported > 0 {
            ssh.consumed(channel, unreported)
            unreported = 0
        }
        guard state == .open, let number = descriptor?.number else { return }
        if inputEnded, input.isEmpty, !input.isBroken {
            inputEnded = false
            Descriptor.finishWriting(number)
            hasFinishedInput = true
        }
        // A target that takes no more may still have something to say.
        guard outputEnded, hasFinishedInput || input.isBroken else { return }
        state = .over
        descriptor = nil
        ssh.close(channel)
    }

    private var hasFinishedInput = false

    /// Called when the channel is gone.
    var atEnd: (() -> Void)?

    /// The peer reads no more. OpenSSH PROTOCOL §2.1.
    func endOfWrite() {
        guard state == .open else { return }
        outputEnded = true
    }

    func closed() -> LateInput? {
        defer {
            descriptor = nil
            atEnd?()
            atEnd = nil
        }
        guard state == .open, !input.isEmpty, let descriptor = descriptor.take() else {
            state = .over
            return nil
        }
        state = .over
        var rest = InputQueue()
        swap(&rest, &input)
        return LateInput(descriptor, rest, isSocket: true)
    }
}
