// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// A listener on behalf of the client: a TCP port, a unix socket, the socket of ssh-agent, or an X display.
final class ForwardListener {
    enum Target: Hashable {
        case tcp(host: String, port: UInt32)
        case unix(path: ByteString)
        case agent(path: ByteString)
        case x11(display: UInt16, isSingle: Bool)
    }

    let target: Target
    let descriptor: OwnedDescriptor
    /// A directory that goes away with the socket.
    private let ownDirectory: String?
    /// The file of our socket: its path may be a successor's when we end.
    private let file: FileIdentity?
    /// Called when it ends.
    var atEnd: (() -> Void)?

    init(_ target: Target, _ descriptor: consuming OwnedDescriptor, ownDirectory: String? = nil) {
        self.target = target
        self.descriptor = descriptor
        self.ownDirectory = ownDirectory
        file = Self.path(target).flatMap { FileIdentity($0) }
    }

    deinit {
        if let path = Self.path(target), let file, FileIdentity(path) == file { unlink(path) }
        if let ownDirectory { rmdir(ownDirectory) }
        atEnd?()
    }

    var isDisplay: Bool { if case .x11 = target { true } else { false } }

    private static func path(_ target: Target) -> String? {
        switch target {
        case .unix(let path), .agent(let path): path.description
        case .tcp, .x11: nil
        }
    }

    /// Which file a path leads to.
    private struct FileIdentity: Equatable {
        let device: dev_t
        let inode: ino_t

        init?(_ path: String) {
            var status = stat()
            guard lstat(path, &status) == 0 else { return nil }
            (device, inode) = (status.st_dev, status.st_ino)
        }
    }

    /// Listens as `tcpip-forward` asks; names are not looked up.
    static func tcp(
        host: String, port: UInt32
    ) throws(SystemError) -> (listener: ForwardListener, port: UInt32) {
        guard let port = UInt16(exactly: port) else { throw SystemError(call: "bind", code: EINVAL) }
        let address: KernelAddress
        var both = false
        switch host {
        case "", "*":
            address = .any(v4: false, port: port)
            both = true
        case "localhost": address = .loopback(v4: true, port: port)
        default:
            guard let literal = AddressText.parse(host, port: port) else {
                throw SystemError(call: "bind", code: EADDRNOTAVAIL)
            }
            address = literal
        }
        let descriptor: OwnedDescriptor
        do {
            descriptor = try StreamSocket.listen(on: address, bothFamilies: both)
        } catch let error where both && error.code == EAFNOSUPPORT {
            descriptor = try StreamSocket.listen(on: .any(v4: true, port: port), bothFamilies: false)
        }
        let bound = UInt32(try StreamSocket.localAddress(descriptor.number).port)
        return (ForwardListener(.tcp(host: host, port: bound), descriptor), bound)
    }

    /// Listens on a unix socket: its directories are made, an old socket is removed (`agent.md` §6).
    static func unix(path: ByteString) throws(SystemError) -> ForwardListener {
        guard path.isCString, path.bytes.first == UInt8(ascii: "/") else {
            throw SystemError(call: "bind", code: EINVAL)
        }
        let text = path.description
        // What exists is no error; what cannot be made fails at bind.
        for slash in text.indices.dropFirst() where text[slash] == "/" {
            mkdir(String(text[..<slash]), 0o700)
        }
        var status = stat()
        if lstat(text, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK { unlink(text) }
        return ForwardListener(.unix(path: path), try StreamSocket.listen(onPath: path.bytes))
    }

    /// Makes the socket of ssh-agent in a private directory.
    static func agent(number: UInt64) throws(SystemError) -> ForwardListener {
        let directory = try PrivateName.directory("/tmp/coder-ssh-agent.")
        let path = ByteString("\(directory)/agent.\(number)")
        do {
            return ForwardListener(
                .agent(path: path), try StreamSocket.listen(onPath: path.bytes), ownDirectory: directory)
        } catch {
            rmdir(directory)
            throw error
        }
    }

    /// The channel that carries a connection which came in here.
    func channelType(for peer: KernelAddress) -> ChannelType {
        switch target {
        case .tcp(let host, let port):
            .forwardedTCPIP(
                listenHost: host, listenPort: port, originHost: AddressText.text(of: peer),
                originPort: UInt32(peer.port))
        case .unix(let path): .forwardedStreamLocal(path: path)
        case .agent: .agent
        case .x11:
            .x11(originHost: AddressText.text(of: peer), originPort: UInt32(peer.port))
        }
    }
}

/// Addresses in text, by the C library, without look-up.
enum AddressText {
    static func parse(_ text: String, port: UInt16) -> KernelAddress? {
        var v4 = in_addr()
        if inet_pton(AF_INET, text, &v4) == 1 {
            return KernelAddress(
                high: 0, low: 0xffff_0000_0000 | UInt64(UInt32(bigEndian: v4.s_addr)), port: port, isV4: true)
        }
        var v6 = in6_addr()
        guard inet_pton(AF_INET6, text, &v6) == 1 else { return nil }
        return withUnsafeBytes(of: v6) { bytes in
            KernelAddress(
                high: UInt64(bigEndian: bytes.loadUnaligned(as: UInt64.self)),
                low: UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self)), port: port,
                isV4: false)
        }
    }

    static func text(of address: KernelAddress) -> String {
        var buffer = [CChar](repeating: 0, count: 64)
        if address.isV4 {
            var v4 = in_addr(s_addr: UInt32(truncatingIfNeeded: address.low).bigEndian)
            inet_ntop(AF_INET, &v4, &buffer, 64)
        } else {
            var halves = [address.high.bigEndian, address.low.bigEndian]
            inet_ntop(AF_INET6, &halves, &buffer, 64)
        }
        return buffer.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }
}
