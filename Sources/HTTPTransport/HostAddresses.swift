// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import NIOCore
internal import NIOPosix

/// The addresses of a host, for NIO to race (RFC 8305): those that `ConnectOptions` name, and what its name says of
/// the other family. The families are asked for apart, each on a thread of its own, so that neither a resolver that
/// is silent about one of them nor another host's name delays the attempt.
struct HostAddresses: NIOPosix.Resolver, Sendable {
    let loop: any EventLoop
    let options: ConnectOptions

    func initiateAQuery(host: String, port: Int) -> EventLoopFuture<[SocketAddress]> {
        addresses(host, port, v4: true)
    }

    func initiateAAAAQuery(host: String, port: Int) -> EventLoopFuture<[SocketAddress]> {
        addresses(host, port, v4: false)
    }

    /// A thread that asks the system cannot be stopped; what it finds is dropped.
    func cancelQueries() {}

    private func addresses(_ host: String, _ port: Int, v4: Bool) -> EventLoopFuture<[SocketAddress]> {
        guard v4 ? options.usesV4 : options.usesV6 else { return loop.makeSucceededFuture([]) }
        let isWanted = { (address: SocketAddress) in (address.protocol == .inet) == v4 }
        let known = options.addresses.compactMap { try? SocketAddress(ipAddress: $0, port: port) }
            .filter(isWanted)
        guard known.isEmpty else { return loop.makeSucceededFuture(known) }
        // An address needs no resolver.
        if let literal = try? SocketAddress(ipAddress: host, port: port) {
            return loop.makeSucceededFuture([literal].filter(isWanted))
        }
        let promise = loop.makePromise(of: [SocketAddress].self)
        do {
            try DedicatedThread(name: "name-lookup") {
                let found = LinuxIO.Resolver.lookUp(host, port: UInt16(clamping: port), v4: v4)
                promise.succeed(found.compactMap { try? SocketAddress($0) })
            }.detach()
        } catch {
            promise.fail(error)
        }
        return promise.futureResult
    }
}

extension SocketAddress {
    /// The address as the kernel gave it, without its zone.
    fileprivate init(_ raw: KernelAddress) throws {
        var bytes = ByteBuffer()
        if raw.isV4 {
            bytes.writeInteger(UInt32(truncatingIfNeeded: raw.low))
        } else {
            bytes.writeMultipleIntegers(raw.high, raw.low)
        }
        try self.init(packedIPAddress: bytes, port: Int(raw.port))
    }
}
