// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Glibc
internal import LinuxIO
internal import Logging
internal import Synchronization
internal import TLS

/// A TLS connection from its first byte to the end of its request. Owned by the door's thread.
final class TLSOpening {
    let session: TLSSession
    /// What it asked so far.
    var plain: [UInt8] = []
    /// What the kernel did not take of our part of the handshake. Nothing is read meanwhile.
    var unsent: [UInt8] = []

    init(_ session: TLSSession) { self.session = session }
}

// One step of a handshake at a time: some 100 µs of work, most of it the signature, between two looks at the others.
extension FrontDoor {
    static func advance(_ state: State, _ number: Int32) {
        guard let begun = state.begun[number] else { return }
        guard let opening = begun.opening ?? begin(state, number) else { return drop(state, number) }
        guard opening.unsent.isEmpty else { return flush(state, number, opening) }
        let count = recv(number, state.buffer.baseAddress, readLimit, 0)
        guard count > 0 else {
            if count == 0 || errno != EAGAIN && errno != EINTR { drop(state, number) }
            return
        }
        state.sealed.removeAll(keepingCapacity: true)
        let session = opening.session
        let plain = session.receive(
            UnsafeRawBufferPointer(rebasing: state.buffer[..<count]), into: state.plain,
            output: &state.sealed)
        opening.plain += state.plain[..<plain]
        guard write(state, number, opening) else { return drop(state, number) }
        if session.phase == .failed {
            state.counters.withLock { $0.failedHandshakes += 1 }
            state.logger.debug(
                "TLS failed", metadata: ["peer": "\(begun.source)", "reason": "\(session.failure ?? "")"])
        }
        guard !session.isOver else { return drop(state, number) }
        decide(state, number, opening)
    }

    private static func begin(_ state: State, _ number: Int32) -> TLSOpening? {
        guard let context = state.listener.certificates?.context, let session = TLSSession(context) else {
            return nil
        }
        let opening = TLSOpening(session)
        state.begun[number]?.opening = opening
        return opening
    }

    private static func decide(_ state: State, _ number: Int32, _ opening: TLSOpening) {
        // Whoever gets the connection begins with nothing unsent.
        guard !opening.plain.isEmpty, opening.unsent.isEmpty, let source = state.begun[number]?.source else {
            return
        }
        let session = opening.session
        let isDraining = state.isDraining.load(ordering: .acquiring)
        switch isDraining ? .other : opening.plain.withUnsafeBytes({ Request($0) }) {
        case .begun: return
        case .relay(let length, let isFast):
            if !isFast {
                state.sealed.removeAll(keepingCapacity: true)
                _ = answer(state.relay).withUnsafeBytes { session.seal($0, output: &state.sealed) }
                // Next to nothing was sent on this connection: there is room.
                guard write(state, number, opening), opening.unsent.isEmpty else {
                    return drop(state, number)
                }
            }
            forget(state, number)
            state.relay.adopt(
                OwnedDescriptor(taking: number), leftover: Array(opening.plain[length...]),
                source: source, cipher: session)
        case .other:
            forget(state, number)
            state.other(Stranger(number: number, session: session, early: opening.plain))
        }
    }

    /// Sends what TLS has to say, and keeps what the kernel does not take. False when the connection is broken.
    private static func write(_ state: State, _ number: Int32, _ opening: TLSOpening) -> Bool {
        guard !state.sealed.isEmpty else { return true }
        let count = send(number, state.sealed, state.sealed.count, Int32(MSG_NOSIGNAL))
        guard count >= 0 || errno == EAGAIN || errno == EINTR else { return false }
        guard max(0, count) < state.sealed.count else { return true }
        opening.unsent += state.sealed[max(0, count)...]
        return watch(state, number, .write)
    }

    private static func flush(_ state: State, _ number: Int32, _ opening: TLSOpening) {
        let count = send(number, opening.unsent, opening.unsent.count, Int32(MSG_NOSIGNAL))
        guard count >= 0 || errno == EAGAIN || errno == EINTR else { return drop(state, number) }
        opening.unsent.removeFirst(max(0, count))
        guard opening.unsent.isEmpty else { return }
        guard watch(state, number, .read) else { return drop(state, number) }
        decide(state, number, opening)
    }

    private static func watch(_ state: State, _ number: Int32, _ interest: Epoll.Interest) -> Bool {
        do {
            try state.epoll.modify(number, interest, token: UInt64(number))
            return true
        } catch {
            return false
        }
    }
}
