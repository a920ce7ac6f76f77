// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

extension KernelHarness {
    /// A socket address of the kernel's kind.
    static func withSocketAddress<R>(
        _ address: SocketAddress, _ body: (UnsafePointer<sockaddr>, socklen_t) -> R
    ) -> R {
        if address.ip.isV4 {
            var raw = sockaddr_in()
            raw.sin_family = sa_family_t(AF_INET)
            raw.sin_port = address.port.bigEndian
            raw.sin_addr.s_addr = address.ip.v4.bigEndian
            return withUnsafePointer(to: &raw) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
        }
        var raw = sockaddr_in6()
        raw.sin6_family = sa_family_t(AF_INET6)
        raw.sin6_port = address.port.bigEndian
        address.ip.withBytes { bytes in
            withUnsafeMutableBytes(of: &raw.sin6_addr) { $0.copyMemory(from: bytes) }
        }
        return withUnsafePointer(to: &raw) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_in6>.size))
            }
        }
    }

    private func makeSocket() throws -> Int32 {
        let family = scenario.isV6 ? AF_INET6 : AF_INET
        let number = socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard number >= 0 else { throw SystemError(call: "socket") }
        // The machine's default may be something else; comparisons are with CUBIC (TCP_CONGESTION is 13).
        _ = setsockopt(number, Int32(IPPROTO_TCP), 13, "cubic", 5)
        if var size = scenario.kernelReceiveBuffer {
            _ = setsockopt(number, SOL_SOCKET, SO_RCVBUF, &size, socklen_t(MemoryLayout<Int32>.size))
        }
        return number
    }

    /// Opens the connection from the side that the case says, to `port`.
    mutating func open(port: UInt16, kernelListens: Bool = true, stackListens: Bool = true) throws {
        if scenario.stackOpens {
            if kernelListens {
                listener = try makeSocket()
                let bound = Self.withSocketAddress(SocketAddress(kernelAddress, port: port)) {
                    bind(listener, $0, $1)
                }
                guard bound == 0, listen(listener, 8) == 0 else { throw SystemError(call: "listen") }
            }
            id = try stack.connect(to: SocketAddress(kernelAddress, port: port), now: Self.now)
        } else {
            if stackListens { stack.listen(port) }
            socketNumber = try makeSocket()
            _ = Self.withSocketAddress(SocketAddress(stackAddress, port: port)) {
                connect(socketNumber, $0, $1)
            }
        }
    }

    /// Runs until both sides are done, something broke, or the time is up.
    mutating func run(seconds: UInt64) throws {
        let limit = start + .seconds(seconds)
        while Self.now < limit, outcome.failure == nil {
            try turn()
            if outcome.closed != nil, kernelSide.sawEnd || outcome.kernelError != 0 || socketNumber < 0 {
                break
            }
            if scenario.reset != .none, stackSide.read >= 100_000, kernelSide.read >= 100_000 { try cutOff() }
        }
        outcome.seconds = Self.now.since(start).inSeconds
        outcome.stackRead = stackSide.read
        outcome.kernelRead = kernelSide.read
        outcome.stackSawEnd = stackSide.sawEnd
        outcome.kernelSawEnd = kernelSide.sawEnd
        outcome.counters = stack.counters
        outcome.connectionsLeft = stack.connectionCount
    }

    private mutating func cutOff() throws {
        if scenario.reset == .byStack, let id {
            stack.abort(id)
            self.id = nil
            outcome.closed = .reset
        } else if scenario.reset == .byKernel, socketNumber >= 0, outcome.closed == nil, !kernelSide.sawEnd {
            var linger = Glibc.linger(l_onoff: 1, l_linger: 0)
            setsockopt(
                socketNumber, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<Glibc.linger>.size))
            close(socketNumber)
            socketNumber = -1
            listener = -1
        }
    }

    /// Runs `scenario` on a thread of its own, in a namespace of its own.
    static func perform(
        _ scenario: KernelCase, seconds: UInt64 = 60, kernelListens: Bool = true, stackListens: Bool = true
    ) async throws -> KernelOutcome {
        try await withCheckedThrowingContinuation { continuation in
            do {
                let thread = try DedicatedThread(name: "kernel interop") {
                    do {
                        var harness = try KernelHarness(scenario)
                        try harness.open(
                            port: 8_080, kernelListens: kernelListens, stackListens: stackListens)
                        try harness.run(seconds: seconds)
                        continuation.resume(returning: harness.outcome)
                    } catch {
                        continuation.resume(throwing: error)
                    }
                }
                thread.detach()
            } catch {
                continuation.resume(throwing: error)
            }
        }
    }
}

