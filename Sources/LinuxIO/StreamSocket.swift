// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// Stream sockets that never block, for forwards.
public enum StreamSocket {
    /// Starts to connect; the descriptor becomes writable when it is decided, see `outcome`.
    public static func connect(to address: KernelAddress) throws(SystemError) -> OwnedDescriptor {
        var raw = address.raw
        return try own(clinux_tcp_connect(&raw), "connect")
    }

    /// Connects to a unix socket. Precondition: no NUL in `path`.
    public static func connect(toPath path: [UInt8]) throws(SystemError) -> OwnedDescriptor {
        try own((path + [0]).withUnsafeBufferPointer { clinux_unix_connect(cString($0)) }, "connect")
    }

    /// Throws what a started connect failed with.
    public static func outcome(_ number: Int32) throws(SystemError) {
        let code = clinux_connect_outcome(number)
        guard code == 0 else { throw SystemError(call: "connect", code: -code) }
    }

    /// Listens on a TCP address. `bothFamilies`: `[::]` takes IPv4 too.
    public static func listen(
        on address: KernelAddress, bothFamilies: Bool
    ) throws(SystemError) -> OwnedDescriptor {
        var raw = address.raw
        return try own(clinux_tcp_listen(&raw, bothFamilies ? 1 : 0), "bind")
    }

    /// Listens on a unix socket that only its owner may use. Precondition: no NUL in `path`.
    public static func listen(onPath path: [UInt8]) throws(SystemError) -> OwnedDescriptor {
        try own((path + [0]).withUnsafeBufferPointer { clinux_unix_listen(cString($0)) }, "bind")
    }

    /// The address that a socket is bound to.
    public static func localAddress(_ number: Int32) throws(SystemError) -> KernelAddress {
        var raw = clinux_address()
        let code = clinux_local_address(number, &raw)
        guard code == 0 else { throw SystemError(call: "getsockname", code: -code) }
        return KernelAddress(raw)
    }

    /// Takes a waiting connection; nil when there is none.
    public static func accept(_ listener: Int32) -> AcceptedSocket? {
        do { return try acceptOrExhausted(listener) } catch { return nil }
    }

    /// Takes a waiting connection; nil when there is none, or it is gone again. Throws when the system has no
    /// descriptor or memory left for it: it goes on waiting then, and the listener stays readable.
    public static func acceptOrExhausted(_ listener: Int32) throws(SystemError) -> AcceptedSocket? {
        var raw = clinux_address()
        let number = clinux_accept(listener, &raw)
        guard number >= 0 else {
            guard [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(-number) else { return nil }
            throw SystemError(call: "accept", code: -number)
        }
        return AcceptedSocket(descriptor: OwnedDescriptor(taking: number), peer: KernelAddress(raw))
    }

    private static func own(_ number: Int32, _ call: String) throws(SystemError) -> OwnedDescriptor {
        guard number >= 0 else { throw SystemError(call: call, code: -number) }
        return OwnedDescriptor(taking: number)
    }

    private static func cString(_ bytes: UnsafeBufferPointer<UInt8>) -> UnsafePointer<CChar> {
        UnsafeRawPointer(bytes.baseAddress!).assumingMemoryBound(to: CChar.self)
    }
}

/// A connection that came in.
public struct AcceptedSocket: ~Copyable, Sendable {
    /// The connection.
    public let descriptor: OwnedDescriptor
    /// Who it is; zero for unix sockets.
    public let peer: KernelAddress

    /// The connection alone.
    public consuming func take() -> OwnedDescriptor { descriptor }
}
