// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Tailnet

/// Tries one relay as the mesh uses it: two clients log in, one sends to the other, and a relay ping is timed.
struct RelayProbe: ~Copyable {
    struct Outcome: Sendable {
        var canExchange = false
        var roundTrip: Duration?
        var error: String?
    }

    /// Runs the probe in a thread of its own, at most five seconds.
    static func run(_ connector: RelayConnector, _ region: DERPMap.Region) async -> Outcome {
        do {
            let a = try await connector.connect(region: region).release()
            let b: Int32
            do {
                b = try await connector.connect(region: region).release()
            } catch {
                close(a)
                throw error
            }
            return await withCheckedContinuation { continuation in
                do {
                    try DedicatedThread(name: "relay-probe") {
                        var probe = RelayProbe(OwnedDescriptor(taking: a), OwnedDescriptor(taking: b))
                        continuation.resume(returning: probe.loop())
                    }.detach()
                } catch {
                    close(a)
                    close(b)
                    continuation.resume(returning: Outcome(error: "\(error)"))
                }
            }
        } catch {
            return Outcome(error: "\(error)")
        }
    }

    private static let limit: UInt64 = 5_000_000_000
    private static let payload: [UInt8] = Array("coder netcheck".utf8)

    private let sender: OwnedDescriptor
    private let receiver: OwnedDescriptor
    private let receiverKey: NodePublicKey
    private var sending: DERPClient
    private var receiving: DERPClient
    private var outcome = Outcome()
    private var pingedAt: UInt64?

    private init(_ sender: consuming OwnedDescriptor, _ receiver: consuming OwnedDescriptor) {
        self.sender = sender
        self.receiver = receiver
        var system = SystemRandomNumberGenerator()
        let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
        let keys = (PrivateKey(using: &system), PrivateKey(using: &system))
        receiverKey = keys.1.nodePublicKey
        sending = DERPClient(privateKey: keys.0, random: SecureGenerator(seededBy: &system), now: now)
        receiving = DERPClient(privateKey: keys.1, random: SecureGenerator(seededBy: &system), now: now)
    }

    private mutating func loop() -> Outcome {
        let end = Clock.monotonicNanoseconds() + Self.limit
        do {
            try Descriptor.setNonBlocking(sender.number)
            try Descriptor.setNonBlocking(receiver.number)
            while !(outcome.canExchange && outcome.roundTrip != nil) {
                let now = Clock.monotonicNanoseconds()
                guard now < end else {
                    outcome.error = "the relay did not answer within five seconds"
                    return outcome
                }
                try step(Instant(nanoseconds: now))
                var polls = [
                    pollfd(fd: sender.number, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: receiver.number, events: Int16(POLLIN), revents: 0),
                ]
                // Half a second: then the packet is sent again, for the receiver may have logged in after it.
                if poll(&polls, 2, 500) == 0, sending.isReady { exchange() }
                try Self.read(sender.number, &sending)
                try Self.read(receiver.number, &receiving)
            }
        } catch {
            outcome.error = "\(error)"
        }
        return outcome
    }

    private mutating func step(_ now: Instant) throws {
        while let event = try sending.nextEvent(now: now) {
            switch event {
            case .ready:
                pingedAt = Clock.monotonicNanoseconds()
                sending.ping(1)
                exchange()
            case .pong:
                let elapsed = Clock.monotonicNanoseconds() - (pingedAt ?? 0)
                outcome.roundTrip = .nanoseconds(Int64(elapsed))
            default: break
            }
        }
        while let event = try receiving.nextEvent(now: now) {
            switch event {
            case .ready: exchange()
            case .packet: outcome.canExchange = true
            default: break
            }
        }
        Self.write(sender.number, &sending)
        Self.write(receiver.number, &receiving)
    }

    private mutating func exchange() {
        let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
        _ = sending.send(Self.payload.span.bytes, to: receiverKey, now: now)
        Self.write(sender.number, &sending)
    }

    private static func read(_ number: Int32, _ client: inout DERPClient) throws {
        var isClosed = false
        client.withInputSpace { space in
            let count = recv(number, space.baseAddress, space.count, 0)
            isClosed = count == 0
            return max(0, count)
        }
        if isClosed { throw CommandError("the relay closed the connection") }
    }

    private static func write(_ number: Int32, _ client: inout DERPClient) {
        while client.hasOutput {
            let count = client.withOutput { bytes in
                bytes.withUnsafeBytes { send(number, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            }
            guard count > 0 else { return }
            client.consumeOutput(count)
        }
    }
}
