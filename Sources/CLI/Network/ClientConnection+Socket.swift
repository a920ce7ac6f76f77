// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

// Between an SSH connection and its socket, which must be non-blocking.
extension ClientConnection {
    /// Reads what is there, in a few pieces: enough for speed, few enough to keep whatever else moves alive. False: the
    /// other side has hung up; what came before are events still.
    mutating func readSocket(_ number: Int32) -> Bool {
        for _ in 0..<8 {
            guard wantsInput else { return true }
            var result = TransferResult.wouldBlock
            _ = receive(upTo: 65_536) { space in
                result = Descriptor.read(number, into: space)
                if case .moved(let count) = result { return count }
                return 0
            }
            switch result {
            case .moved: continue
            case .wouldBlock: return true
            case .end, .failed: return false
            }
        }
        return true
    }

    /// Writes what goes. False: the other side takes nothing any more.
    mutating func writeSocket(_ number: Int32) -> Bool {
        while outgoingCount > 0 {
            switch Descriptor.write(number, outgoing, isSocket: true) {
            case .moved(let count): consumeOutgoing(count)
            case .wouldBlock, .end: return true
            case .failed: return false
            }
        }
        return true
    }

    /// What to wait for at the socket.
    func socketPoll(_ number: Int32) -> pollfd {
        let events = (wantsInput ? POLLIN : 0) | (outgoingCount > 0 ? POLLOUT : 0)
        return pollfd(fd: number, events: Int16(events), revents: 0)
    }
}

/// The channels of one SSH connection that have a local socket behind them.
struct ClientRelays {
    private var byChannel: [ChannelID: ClientRelay] = [:]

    var isEmpty: Bool { byChannel.isEmpty }
    var channels: [ChannelID] { byChannel.keys.sorted { "\($0)" < "\($1)" } }

    mutating func add(_ relay: ClientRelay) { byChannel[relay.channel] = relay }
    mutating func remove(_ channel: ChannelID) { byChannel[channel] = nil }

    /// Takes what an event says about one of them. False: it is about something else.
    mutating func handle(_ event: SSHEvent, _ ssh: inout ClientConnection) -> Bool {
        switch event {
        case .data(let id, _, _):
            guard let relay = byChannel[id] else { return false }
            relay.received(ssh.withData { Array($0) }, &ssh)
        case .endOfData(let id):
            guard let relay = byChannel[id] else { return false }
            relay.endOfData(&ssh)
        case .closed(let id): return byChannel.removeValue(forKey: id) != nil
        default: return false
        }
        return true
    }

    /// To be called after events: forgets those that are over.
    mutating func settle(_ ssh: inout ClientConnection) {
        for (id, relay) in byChannel where !relay.settle(&ssh) { byChannel[id] = nil }
    }

    /// Their parts of a `poll(2)`, in the order of `relays`.
    func waiting(_ ssh: borrowing ClientConnection) -> (relays: [ClientRelay], polls: [pollfd]) {
        var relays: [ClientRelay] = [], polls: [pollfd] = []
        for relay in byChannel.values {
            let events = relay.events(ssh)
            guard events != 0, let number = relay.number else { continue }
            relays.append(relay)
            polls.append(pollfd(fd: number, events: events, revents: 0))
        }
        return (relays, polls)
    }

    /// Moves bytes of those that are ready.
    mutating func ready(
        _ relays: [ClientRelay], _ polls: ArraySlice<pollfd>, _ ssh: inout ClientConnection
    ) {
        for (relay, poll) in zip(relays, polls) where poll.revents != 0 {
            if !relay.ready(&ssh) { byChannel[relay.channel] = nil }
        }
    }
}
