// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Resume
import Tailnet
import Testing

/// What a client's stream makes of what comes back on port 8, before the first byte.
@Suite(.timeLimit(.minutes(1))) struct ResumeAnswerTests {
    /// What the other side does with the greeting.
    enum Peer: String, CaseIterable, Sendable {
        case otherService, echo, closes, closesHalfWay, silent, busy, connectFailed
    }

    private func answer(_ peer: Peer, _ carrier: Int32) {
        var greeting = [UInt8](repeating: 0, count: ResumeGreeting.size)
        var count = 0
        while count < greeting.count {
            let more = read(carrier, &greeting[count], greeting.count - count)
            guard more > 0 else { return }
            count += more
        }
        let answer: [UInt8]
        switch peer {
        case .otherService: answer = Array("HTTP/1.1 400 Bad Request\r\n\r\n".utf8)
        case .echo: answer = greeting
        case .closes, .silent: answer = []
        case .closesHalfWay: answer = Array(ResumeGreeting(.accepted).bytes.prefix(40))
        case .busy: answer = ResumeGreeting(.busy).bytes
        case .connectFailed: answer = ResumeGreeting(.connectFailed).bytes
        }
        if !answer.isEmpty { _ = send(carrier, answer, answer.count, Int32(MSG_NOSIGNAL)) }
        if [.closes, .closesHalfWay].contains(peer) { shutdown(carrier, Int32(SHUT_RDWR)) }
    }

    @Test(arguments: Peer.allCases) func whoeverAnswers(_ peer: Peer) async throws {
        let (mine, theirs) = try Descriptor.socketPair(nonBlocking: false).release()
        let (local, user) = try Descriptor.socketPair(nonBlocking: true).release()
        let (events, continuation) = AsyncStream.makeStream(of: ResumeLoop.Event.self)
        var patience = ResumeLoop.Patience()
        if peer == .silent { patience.greeting = 50_000_000 }
        let loop = try ResumeLoop(.client(port: 1), patience: patience) { continuation.yield($0) }
        // What the user has written must be there for the plain stream.
        #expect(send(user, "early", 5, 0) == 5)
        try loop.start(reading: OwnedDescriptor(taking: local))
        loop.give(OwnedDescriptor(taking: mine))
        try DedicatedThread(name: "peer") { answer(peer, theirs) }.detach()
        var end: ResumeLoop.End?
        for await event in events {
            if case .ended(let how) = event {
                end = how
                break
            }
        }
        let expected: [Peer: ResumeLoop.End] = [
            .otherService: .notResumable, .echo: .notResumable, .closes: .unanswered,
            .closesHalfWay: .unanswered, .silent: .unanswered, .busy: .busy, .connectFailed: .refused,
        ]
        #expect(end == expected[peer])
        let left = loop.takeBack()
        if peer == .connectFailed {
            #expect(left.isEmpty)
        } else {
            try #require(left.count == 1)
            var text = [UInt8](repeating: 0, count: 16)
            #expect(read(left[0], &text, 16) == 5 && text.starts(with: Array("early".utf8)))
            #expect(fcntl(left[0], F_GETFL) & O_NONBLOCK != 0)
            close(left[0])
        }
        close(theirs)
        close(user)
    }
}