/// The stack against the Linux kernel's TCP, through a TUN device.
@Suite(.serialized, .enabled(if: getuid() == 0, "needs root for a network namespace and a TUN device"))
struct NetstackKernelTests {
    static let cases: [KernelCase] = [
        KernelCase(name: "v4, stack opens, 50 MiB", bytesFromStack: 50 << 20, bytesFromKernel: 1 << 20),
        KernelCase(
            name: "v6, kernel opens, 50 MiB", isV6: true, stackOpens: false, bytesFromStack: 1 << 20,
            bytesFromKernel: 50 << 20),
        KernelCase(name: "v6, stack opens, both ways", isV6: true, mtu: 1_400),
        KernelCase(name: "v4, kernel opens, both ways", stackOpens: false, mtu: 1_400),
        KernelCase(name: "v6, jumbo", isV6: true, mtu: 9_000),
        KernelCase(name: "1 % loss, stack opens", loss: 0.01, delay: .milliseconds(2)),
        KernelCase(
            name: "1 % loss, kernel opens, v6", isV6: true, stackOpens: false, loss: 0.01,
            delay: .milliseconds(2)),
        KernelCase(
            name: "10 % loss", loss: 0.1, bytesFromStack: 400_000, bytesFromKernel: 400_000),
        KernelCase(
            name: "reordering", reordering: 0.1, delay: .milliseconds(2), bytesFromStack: 2 << 20,
            bytesFromKernel: 2 << 20),
        KernelCase(
            name: "reordering and loss, v6", isV6: true, stackOpens: false, loss: 0.02, reordering: 0.05,
            delay: .milliseconds(2), bytesFromStack: 1 << 20, bytesFromKernel: 1 << 20),
        KernelCase(name: "slow kernel reader", bytesFromStack: 12 << 20, kernelSleeps: .milliseconds(1_500)),
        KernelCase(name: "slow stack reader", bytesFromKernel: 12 << 20, stackSleeps: .milliseconds(1_500)),
        KernelCase(
            name: "slow readers, loss, v6", isV6: true, loss: 0.02, bytesFromStack: 8 << 20,
            bytesFromKernel: 8 << 20, stackSleeps: .milliseconds(900), kernelSleeps: .milliseconds(1_200)),
        KernelCase(name: "stack closes first", bytesFromStack: 0, bytesFromKernel: 3 << 20),
        KernelCase(
            name: "kernel closes first", isV6: true, stackOpens: false, bytesFromStack: 3 << 20,
            bytesFromKernel: 0),
        KernelCase(name: "nothing but the handshake", bytesFromStack: 0, bytesFromKernel: 0),
    ]

    /// Who opens, who closes first, loss, windows, MTU, family: all of them with `SIM_SEEDS`, else every seventh.
    static let matrix: [KernelCase] = {
        var all: [KernelCase] = []
        for isV6 in [false, true] {
            for stackOpens in [true, false] {
                for stackCloses in [true, false] {
                    for loss in [0, 0.01] {
                        for smallWindows in [false, true] {
                            for mtu in [1_280, 1_400, 9_000] {
                                let name = [
                                    isV6 ? "v6" : "v4", stackOpens ? "stack opens" : "kernel opens",
                                    stackCloses ? "stack closes" : "kernel closes", "loss \(loss)",
                                    smallWindows ? "small windows" : "large windows", "MTU \(mtu)",
                                ]
                                var entry = KernelCase(name: name.joined(separator: ", "))
                                entry.isV6 = isV6
                                entry.stackOpens = stackOpens
                                entry.bytesFromStack = stackCloses ? 200_000 : 1 << 20
                                entry.bytesFromKernel = stackCloses ? 1 << 20 : 200_000
                                entry.loss = loss
                                entry.mtu = mtu
                                entry.kernelReceiveBuffer = smallWindows ? 16_000 : nil
                                entry.stackReceiveBuffer = smallWindows ? 16_000 : nil
                                all.append(entry)
                            }
                        }
                    }
                }
            }
        }
        guard getenv("SIM_SEEDS") == nil else { return all }
        return all.enumerated().filter { $0.offset % 7 == 0 }.map(\.element)
    }()

    @Test(arguments: cases + matrix)
    func streamsAreExact(_ scenario: KernelCase) async throws {
        let outcome = try await KernelHarness.perform(scenario)
        #expect(outcome.failure == nil)
        #expect(outcome.kernelRead == scenario.bytesFromStack)
        #expect(outcome.stackRead == scenario.bytesFromKernel)
        #expect(!outcome.isWrong)
        #expect(outcome.stackSawEnd && outcome.kernelSawEnd)
        #expect(outcome.closed == .done)
        #expect(outcome.kernelError == 0)
        #expect(outcome.counters.badChecksum == 0 && outcome.counters.malformed == 0)
    }

    @Test(arguments: [false, true])
    func resetByStackReachesKernel(v6: Bool) async throws {
        let scenario = KernelCase(name: "abort", isV6: v6, reset: .byStack)
        let outcome = try await KernelHarness.perform(scenario)
        #expect(outcome.kernelError == ECONNRESET)
        #expect(!outcome.isWrong)
    }

    @Test(arguments: [false, true])
    func resetByKernelReachesStack(v6: Bool) async throws {
        let scenario = KernelCase(name: "linger 0", isV6: v6, stackOpens: false, reset: .byKernel)
        let outcome = try await KernelHarness.perform(scenario)
        #expect(outcome.closed == .reset)
        #expect(!outcome.isWrong)
    }

    @Test(arguments: [false, true])
    func closedPortsRefuse(v6: Bool) async throws {
        let out = KernelCase(name: "refused by kernel", isV6: v6)
        let first = try await KernelHarness.perform(out, seconds: 5, kernelListens: false)
        #expect(first.closed == .refused)
        let into = KernelCase(name: "refused by stack", isV6: v6, stackOpens: false)
        let second = try await KernelHarness.perform(into, seconds: 2, stackListens: false)
        #expect(second.kernelError == ECONNREFUSED)
    }
}
