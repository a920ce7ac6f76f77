// SPDX-License-Identifier: Apache-2.0

internal import HTTPTypes
internal import Hummingbird
internal import HummingbirdCore
internal import Logging
internal import NIOCore

/// Methods that routes are made for.
enum HTTPMethod: Sendable {
    case get, head, post, put, patch, delete
}

/// Collects the routes of all resources and finds the one for a request. Authentication happens here, before any
/// route runs, so that none can forget it.
struct RouteTable {
    /// Who may call a route.
    enum Access: Sendable {
        /// Anybody.
        case anonymous
        /// A signed-in user.
        case user
        /// A workspace's agent.
        case agent
        /// Either of them.
        case userOrAgent
    }

    typealias Handler = @Sendable (Call) async throws -> Reply

    private let router = Router(context: RouteContext.self)
    private let authenticator: Authenticator
    private let proxies: TrustedProxies
    private let logger: Logger

    init(authenticator: Authenticator, proxies: TrustedProxies, logger: Logger) {
        self.authenticator = authenticator
        self.proxies = proxies
        self.logger = logger
    }

    /// Adds a route below `/api/v2`.
    func api(_ method: HTTPMethod, _ path: String, _ access: Access, _ handler: @escaping Handler) {
        root(method, "/api/v2/" + path, access, handler)
    }

    /// Adds a route. Placeholders are written `{name}`; `**` takes the rest of the path.
    func root(_ method: HTTPMethod, _ path: String, _ access: Access, _ handler: @escaping Handler) {
        let authenticator = authenticator
        let names = path.split(separator: "/").filter { $0.hasPrefix("{") }.map {
            String($0.dropFirst().dropLast())
        }
        let verb: HTTPRequest.Method =
            switch method {
            case .get: .get
            case .head: .head
            case .post: .post
            case .put: .put
            case .patch: .patch
            case .delete: .delete
            }
        router.on(RouterPath(path), method: verb) { _, context in
            var call = context.call
            for name in names {
                call.parameters[name] = context.parameters.get(name).map(PercentCoding.decode)
            }
            call.identity = try await authenticator.identify(call, for: access, route: path)
            call.renewIdentity = { try await authenticator.known($0, for: access) }
            call.body = try await call.source.body(limit: Self.bodyLimit(access))
            context.answer.reply = try await handler(call)
            return Response(status: .ok)
        }
    }

    /// Strangers log in and ask for little else; agents send logs, and users the state of workspaces.
    private static func bodyLimit(_ access: Access) -> Int {
        access == .anonymous ? 65_536 : RequestParser.Limits().bodyBytes
    }

    /// What the connections ask. Add no route after this.
    func makeResponder(fallback: @escaping Handler) -> any Connection.Responder {
        TableResponder(
            responder: router.buildResponder(), fallback: fallback, proxies: proxies, logger: logger)
    }
}

/// Where a route leaves its answer: Hummingbird's responses cannot carry an upgrade.
final class AnswerBox: @unchecked Sendable {
    // One request is handled by one task; the box is written once and read after the route has returned.
    var reply: Reply?
}

/// What Hummingbird hands from the connection to the route.
struct RouteContext: RequestContext {
    typealias Source = RouteSource

    var coreContext: CoreRequestContextStorage
    let call: Call
    let answer: AnswerBox

    init(source: RouteSource) {
        coreContext = .init(source: source)
        call = source.call
        answer = source.answer
    }
}

/// What a context is made of.
struct RouteSource: RequestContextSource {
    let logger: Logger
    let call: Call
    let answer: AnswerBox
}

private struct TableResponder: Connection.Responder {
    let responder: RouterResponder<RouteContext>
    let fallback: RouteTable.Handler
    let proxies: TrustedProxies
    let logger: Logger

    func respond(to call: Call) async -> Reply {
        var call = call
        call.peerAddress = proxies.client(of: call.head, peer: call.peerAddress)
        let parts = call.head.target.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        // Runs of slashes count as one, and a trailing one as none.
        let path = "/" + (parts.first ?? "").split(separator: "/").joined(separator: "/")
        call.query = Query(parts.count > 1 ? parts[1] : "")
        do {
            if let reply = try await route(call, path: path) { return reply }
            return try await fallback(call)
        } catch let error as APIError {
            return .error(error)
        } catch let error as RequestError {
            return .error(APIError(error.status, "The request could not be read."))
        } catch let error as DatabaseError {
            log(error, call)
            return .error(error.isDisconnected ? .databaseNotReachable : .internal)
        } catch {
            log(error, call)
            return .error(.internal)
        }
    }

    /// Nil when no route fits.
    private func route(_ call: Call, path: String) async throws -> Reply? {
        guard let method = HTTPRequest.Method(rawValue: call.head.method) else { return nil }
        let head = HTTPRequest(method: method, scheme: nil, authority: nil, path: path, headerFields: [:])
        let answer = AnswerBox()
        let source = RouteSource(logger: logger, call: call, answer: answer)
        do {
            _ = try await responder.respond(
                to: Request(head: head, body: RequestBody(buffer: ByteBuffer())),
                context: RouteContext(source: source))
        } catch let error as HTTPError where error.status == .notFound {
            return nil
        }
        return answer.reply
    }

    private func log(_ error: any Error, _ call: Call) {
        logger.error(
            "request failed",
            metadata: [
                "error": "\(error)", "request": "\(call.requestID)", "method": "\(call.head.method)",
                "path": "\(call.head.target.prefix { $0 != "?" })",
            ])
    }
}
