// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Logging
internal import Synchronization
internal import TLS

/// Certificate and key of HTTPS listeners. When the files change they are read again: new connections get the new
/// certificate, no restart needed. Any task may use it.
final class Certificates: Sendable {
    private struct State {
        var context: TLSContext
        var stamp: [Int]
        var checkedAt: ContinuousClock.Instant
    }

    private let chainFile: String
    private let keyFile: String
    private let groups: String?
    private let logger: Logger
    private let state: Mutex<State>

    /// How often the files are looked at, at most: at the first new connection after this.
    private static let checkInterval: Duration = .seconds(5)

    /// X25519 and P-256: a third less work than with ML-KEM, for listeners whose bytes are encrypted once more inside.
    static let quickGroups = "X25519:P-256"

    /// Reads one chain and its key. `groups`: nil for BoringSSL's choice.
    static func load(
        chains: [String], keys: [String], groups: String? = nil, logger: Logger
    ) throws -> Certificates {
        guard let chain = chains.first, let key = keys.first, chains.count == 1, keys.count == 1 else {
            throw PrivateCluster.StartError(
                description: "TLS needs one --tls-cert-file and one --tls-key-file")
        }
        return try Certificates(chain: chain, key: key, groups: groups, logger: logger)
    }

    private init(chain: String, key: String, groups: String?, logger: Logger) throws {
        chainFile = chain
        keyFile = key
        self.groups = groups
        self.logger = logger
        state = Mutex(
            State(
                context: try Self.read(chain, key, groups), stamp: Self.stamp(chain) + Self.stamp(key),
                checkedAt: .now))
    }

    /// When the certificate that serves now is void, in seconds since 1970.
    var expiry: Int { state.withLock { $0.context.expiry } }

    /// What the next connection uses.
    var context: TLSContext {
        state.withLock { state in
            guard .now - state.checkedAt >= Self.checkInterval else { return state.context }
            state.checkedAt = .now
            let stamp = Self.stamp(chainFile) + Self.stamp(keyFile)
            guard stamp != state.stamp else { return state.context }
            do {
                state.context = try Self.read(chainFile, keyFile, groups)
                state.stamp = stamp
                logger.info("certificate read again", metadata: ["file": "\(chainFile)"])
            } catch {
                // Half written, perhaps: the old one serves until both are good.
                logger.error("certificate not usable, the old one stays", metadata: ["error": "\(error)"])
            }
            return state.context
        }
    }

    private static func read(_ chain: String, _ key: String, _ groups: String?) throws -> TLSContext {
        do throws(TLSContext.Failure) {
            return try TLSContext(chainFile: chain, keyFile: key, groups: groups)
        } catch {
            throw PrivateCluster.StartError(description: reason(error, chain, key))
        }
    }

    /// Says which file it was.
    private static func reason(_ failure: TLSContext.Failure, _ chain: String, _ key: String) -> String {
        func unusable(_ what: String, _ path: String) -> String {
            let reason = access(path, R_OK) == 0 ? "no \(what) in PEM form" : String(cString: strerror(errno))
            return "the \(what) file \(path) cannot be used: \(reason)"
        }
        return switch failure {
        case .noCertificate: unusable("certificate", chain)
        case .noKey: unusable("key", key)
        case .mismatch: "the key in \(key) does not belong to the certificate in \(chain)"
        case .unusable: "TLS cannot be used: no memory"
        }
    }

    /// Changes when the file does: identity, size and time of change.
    private static func stamp(_ path: String) -> [Int] {
        var status = stat()
        guard stat(path, &status) == 0 else { return [] }
        return [Int(status.st_ino), Int(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec]
    }
}
