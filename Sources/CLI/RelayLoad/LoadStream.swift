// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import TLS

/// Bytes of a connection, sealed or not. Blocking.
struct LoadStream {
    let descriptor: Int32
    let session: TLSSession?
    /// What was read and not asked for.
    private var inbox: [UInt8] = []
    private var buffer = [UInt8](repeating: 0, count: 4_096)
    private var plain: [UInt8] = []

    init(_ descriptor: Int32, session: TLSSession?) {
        self.descriptor = descriptor
        self.session = session
        if session != nil { plain = [UInt8](repeating: 0, count: buffer.count + TLSSession.heldBytes) }
    }

    mutating func write(_ bytes: some Sequence<UInt8>) throws {
        guard let session else { return try send(Array(bytes)) }
        if session.phase == .handshake { inbox += try take(0) }
        while session.phase == .handshake { inbox += try take(try receive()) }
        var sealed: [UInt8] = []
        _ = Array(bytes).withUnsafeBytes { session.seal($0, output: &sealed) }
        try send(sealed)
    }

    /// At least one byte.
    mutating func read() throws -> [UInt8] {
        var result = inbox
        inbox = []
        while result.isEmpty {
            let count = try receive()
            result = session == nil ? Array(buffer[..<count]) : try take(count)
        }
        return result
    }

    /// Everything up to an empty line.
    mutating func readHead() throws -> [UInt8] {
        var head: [UInt8] = []
        while true {
            head += try read()
            let end = (3..<max(3, head.count)).first { head[($0 - 3)...$0].elementsEqual([13, 10, 13, 10]) }
            if let end {
                inbox = Array(head[(end + 1)...])
                return Array(head[...end])
            }
            guard head.count < 8_192 else {
                throw LoadConnection.Failed(description: "no answer to the upgrade")
            }
        }
    }

    private mutating func receive() throws -> Int {
        let count = Glibc.read(descriptor, &buffer, buffer.count)
        guard count > 0 else {
            throw LoadConnection.Failed(description: "the relay closed the connection at login")
        }
        return count
    }

    /// What the first bytes of the buffer say.
    private mutating func take(_ count: Int) throws -> [UInt8] {
        guard let session else { return [] }
        var answer: [UInt8] = []
        let length = buffer.withUnsafeBytes { sealed in
            plain.withUnsafeMutableBytes {
                session.receive(UnsafeRawBufferPointer(rebasing: sealed[..<count]), into: $0, output: &answer)
            }
        }
        if !answer.isEmpty { try send(answer) }
        guard !session.isOver else {
            throw LoadConnection.Failed(description: "TLS: \(session.failure ?? "the relay ended it")")
        }
        return Array(plain[..<length])
    }

    private func send(_ bytes: [UInt8]) throws {
        try bytes.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
    }
}
