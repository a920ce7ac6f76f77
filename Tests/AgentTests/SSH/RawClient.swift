// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import SSH
import Testing

/// Our client machine on one end of a socket pair whose other end a service serves; driven by the test, step by step.
final class RawClient {
    var ssh: SSHConnection
    private var socket: OwnedDescriptor?
    /// What came on all channels.
    var received = 0
    /// The same, kept when `keepsBytes` is set.
    var bytes: [UInt8] = []
    var keepsBytes = false
    private(set) var events: [SSHEvent] = []

    init(
        _ service: SSHService, remoteAddress: String = "10.0.0.1",
        isReachable: @escaping @Sendable () -> Bool = { true }
    )
        throws
    {
        let (mine, theirs) = try Descriptor.socketPair(nonBlocking: true).release()
        service.serve(OwnedDescriptor(taking: theirs), remoteAddress: remoteAddress, isReachable: isReachable)
        socket = OwnedDescriptor(taking: mine)
        var random = SystemRandomNumberGenerator()
        ssh = SSHConnection(clientNamed: "u", seed: EntropySeed(using: &random))
    }

    /// Moves bytes until an event for which `isWanted` holds, for at most 20 seconds.
    @discardableResult
    func pump(until isWanted: (SSHEvent) -> Bool) throws -> SSHEvent {
        let deadline = Clock.monotonicNanoseconds() + 20_000_000_000
        while Clock.monotonicNanoseconds() < deadline, let number = socket?.number {
            while let event = try ssh.nextEvent() {
                events.append(event)
                if case .data(let channel, _, let count) = event {
                    received += count
                    if keepsBytes { ssh.withData { bytes += $0 } }
                    ssh.consumed(channel, count)
                }
                if isWanted(event) { return event }
            }
            if try flush() { continue }
            var wait = pollfd(
                fd: number, events: Int16(POLLIN | (ssh.outgoingCount > 0 ? POLLOUT : 0)), revents: 0)
            _ = poll(&wait, 1, 200)
            var result = TransferResult.wouldBlock
            _ = ssh.receive(upTo: 64 << 10) { space in
                result = Descriptor.read(number, into: space)
                if case .moved(let count) = result { return count }
                return 0
            }
            if case .end = result { throw Gone() }
        }
        throw Gone()
    }

    struct Gone: Error {}

    /// True: something left.
    private func flush() throws -> Bool {
        guard let number = socket?.number, ssh.outgoingCount > 0 else { return false }
        guard case .moved(let count) = Descriptor.write(number, ssh.outgoing, isSocket: true) else {
            return false
        }
        ssh.consumeOutgoing(count)
        return true
    }

    /// Until everything that was said has left.
    func flushAll() throws {
        let deadline = Clock.monotonicNanoseconds() + 20_000_000_000
        while ssh.outgoingCount > 0, Clock.monotonicNanoseconds() < deadline {
            if try !flush() { usleep(1_000) }
        }
    }

    /// A channel that the service has granted.
    func open(_ type: ChannelType) throws -> ChannelID {
        if !ssh.isAuthenticated {
            try pump { if case .authenticated = $0 { true } else { false } }
        }
        let channel = try need(ssh.openChannel(type))
        try pump { $0 == .opened(channel) }
        return channel
    }

    /// Asks for something on a channel; whether it was granted.
    func request(_ channel: ChannelID, _ request: ChannelRequest) throws -> Bool {
        ssh.request(channel, request, wantsReply: true)
        let reply = try pump { if case .reply(channel, _) = $0 { true } else { false } }
        return reply == .reply(channel, success: true)
    }

    /// Asks the service to listen, or to stop; whether it does.
    func requestGlobal(_ request: GlobalRequest) throws -> Bool {
        if !ssh.isAuthenticated {
            try pump { if case .authenticated = $0 { true } else { false } }
        }
        _ = ssh.requestGlobal(request)
        let reply = try pump { if case .globalReply = $0 { true } else { false } }
        if case .globalReply(success: true, _) = reply { return true }
        return false
    }

    /// Sends all of it, as the windows allow.
    func write(_ channel: ChannelID, _ bytes: [UInt8]) throws {
        var sent = 0
        while sent < bytes.count {
            let count = ssh.write(channel, Array(bytes[sent...]))
            sent += count
            guard count == 0 else { continue }
            try pump { $0 == .writable(channel) }
        }
    }

    /// The connection is gone without a word.
    func vanish() { socket = nil }

    private func need<Value>(_ value: Value?) throws -> Value { try #require(value) }
}
