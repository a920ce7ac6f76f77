// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
internal import Synchronization

/// A WireGuard interface of its own: a TUN device, UDP sockets of both families, and one thread that moves
/// packets between them. What `coder wireguard` runs; knows nothing of netstack, discovery or relays. The
/// owner configures it through `perform`; any thread may call.
///
/// The device exists from `init` to `close`. Traffic flows while its link is up (`ip link set NAME up`).
public final class WireGuardTunnel: Sendable {
    /// What a line of the log is worth.
    public enum Importance: Sendable {
        /// What happens to the link.
        case detail
        /// A feature of the kernel that is missing, so that packets cost more.
        case notice
        /// Something that does not work.
        case error
    }

    /// Choices that are made once.
    public struct Options: Sendable {
        /// Largest inner packet that the device begins with; `ip link set NAME mtu` changes it later.
        public var mtuBytes = 1420
        /// What to ask the TUN device for; less is granted by older kernels.
        public var deviceOffload = TUNDevice.Offload.all
        /// Whether to send with `UDP_SEGMENT`.
        public var usesSegmentation = true
        /// Packets or super-packets that wait for us in the kernel. Less than the default's 500 loses packets whenever
        /// the thread waits for its turn.
        public var queueLength = 500
        /// Whether to let the kernel glue datagrams together (`UDP_GRO`).
        public var usesCoalescing = true
        /// One line for each feature that is missing, and for what happens to the link.
        public var log: @Sendable (Importance, String) -> Void = { _, _ in }
        /// Called once when the tunnel ended by itself, because the device was deleted.
        public var ended: @Sendable () -> Void = {}
        package var limits = WireGuard.Limits.tunnel
        package var backEnd = WireGuard.PacketCipher.preferred

        /// Who computes the AEAD: `avx512`, `boringssl` or `sodium`; false when this machine cannot.
        public mutating func choose(backEnd name: String) -> Bool {
            guard let found = WireGuard.PacketCipher.BackEnd(rawValue: name),
                WireGuard.PacketCipher.BackEnd.allCases.contains(found)
            else { return false }
            backEnd = found
            return true
        }

        /// The defaults.
        public init() {}
    }

    /// The device's name, as the kernel gave it.
    public let name: String
    private let mailbox: TunnelMailbox
    private let thread: DedicatedThread
    private let isClosed = Mutex(false)

    /// Creates the TUN device in the caller's network namespace and starts the thread. Needs CAP_NET_ADMIN.
    public init(name: String, options: Options = Options()) throws(SystemError) {
        let mailbox = try TunnelMailbox()
        let loop = try TunnelLoop(name: name, options: options, mailbox: mailbox)
        self.name = loop.tun.name
        self.mailbox = mailbox
        let box = TunnelBox(loop)
        thread = try DedicatedThread(name: "wireguard") {
            guard var loop = box.take() else { return }
            loop.run()
        }
    }

    deinit { close() }

    /// Runs `body` on the tunnel's thread between two bursts and waits for it. Nil when the tunnel has ended.
    /// Do not call from `body` or from the log.
    package func perform<R: Sendable>(_ body: @escaping @Sendable (inout TunnelLoop) -> R) -> R? {
        guard let done = try? WakeUp() else { return nil }
        let result = TunnelResult<R>()
        let message = TunnelMailbox.Message(
            run: { loop in
                result.set(body(&loop))
                done.signal()
            }, cancel: { done.signal() })
        guard mailbox.post(message) else { return nil }
        done.wait()
        return result.take()
    }

    /// Ends the tunnel and deletes the device. Returns when both are done.
    public func close() {
        let isFirst = isClosed.withLock { isClosed in
            defer { isClosed = true }
            return !isClosed
        }
        guard isFirst else { return }
        mailbox.stop()
        thread.join()
    }
}

/// Hands the loop to its thread.
private final class TunnelBox: Sendable {
    private let cell: Mutex<TunnelLoop?>

    init(_ loop: consuming sending TunnelLoop) { cell = Mutex(loop) }

    func take() -> TunnelLoop? { cell.withLock { $0.take() } }
}

/// What `perform` waits for.
private final class TunnelResult<R: Sendable>: Sendable {
    private let value = Mutex<R?>(nil)

    func set(_ new: R) { value.withLock { $0 = new } }
    func take() -> R? { value.withLock { $0.take() } }
}

extension WireGuard.Limits {
    /// Of an interface that may be a gateway of many: handshakes may take three fifths of the thread before cookies
    /// are asked for, on this machine. `wireguard-go` needs all of two cores for fewer.
    static let tunnel: Self = {
        var limits = Self()
        var fastest = UInt64.max
        let point = WireGuard.Curve.publicKey(of: WireGuard.Bytes32())
        for _ in 0..<5 {
            let begin = Clock.monotonicNanoseconds()
            _ = WireGuard.Curve.shared(WireGuard.Bytes32(), point)
            fastest = min(fastest, max(Clock.monotonicNanoseconds() - begin, 1_000))
        }
        // Answering costs three multiplications by a point and one by the base point, which is cheaper, and hashing.
        limits.handshakeRate = max(limits.handshakeRate, 600_000_000 / (4 * fastest))
        return limits
    }()
}
