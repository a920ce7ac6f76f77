// SPDX-License-Identifier: Apache-2.0

internal import CNIOBoringSSL

/// What connections of one kind share; each gets its `TLSSession` from it. A server's certificate, key and choices:
/// TLS 1.2 and newer, forward secrecy only, `http/1.1` by ALPN; no client certificates, early data or renegotiation.
/// Or a client's.
public final class TLSContext: @unchecked Sendable {  // never changes; BoringSSL locks what connections share
    /// Why two files make no server.
    public enum Failure: Error, Hashable {
        /// The file holds no certificate in PEM form.
        case noCertificate
        /// The file holds no private key in PEM form.
        case noKey
        /// The key belongs to another certificate.
        case mismatch
        /// BoringSSL has no memory, or knows no such group.
        case unusable
    }

    let context: OpaquePointer
    let isServer: Bool
    /// When the leaf certificate is void, in seconds since 1970.
    public let expiry: Int

    /// Ciphers of TLS 1.2, best first: none without forward secrecy.
    private static let ciphers = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES"
    private static let protocolName = Array("http/1.1".utf8)

    /// Reads a chain, leaf first, and the leaf's key. `groups`: names for the key agreement, best first, such as
    /// `X25519:P-256`; nil for BoringSSL's choice.
    public init(chainFile: String, keyFile: String, groups: String? = nil) throws(Failure) {
        guard let context = SSL_CTX_new(TLS_method()) else { throw .unusable }
        do throws(Failure) {
            expiry = try Self.configure(context, chainFile, keyFile, groups)
        } catch {
            SSL_CTX_free(context)
            ERR_clear_error()
            throw error
        }
        self.context = context
        isServer = true
    }

    /// A client that believes whoever answers: for tools that measure, and for tests. `groups`: see above.
    public init(believingAnyoneBy groups: String?) throws(Failure) {
        guard let context = SSL_CTX_new(TLS_method()) else { throw .unusable }
        self.context = context
        isServer = false
        expiry = 0
        guard groups.map({ SSL_CTX_set1_groups_list(context, $0) }) != 0 else { throw .unusable }
    }

    deinit { SSL_CTX_free(context) }

    private static func configure(
        _ context: OpaquePointer, _ chainFile: String, _ keyFile: String, _ groups: String?
    ) throws(Failure) -> Int {
        // Tickets carry what resumes a connection: nothing is kept here. One for each, as Go's servers send.
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_num_tickets(context, 1)
        SSL_CTX_set_alpn_select_cb(
            context,
            { _, out, outCount, offered, count, _ in TLSContext.select(out, outCount, offered, count) }, nil)
        guard SSL_CTX_set_min_proto_version(context, UInt16(TLS1_2_VERSION)) == 1,
            SSL_CTX_set_strict_cipher_list(context, ciphers) == 1,
            groups.map({ SSL_CTX_set1_groups_list(context, $0) }) != 0
        else { throw .unusable }
        guard SSL_CTX_use_PrivateKey_file(context, keyFile, SSL_FILETYPE_PEM) == 1 else { throw .noKey }
        guard SSL_CTX_use_certificate_chain_file(context, chainFile) == 1,
            let leaf = SSL_CTX_get0_certificate(context)
        else { throw .noCertificate }
        guard SSL_CTX_check_private_key(context) == 1 else { throw .mismatch }
        var expiry: Int64 = 0
        guard ASN1_TIME_to_posix(X509_get0_notAfter(leaf), &expiry) == 1 else { throw .noCertificate }
        return Int(expiry)
    }

    /// RFC 7301 §3.1: names with a length before each. A client that offers other protocols only goes on without.
    private static func select(
        _ out: UnsafeMutablePointer<UnsafePointer<UInt8>?>?, _ outCount: UnsafeMutablePointer<UInt8>?,
        _ offered: UnsafePointer<UInt8>?, _ count: UInt32
    ) -> Int32 {
        let names = UnsafeBufferPointer(start: offered, count: Int(count))
        var start = 0
        while start < names.count {
            let end = min(names.count, start + 1 + Int(names[start]))
            if names[(start + 1)..<end].elementsEqual(protocolName) {
                out?.pointee = names.baseAddress.map { $0 + start + 1 }
                outCount?.pointee = names[start]
                return SSL_TLSEXT_ERR_OK
            }
            start = end
        }
        return SSL_TLSEXT_ERR_NOACK
    }
}
