// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix
internal import Synchronization

/// HTTP/1.1 client: requests, WebSockets and raw upgrades, through proxies where the environment says so. Owns one
/// event-loop thread and the idle connections; any task may call it. Call `shutDown` when done.
public final class HTTPClient: Sendable {
    /// What holds for all requests.
    public struct Configuration: Sendable {
        /// Proxies by URL.
        public var proxies = ProxySettings.none
        /// Sent with each request that does not set the same field itself.
        public var headers = HeaderFields()
        /// For one TCP connection, all addresses together.
        public var connectTimeout: Duration = .seconds(10)
        /// PEM file of trusted authorities instead of the system's (`SSL_CERT_FILE`).
        public var certificateFile: String?

        /// No proxy, no extra headers, the system's certificates.
        public init() {}

        /// Proxies and certificates as the variables say: `HTTPS_PROXY` and its like, `SSL_CERT_FILE`.
        public init(environment: [String: String]) {
            proxies = ProxySettings(environment: environment)
            certificateFile = environment["SSL_CERT_FILE"].flatMap { $0.isEmpty ? nil : $0 }
        }
    }

    /// Idle connections are kept this long; servers usually close them after a minute or more.
    private static let idleTimeout: Duration = .seconds(50)
    /// Idle connections kept per server.
    private static let idleLimit = 8

    let connector: Connector
    private let group: MultiThreadedEventLoopGroup
    private let configuration: Configuration
    private let idle = Mutex<[String: [any Channel]]>([:])

    /// Starts the thread; opens nothing.
    public init(configuration: Configuration = Configuration()) {
        self.configuration = configuration
        group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        connector = Connector(group: group, configuration: configuration)
    }

    /// Closes idle connections and ends the thread. What is still open fails. Not required before the process ends.
    public func shutDown() async {
        do {
            try await group.shutdownGracefully()
        } catch {
            assertionFailure("the event loop did not stop: \(error)")
        }
    }

    var loop: any EventLoop { group.next() }

    /// Sends a request and waits for the whole answer, whatever its status.
    ///
    /// - Parameters:
    ///   - method: `GET`, `POST`, …
    ///   - body: sent with its length; nil for none. Set `Content-Type` in `headers`.
    ///   - bodyLimit: longest answer accepted, in bytes.
    ///   - timeout: for everything: name look-up, connection, answer.
    public func request(
        _ method: String, _ url: HTTPURL, headers: HeaderFields = HeaderFields(), body: [UInt8]? = nil,
        bodyLimit: Int = 16 << 20, timeout: Duration = .seconds(30),
        options: ConnectOptions = ConnectOptions()
    ) async throws(HTTPError) -> HTTPResponse {
        var request = try prepare(method, url, headers)
        request.body = body ?? []
        request.bodyLimit = bodyLimit
        if body != nil || ["POST", "PUT", "PATCH"].contains(method) {
            request.headers["Content-Length"] = String(request.body.count)
        }
        if let proxy = connector.forwardingProxy(for: url) {
            request.target = url.description
            if let user = proxy.userInfo {
                request.headers["Proxy-Authorization"] = "Basic \(base64(user.percentDecoded))"
            }
        }
        // A kept connection may have been closed by the server just now; then nothing was answered, and a request
        // that changes nothing is sent again on a fresh one.
        if let channel = takeIdle(url, options) {
            let pending = Pending<HTTPResponse>(origin: url.origin)
            pending.expire(after: timeout, on: loop, doing: "\(method) \(url.path)")
            send(request, on: channel, options, pending)
            do {
                return try await pending.value()
            } catch {
                guard error.kind == .connectionLost, ["GET", "HEAD", "PUT", "DELETE"].contains(method) else {
                    throw error
                }
            }
        }
        let pending = Pending<HTTPResponse>(origin: url.origin)
        pending.expire(after: timeout, on: loop, doing: "\(method) \(url.path)")
        let prepared = request
        loop.execute {
            self.connector.connect(to: url, options: options, forwarding: true).whenComplete { result in
                self.connected(result, prepared, options, pending)
            }
        }
        return try await pending.value()
    }

    /// Checks a request and adds the fields that every request has.
    func prepare(
        _ method: String, _ url: HTTPURL, _ headers: HeaderFields
    ) throws(HTTPError) -> PreparedRequest {
        var fields: HeaderFields = ["Host": url.authority]
        for field in configuration.headers.fields where headers[field.name] == nil {
            fields.add(field.name, field.value)
        }
        fields.add(contentsOf: headers)
        guard fields.isValid else {
            throw HTTPError(
                .invalidRequest, origin: url.origin, detail: "a header holds a forbidden character")
        }
        return PreparedRequest(
            method: method, url: url, target: url.target, headers: fields, body: [], bodyLimit: 1 << 20)
    }

    private func connected(
        _ result: Result<any Channel, any Error>, _ request: PreparedRequest, _ options: ConnectOptions,
        _ pending: Pending<HTTPResponse>
    ) {
        switch result {
        case .failure(let error): pending.fail(error)
        case .success(let channel):
            do {
                _ = try ExchangeHandler.install(on: channel)
                send(request, on: channel, options, pending)
            } catch {
                channel.close(promise: nil)
                pending.fail(error)
            }
        }
    }

    private func send(
        _ request: PreparedRequest, on channel: any Channel, _ options: ConnectOptions,
        _ pending: Pending<HTTPResponse>
    ) {
        pending.attach(channel)
        channel.eventLoop.execute {
            guard channel.isActive,
                let handler = try? channel.pipeline.syncOperations.handler(type: ExchangeHandler.self)
            else { return pending.fail(HTTPError(.connectionLost, origin: request.url.origin)) }
            handler.start(request, on: channel) { result, isReusable in
                switch result {
                case .success(let response):
                    if isReusable { self.keepIdle(channel, request.url, options) }
                    pending.succeed(response)
                case .failure(let error): pending.fail(error)
                }
            }
        }
    }

    private func key(_ url: HTTPURL, _ options: ConnectOptions) -> String {
        "\(url.origin) \(options.serverName ?? "") \(options.addresses) \(options.usesV4) \(options.usesV6) "
            + "\(options.acceptsAnyCertificate)"
    }

    private func takeIdle(_ url: HTTPURL, _ options: ConnectOptions) -> (any Channel)? {
        idle.withLock { idle in
            while let channel = idle[key(url, options)]?.popLast() {
                if channel.isActive { return channel }
            }
            return nil
        }
    }

    private func keepIdle(_ channel: any Channel, _ url: HTTPURL, _ options: ConnectOptions) {
        let key = key(url, options)
        let isKept = idle.withLock { idle in
            guard idle[key, default: []].count < Self.idleLimit else { return false }
            idle[key, default: []].append(channel)
            return true
        }
        guard isKept else { return channel.close(promise: nil) }
        let timer = channel.eventLoop.scheduleTask(in: TimeAmount(Self.idleTimeout)) {
            let wasIdle = self.forget(channel, key)
            if wasIdle { channel.close(promise: nil) }
        }
        channel.closeFuture.whenComplete { _ in
            timer.cancel()
            _ = self.forget(channel, key)
        }
    }

    private func forget(_ channel: any Channel, _ key: String) -> Bool {
        idle.withLock { idle in
            guard let index = idle[key]?.firstIndex(where: { $0 === channel }) else { return false }
            idle[key]?.remove(at: index)
            return true
        }
    }
}
