// SPDX-License-Identifier: Apache-2.0

internal import CNIOBoringSSL

/// One side of one TLS connection: sealed bytes in, plain bytes out, and back. No I/O: what is to be sent is
/// appended to the caller's array, all at once. RFC 8446, RFC 5246.
///
/// It holds no buffer between two calls but the record that was begun. One owner at a time, who may be another one
/// later: it belongs to whoever has the connection.
public final class TLSSession: @unchecked Sendable {  // see above: never used by two threads at a time
    /// How far the connection is.
    public enum Phase: Hashable, Sendable {
        /// The peers do not know each other's keys yet.
        case handshake
        case open
        /// The peer said that it is done.
        case ended
        /// It broke the rules; what it is told about that is in the output.
        case failed
    }

    /// Bytes of a record that was begun: the longest one, header and expansion included. RFC 5246 §6.2.3.
    public static let heldBytes = 5 + (1 << 14) + 2_048
    /// Plain bytes of the longest record. RFC 8446 §5.1.
    public static let recordBytes = 1 << 14
    /// What sealing adds to a record at most, for arrays that are to grow once only.
    private static let overheadBytes = 64

    /// Where BoringSSL finds the bytes of a call, which it reads and writes through a BIO.
    private struct Wires {
        var input = UnsafeRawBufferPointer(start: nil, count: 0)
        var output: UnsafeMutablePointer<[UInt8]>?
    }

    private let session: OpaquePointer
    private let wires: UnsafeMutablePointer<Wires>
    /// How far the connection is.
    public private(set) var phase = Phase.handshake
    private var failureCode: UInt32 = 0

    /// Begins a connection; nil without memory. A client speaks first, after a `receive` of nothing.
    public init?(_ context: TLSContext) {
        guard let session = SSL_new(context.context) else { return nil }
        guard let bio = BIO_new(Self.method) else {
            SSL_free(session)
            return nil
        }
        self.session = session
        wires = .allocate(capacity: 1)
        wires.initialize(to: Wires())
        BIO_set_data(bio, wires)
        BIO_set_init(bio, 1)
        SSL_set_bio(session, bio, bio)
        if context.isServer { SSL_set_accept_state(session) } else { SSL_set_connect_state(session) }
        // What only a handshake needs is given back after it.
        SSL_set_shed_handshake_config(session, 1)
    }

    deinit {
        SSL_free(session)
        wires.deallocate()
    }

    /// Whether nothing comes and nothing can be sent any more.
    public var isOver: Bool { phase == .ended || phase == .failed }

    /// Why it failed, in BoringSSL's words.
    public var failure: String? {
        guard phase == .failed else { return nil }
        return ERR_reason_error_string(failureCode).map { String(cString: $0) } ?? "broken"
    }

    /// Takes all of `sealed`, and writes what it says to the start of `plain`: how many bytes, is returned. What the
    /// peer must be answered at once is appended to `output`. Precondition: `plain` has room for as many bytes and
    /// `heldBytes` more.
    public func receive(
        _ sealed: UnsafeRawBufferPointer, into plain: UnsafeMutableRawBufferPointer, output: inout [UInt8]
    ) -> Int {
        precondition(plain.count >= sealed.count + Self.heldBytes, "a record that was begun may end here")
        var count = 0
        connect(sealed, &output) {
            while !isOver {
                ERR_clear_error()
                let step = SSL_read(
                    session, plain.baseAddress! + count, Int32(clamping: plain.count - count))
                guard step > 0 else {
                    note(step)
                    break
                }
                count += Int(step)
            }
        }
        if phase == .handshake, SSL_in_init(session) == 0 { phase = .open }
        return count
    }

    /// Appends the records for `plain` to `output`. False, and nothing is sent, when the connection is not open.
    public func seal(_ plain: UnsafeRawBufferPointer, output: inout [UInt8]) -> Bool {
        guard phase == .open else { return false }
        guard !plain.isEmpty else { return true }
        let records = (plain.count + Self.recordBytes - 1) / Self.recordBytes
        output.reserveCapacity(output.count + plain.count + records * Self.overheadBytes)
        let empty = UnsafeRawBufferPointer(start: nil, count: 0)
        connect(empty, &output) {
            ERR_clear_error()
            var offset = 0
            // BoringSSL counts in 32 bits.
            while offset < plain.count, phase == .open {
                let step = SSL_write(
                    session, plain.baseAddress! + offset, Int32(clamping: plain.count - offset))
                if step > 0 { offset += Int(step) } else { note(step) }
            }
        }
        return phase == .open
    }

    /// Says that nothing more follows; nothing does. RFC 8446 §6.1.
    public func end(output: inout [UInt8]) {
        if phase == .open || phase == .ended {
            connect(UnsafeRawBufferPointer(start: nil, count: 0), &output) {
                ERR_clear_error()
                SSL_shutdown(session)
            }
        }
        if !isOver { phase = .ended }
    }

    /// What a call means that gave nothing.
    private func note(_ result: Int32) {
        switch SSL_get_error(session, result) {
        case SSL_ERROR_WANT_READ: break
        case SSL_ERROR_ZERO_RETURN: phase = .ended
        default:
            failureCode = ERR_peek_error()
            phase = .failed
        }
        ERR_clear_error()
    }

    // MARK: Bytes

    private func connect(_ input: UnsafeRawBufferPointer, _ output: inout [UInt8], _ body: () -> Void) {
        withUnsafeMutablePointer(to: &output) { output in
            wires.pointee = Wires(input: input, output: output)
            body()
            wires.pointee = Wires()
        }
    }

    private static func wires(_ bio: OpaquePointer?) -> UnsafeMutablePointer<Wires> {
        BIO_get_data(bio)!.assumingMemoryBound(to: Wires.self)
    }

    /// How BoringSSL reads and writes; made once and never changed.
    nonisolated(unsafe) private static let method: OpaquePointer? = {
        guard let method = BIO_meth_new(0, nil) else { return nil }
        BIO_meth_set_read(method) { bio, bytes, count in
            let wires = TLSSession.wires(bio)
            let input = wires.pointee.input
            let taken = min(Int(count), input.count)
            BIO_clear_retry_flags(bio)
            guard taken > 0, let bytes else {
                BIO_set_retry_read(bio)
                return -1
            }
            UnsafeMutableRawPointer(bytes).copyMemory(from: input.baseAddress!, byteCount: taken)
            wires.pointee.input = UnsafeRawBufferPointer(rebasing: input[taken...])
            return Int32(taken)
        }
        BIO_meth_set_write(method) { bio, bytes, count in
            guard let output = TLSSession.wires(bio).pointee.output, let bytes else { return -1 }
            output.pointee.append(contentsOf: UnsafeRawBufferPointer(start: bytes, count: Int(count)))
            return count
        }
        BIO_meth_set_ctrl(method) { _, command, _, _ in command == BIO_CTRL_FLUSH ? 1 : 0 }
        return method
    }()
}
