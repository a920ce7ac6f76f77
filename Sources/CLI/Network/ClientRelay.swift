// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// A channel that the server opened: a socket of this side behind it.
final class ClientRelay {
    let channel: ChannelID
    private var descriptor: OwnedDescriptor?
    var number: Int32? { descriptor?.number }
    /// The way to the socket; nil when it is there.
    private var dial: ForwardDial?
    private var output: [UInt8] = []
    private var hasInputEnded = false
    private var hasOutputEnded = false
    private var isShut = false

    init(_ channel: ChannelID, _ descriptor: consuming OwnedDescriptor) {
        self.channel = channel
        self.descriptor = consume descriptor
    }

    /// The channel is accepted or refused when `dial` knows.
    init(_ channel: ChannelID, _ dial: ForwardDial) {
        self.channel = channel
        self.dial = dial
    }

    /// What to wait for.
    func events(_ ssh: borrowing ClientConnection) -> Int16 {
        guard dial == nil else { return 0 }
        var events: Int32 = output.isEmpty ? 0 : POLLOUT
        if !hasInputEnded, ssh.writableCount(channel) > 0 { events |= POLLIN }
        return Int16(events)
    }

    /// The descriptor is ready. False: it is over.
    func ready(_ ssh: inout ClientConnection) -> Bool {
        guard let number = descriptor?.number else { return false }
        flush(&ssh)
        guard !hasInputEnded, ssh.writableCount(channel) > 0 else { return pump(&ssh) }
        var result = TransferResult.wouldBlock
        _ = ssh.write(channel, upTo: 64 * 1024) { space in
            result = Descriptor.read(number, into: space)
            if case .moved(let count) = result { return count }
            return 0
        }
        switch result {
        case .moved, .wouldBlock: break
        case .end, .failed:
            hasInputEnded = true
            ssh.sendEOF(channel)
        }
        return pump(&ssh)
    }

    func received(_ bytes: [UInt8], _ ssh: inout ClientConnection) {
        output += bytes
        flush(&ssh)
    }

    func endOfData(_ ssh: inout ClientConnection) { hasOutputEnded = true }

    /// Writes what waits; its room is given back to the server.
    private func flush(_ ssh: inout ClientConnection) {
        guard !output.isEmpty, let number = descriptor?.number else { return }
        let result = output.withUnsafeBytes { Descriptor.write(number, $0, isSocket: true) }
        switch result {
        case .moved(let count):
            output.removeFirst(count)
            ssh.consumed(channel, count)
        case .wouldBlock, .end: break
        case .failed:
            ssh.consumed(channel, output.count)
            output = []
            hasInputEnded = true
            hasOutputEnded = true
            isShut = true
        }
    }

    /// False: both directions are over, and the channel is closed.
    private func pump(_ ssh: inout ClientConnection) -> Bool {
        if hasOutputEnded, output.isEmpty, !isShut, let number = descriptor?.number {
            isShut = true
            Descriptor.finishWriting(number)
        }
        guard hasInputEnded, isShut else { return true }
        ssh.close(channel)
        return false
    }

    /// After events, and when a dial has come to its end. False: it is over.
    func settle(_ ssh: inout ClientConnection) -> Bool {
        guard let dial else { return pump(&ssh) }
        switch dial.outcome() {
        case .pending: return true
        case .connected(let number):
            self.dial = nil
            descriptor = OwnedDescriptor(taking: number)
            ssh.accept(channel)
            return true
        case .failed(let reason):
            ssh.refuse(channel, .connectFailed, message: reason)
            return false
        }
    }
}
