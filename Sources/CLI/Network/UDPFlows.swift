// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// UDP flows of all listeners by source address. Bounded: the oldest goes when there are too many.
struct UDPFlows {
    private struct Flow {
        /// -1 while being dialled.
        var descriptor: Int32 = -1
        var waiting: [[UInt8]] = []
        var lastUsed: UInt64
    }

    /// Flows at once, datagrams that wait for a dial, and idle time.
    private static let limit = 1_024
    private static let waitingLimit = 64
    private static let idleNanoseconds: UInt64 = 120_000_000_000

    private var flows: [PortForwarder.FlowKey: Flow] = [:]
    private static let bufferBytes = 65_536

    /// Flows that can be read.
    var open: [(key: PortForwarder.FlowKey, descriptor: Int32)] {
        flows.filter { $0.value.descriptor >= 0 }.map { ($0.key, $0.value.descriptor) }
    }

    /// One datagram with its source in the kernel's form.
    static func receive(from number: Int32) -> (source: [UInt8], datagram: [UInt8])? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        var buffer = [UInt8](repeating: 0, count: bufferBytes)
        let count = withUnsafeMutableBytes(of: &storage) { bytes in
            bytes.withMemoryRebound(to: sockaddr.self) { address in
                recvfrom(number, &buffer, buffer.count, 0, address.baseAddress, &length)
            }
        }
        guard count >= 0 else { return nil }
        let source = withUnsafeBytes(of: storage) { Array($0.prefix(Int(length))) }
        return (source, Array(buffer[..<count]))
    }

    /// Sends a datagram on its flow. True when the flow is new and must be dialled.
    mutating func send(_ key: PortForwarder.FlowKey, _ datagram: [UInt8]) -> Bool {
        let now = Clock.monotonicNanoseconds()
        guard flows[key] != nil else {
            if flows.count >= Self.limit { removeOldest() }
            flows[key] = Flow(waiting: [datagram], lastUsed: now)
            return true
        }
        flows[key]?.lastUsed = now
        if let descriptor = flows[key]?.descriptor, descriptor >= 0 {
            _ = Glibc.send(descriptor, datagram, datagram.count, Int32(MSG_NOSIGNAL))
        } else if let count = flows[key]?.waiting.count, count < Self.waitingLimit {
            flows[key]?.waiting.append(datagram)
        }
        return false
    }

    /// The dial has ended; -1 for failed.
    mutating func connect(_ key: PortForwarder.FlowKey, _ descriptor: Int32) {
        guard descriptor >= 0, let waiting = flows[key]?.waiting else {
            if descriptor >= 0 { close(descriptor) }
            flows[key] = nil
            return
        }
        flows[key]?.descriptor = descriptor
        flows[key]?.waiting = []
        for datagram in waiting {
            _ = Glibc.send(descriptor, datagram, datagram.count, Int32(MSG_NOSIGNAL))
        }
    }

    /// Moves answers to the source.
    mutating func moveBack(_ key: PortForwarder.FlowKey) {
        guard let descriptor = flows[key]?.descriptor, descriptor >= 0 else { return }
        var buffer = [UInt8](repeating: 0, count: Self.bufferBytes)
        for _ in 0..<64 {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count < 0, errno == EAGAIN || errno == EINTR { break }
            guard count > 0 else {
                close(descriptor)
                flows[key] = nil
                return
            }
            key.source.withUnsafeBytes { bytes in
                bytes.withMemoryRebound(to: sockaddr.self) { address in
                    _ = sendto(key.listener, buffer, count, 0, address.baseAddress, socklen_t(bytes.count))
                }
            }
        }
        flows[key]?.lastUsed = Clock.monotonicNanoseconds()
    }

    /// Ends flows without traffic.
    mutating func expire() {
        let now = Clock.monotonicNanoseconds()
        for (key, flow) in flows where flow.lastUsed + Self.idleNanoseconds < now { remove(key) }
    }

    mutating func closeAll() { flows.keys.forEach { remove($0) } }

    private mutating func removeOldest() {
        if let oldest = flows.min(by: { $0.value.lastUsed < $1.value.lastUsed }) { remove(oldest.key) }
    }

    private mutating func remove(_ key: PortForwarder.FlowKey) {
        if let descriptor = flows.removeValue(forKey: key)?.descriptor, descriptor >= 0 { close(descriptor) }
    }
}
