// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Resume
import Tailnet
import Testing

/// Both ends of a resumable stream, each in its thread, with a socket pair as carrier.
@Suite struct ResumeLoopTests {
    /// A stream between a program at the client and a service at the agent.
    private final class Stream: Sendable {
        let client: ResumeLoop
        let agent: ResumeLoop
        let program: OwnedDescriptor
        let service: OwnedDescriptor

        init(windowBytes: Int = 4 << 20) throws {
            var limits = ResumableStream.Limits()
            limits.windowBytes = windowBytes
            let secret = [UInt8](repeating: 7, count: 32)
            var generator = SystemRandomNumberGenerator()
            let id = ResumeID.random(using: &generator)
            let token = StreamToken(secret: secret, id: id, clientKey: secret, agentKey: secret)
            client = try ResumeLoop(.client(port: 22), limits: limits) { _ in }
            agent = try ResumeLoop(.agent(id: id, token: token), limits: limits) { _ in }
            let (mine, local) = try Descriptor.socketPair(nonBlocking: true).release()
            let (other, remote) = try Descriptor.socketPair(nonBlocking: true).release()
            program = OwnedDescriptor(taking: mine)
            service = OwnedDescriptor(taking: other)
            try client.start(reading: OwnedDescriptor(taking: local))
            try agent.start(reading: OwnedDescriptor(taking: remote))
        }

        /// A new carrier; returns what cuts it.
        func connect() throws -> OwnedDescriptor {
            let (mine, theirs) = try Descriptor.socketPair(nonBlocking: true).release()
            let carrier = OwnedDescriptor(taking: theirs)
            client.give(OwnedDescriptor(taking: mine))
            var bytes: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: ResumeGreeting.size)
            while bytes.count < ResumeGreeting.size {
                guard Descriptor.waitReadable(carrier.number, nanoseconds: 10_000_000_000) else { break }
                let count = Glibc.read(carrier.number, &buffer, ResumeGreeting.size - bytes.count)
                bytes += buffer[..<max(0, count)]
            }
            let copy = try carrier.duplicate()
            agent.give(carrier, greeting: try ResumeGreeting(parsing: bytes, isAnswer: false))
            return copy
        }
    }

    /// Writes what goes within `milliseconds` of room; returns how much.
    private func fill(_ number: Int32, upTo limit: Int, milliseconds: Int32) -> Int {
        var sent = 0
        let bytes = [UInt8](repeating: 5, count: 64 << 10)
        while sent < limit {
            var wait = pollfd(fd: number, events: Int16(POLLOUT), revents: 0)
            guard poll(&wait, 1, milliseconds) > 0 else { break }
            let size = min(bytes.count, limit - sent)
            let result = bytes.withUnsafeBytes {
                Descriptor.write(number, UnsafeRawBufferPointer(rebasing: $0[..<size]), isSocket: true)
            }
            switch result {
            case .moved(let count): sent += count
            case .wouldBlock: continue
            case .end, .failed: return sent
            }
        }
        return sent
    }

    /// Reads until the end, or until `limit` bytes came.
    private func drain(_ number: Int32, upTo limit: Int = .max) -> Int {
        var count = 0
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while count < limit, Descriptor.waitReadable(number, nanoseconds: 20_000_000_000) {
            switch buffer.withUnsafeMutableBytes({ Descriptor.read(number, into: $0) }) {
            case .moved(let more): count += more
            case .wouldBlock: continue
            case .end, .failed: return count
            }
        }
        return count
    }

    /// A service that answers and hangs up while the client still writes (HTTP 413): its answer is the client's.
    @Test func anAnswerBeforeTheCloseArrives() throws {
        let stream = try Stream(windowBytes: 16 << 10)
        let cutter = try stream.connect()
        let answered = fill(stream.service.number, upTo: 4 << 20, milliseconds: 500)
        #expect(answered > 32 << 10)
        // What nobody will read: the service's end is closed with it inside.
        #expect(fill(stream.program.number, upTo: 64 << 10, milliseconds: 500) > 0)
        #expect(Descriptor.waitReadable(stream.service.number, nanoseconds: 10_000_000_000))
        shutdown(stream.service.number, Int32(SHUT_RDWR))
        _ = fill(stream.program.number, upTo: 4 << 20, milliseconds: 200)
        #expect(drain(stream.program.number) == answered)
        withExtendedLifetime(cutter) {}
    }

    /// During an outage what the local side says fills the replay buffer, so that a program need not wait.
    @Test func anOutageDoesNotStopTheProgram() throws {
        let stream = try Stream()
        let first = try stream.connect()
        #expect(fill(stream.service.number, upTo: 1_000, milliseconds: 5_000) == 1_000)
        #expect(drain(stream.program.number, upTo: 1_000) == 1_000)
        shutdown(first.number, Int32(SHUT_RDWR))
        #expect(fill(stream.service.number, upTo: 3 << 20, milliseconds: 5_000) == 3 << 20)
        Descriptor.finishWriting(stream.service.number)
        let second = try stream.connect()
        #expect(drain(stream.program.number) == 3 << 20)
        withExtendedLifetime(second) {}
    }
}
