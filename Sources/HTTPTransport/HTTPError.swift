// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import NIOCore
internal import NIOPosix
internal import NIOSSL

/// Why a request, an upgrade or a WebSocket could not be had. `description` is a sentence that lets a person act.
public struct HTTPError: Error, Sendable, CustomStringConvertible {
    /// What went wrong, for code that decides.
    public enum Kind: Sendable, Hashable {
        /// The request itself cannot be sent: bad header, bad URL.
        case invalidRequest
        /// The host's name has no address.
        case nameNotFound
        /// The host answered that nothing listens on that port.
        case refused
        /// No route, network down, or the connection was reset while connecting.
        case unreachable
        /// It took longer than allowed.
        case timedOut
        /// TLS failed: certificate, protocol or alert.
        case tls
        /// The proxy refused or failed.
        case proxy
        /// The answer was not HTTP, or not the one asked for.
        case protocolViolation
        /// The answer was longer than the limit.
        case tooLarge
        /// The connection ended before the answer was complete.
        case connectionLost
        /// The server answered an upgrade with a plain response: see `response`.
        case upgradeRefused
        /// The task was cancelled.
        case cancelled
        /// The client was shut down.
        case shutDown
    }

    /// What went wrong.
    public let kind: Kind
    /// The server that was asked: `scheme://host[:port]`.
    public let origin: String
    /// Details from the system or the peer.
    public let detail: String
    /// The answer to a refused upgrade.
    public let response: HTTPResponse?

    /// Describes a failure.
    public init(_ kind: Kind, origin: String, detail: String = "", response: HTTPResponse? = nil) {
        self.kind = kind
        self.origin = origin
        self.detail = detail
        self.response = response
    }

    public var description: String {
        let because = detail.isEmpty ? "" : ": \(detail)"
        switch kind {
        case .invalidRequest: return "cannot send the request to \(origin)\(because)"
        case .nameNotFound: return "cannot find the host of \(origin)\(because)"
        case .refused: return "connection refused by \(origin): nothing listens there"
        case .unreachable: return "cannot reach \(origin)\(because)"
        case .timedOut: return "no answer from \(origin) in time\(because)"
        case .tls: return "no secure connection to \(origin)\(because)"
        case .proxy: return "the proxy did not connect to \(origin)\(because)"
        case .protocolViolation: return "\(origin) did not answer as expected\(because)"
        case .tooLarge: return "the answer of \(origin) is too long\(because)"
        case .connectionLost: return "the connection to \(origin) was lost\(because)"
        case .upgradeRefused:
            return "\(origin) refused the connection: HTTP status \(response?.status ?? 0)\(because)"
        case .cancelled: return "cancelled"
        case .shutDown: return "the HTTP client was shut down"
        }
    }
}

extension HTTPError {
    /// Sorts whatever NIO reports into a kind.
    static func wrapping(_ error: any Error, origin: String) -> HTTPError {
        switch error {
        case let error as HTTPError: return error
        case let error as NIOConnectionError: return from(error, origin: origin)
        case let error as IOError: return from(error, origin: origin)
        case let error as ChannelError:
            if case .connectTimeout = error { return HTTPError(.timedOut, origin: origin) }
            return HTTPError(.connectionLost, origin: origin)
        case let error as NIOSSLError:
            if case .uncleanShutdown = error { return HTTPError(.connectionLost, origin: origin) }
            return HTTPError(.tls, origin: origin, detail: describe(error))
        case let error as BoringSSLError: return HTTPError(.tls, origin: origin, detail: "\(error)")
        case let error as NIOSSLExtraError: return HTTPError(.tls, origin: origin, detail: "\(error)")
        default: return HTTPError(.protocolViolation, origin: origin, detail: "\(error)")
        }
    }

    private static func from(_ error: NIOConnectionError, origin: String) -> HTTPError {
        guard let first = error.connectionErrors.first else {
            return HTTPError(.nameNotFound, origin: origin)
        }
        return wrapping(first.error, origin: origin)
    }

    private static func from(_ error: IOError, origin: String) -> HTTPError {
        switch error.errnoCode {
        case ECONNREFUSED: return HTTPError(.refused, origin: origin)
        case ETIMEDOUT: return HTTPError(.timedOut, origin: origin)
        case ECONNRESET, EPIPE: return HTTPError(.connectionLost, origin: origin)
        default:
            return HTTPError(.unreachable, origin: origin, detail: String(cString: strerror(error.errnoCode)))
        }
    }

    private static func describe(_ error: NIOSSLError) -> String {
        guard case .handshakeFailed(let inner) = error else { return "\(error)" }
        let text = "\(inner)"
        if text.contains("CERTIFICATE_VERIFY_FAILED") {
            return
                "its certificate is not trusted (set SSL_CERT_FILE to the file of your certificate authority)"
        }
        if text.contains("WRONG_VERSION_NUMBER") { return "the server does not speak TLS on this port" }
        return text
    }
}
