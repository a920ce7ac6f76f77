// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Logging
internal import NIOSSL
internal import Synchronization

/// Certificate and key of HTTPS listeners. When the files change they are read again: new connections get the new
/// certificate, no restart needed. Any task may use it.
final class Certificates: Sendable {
    private struct State {
        var context: NIOSSLContext
        /// When the leaf is void, in seconds since 1970.
        var expiry: Int
        var stamp: [Int]
        var checkedAt: ContinuousClock.Instant
    }

    private let chainFile: String
    private let keyFile: String
    private let curves: [NIOTLSCurve]?
    private let logger: Logger
    private let state: Mutex<State>

    /// How often the files are looked at, at most: at the first new connection after this.
    private static let checkInterval: Duration = .seconds(5)

    /// X25519 and P-256: a third less work than with ML-KEM, for listeners whose bytes are encrypted once more inside.
    static let quickCurves: [NIOTLSCurve] = [.x25519, .secp256r1]

    /// Reads one chain and its key. `curves`: nil for NIOSSL's choice.
    static func load(
        chains: [String], keys: [String], curves: [NIOTLSCurve]? = nil, logger: Logger
    ) throws -> Certificates {
        guard let chain = chains.first, let key = keys.first, chains.count == 1, keys.count == 1 else {
            throw PrivateCluster.StartError(
                description: "TLS needs one --tls-cert-file and one --tls-key-file")
        }
        return try Certificates(chain: chain, key: key, curves: curves, logger: logger)
    }

    private init(chain: String, key: String, curves: [NIOTLSCurve]?, logger: Logger) throws {
        chainFile = chain
        keyFile = key
        self.curves = curves
        self.logger = logger
        let (context, expiry) = try Self.read(chain, key, curves)
        state = Mutex(
            State(
                context: context, expiry: expiry, stamp: Self.stamp(chain) + Self.stamp(key),
                checkedAt: .now))
    }

    /// When the certificate that serves now is void, in seconds since 1970.
    var expiry: Int { state.withLock { $0.expiry } }

    /// What the next connection uses.
    var context: NIOSSLContext {
        state.withLock { state in
            guard .now - state.checkedAt >= Self.checkInterval else { return state.context }
            state.checkedAt = .now
            let stamp = Self.stamp(chainFile) + Self.stamp(keyFile)
            guard stamp != state.stamp else { return state.context }
            do {
                (state.context, state.expiry) = try Self.read(chainFile, keyFile, curves)
                state.stamp = stamp
                logger.info("certificate read again", metadata: ["file": "\(chainFile)"])
            } catch {
                // Half written, perhaps: the old one serves until both are good.
                logger.error("certificate not usable, the old one stays", metadata: ["error": "\(error)"])
            }
            return state.context
        }
    }

    private static func read(
        _ chain: String, _ key: String, _ curves: [NIOTLSCurve]?
    ) throws -> (NIOSSLContext, expiry: Int) {
        let certificates = try naming("certificate", chain) { try NIOSSLCertificate.fromPEMFile(chain) }
        let secret = try naming("key", key) { try NIOSSLPrivateKey(file: key, format: .pem) }
        var configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: certificates.map { .certificate($0) }, privateKey: .privateKey(secret))
        configuration.applicationProtocols = ["http/1.1"]
        configuration.minimumTLSVersion = .tlsv12
        configuration.curves = curves
        return (try NIOSSLContext(configuration: configuration), certificates.first?.notValidAfter ?? 0)
    }

    /// Says which file it was.
    private static func naming<R>(_ what: String, _ path: String, _ read: () throws -> R) throws -> R {
        do {
            return try read()
        } catch {
            let reason = access(path, R_OK) == 0 ? "no \(what) in PEM form" : String(cString: strerror(errno))
            throw PrivateCluster.StartError(description: "the \(what) file \(path) cannot be used: \(reason)")
        }
    }

    /// Changes when the file does: identity, size and time of change.
    private static func stamp(_ path: String) -> [Int] {
        var status = stat()
        guard stat(path, &status) == 0 else { return [] }
        return [Int(status.st_ino), Int(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec]
    }
}
