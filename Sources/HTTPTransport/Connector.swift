// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import NIOPosix
internal import NIOSSL
internal import Synchronization

/// How to reach a server when its URL does not say it all: relays name addresses and certificates of their own.
public struct ConnectOptions: Hashable, Sendable {
    /// Addresses that are known: a family of which there is one is not looked up.
    public var addresses: [String] = []
    /// Whether IPv4 may be used at all.
    public var usesV4 = true
    /// Whether IPv6 may be used at all.
    public var usesV6 = true
    /// Name to ask for and to check in TLS, instead of the URL's host.
    public var serverName: String?
    /// For one TCP connection, all addresses together, if it is not to take as long as usual: there is another
    /// server to try.
    public var connectTimeout: Duration?
    /// Accept any certificate. For tests.
    public var acceptsAnyCertificate = false

    /// Look the host up, and check its certificate.
    public init() {}
}

/// Opens channels: the host's addresses raced (RFC 8305, by NIO: IPv6 first, the next one after a quarter of a second
/// or when all others failed, the first that connects wins), the proxy's CONNECT, TLS.
/// The channel it delivers carries plain bytes of the application, whatever is below.
final class Connector: Sendable {
    private let group: MultiThreadedEventLoopGroup
    private let proxies: ProxySettings
    private let timeout: Duration
    private let certificateFile: String?
    private let contexts = Mutex<[Bool: NIOSSLContext]>([:])

    init(group: MultiThreadedEventLoopGroup, configuration: HTTPClient.Configuration) {
        self.group = group
        proxies = configuration.proxies
        timeout = configuration.connectTimeout
        certificateFile = configuration.certificateFile
    }

    /// Where plain requests to a plain URL go whole, so that the proxy does not need to allow CONNECT to port 80.
    func forwardingProxy(for url: HTTPURL) -> HTTPURL? { url.scheme == .http ? proxies.proxy(for: url) : nil }

    /// Connects to the URL's server. The future's callbacks run on the loop before any byte is read.
    func connect(to url: HTTPURL, options: ConnectOptions, forwarding: Bool) -> EventLoopFuture<any Channel> {
        let proxy = proxies.proxy(for: url)
        let isForwarded = forwarding && url.scheme == .http
        let limit = options.connectTimeout ?? timeout
        let first =
            proxy.map { open($0, ConnectOptions(), within: limit) } ?? open(url, options, within: limit)
        return first.flatMap { channel in
            guard let proxy, !isForwarded else { return channel.eventLoop.makeSucceededFuture(channel) }
            return ProxyConnect.run(on: channel, proxy: proxy, target: url)
        }.flatMapThrowing { channel in
            guard url.scheme == .https else { return channel }
            return try self.addTLS(to: channel, url: url, options: options)
        }
    }

    private func open(
        _ url: HTTPURL, _ options: ConnectOptions, within limit: Duration
    ) -> EventLoopFuture<any Channel> {
        let addresses = HostAddresses(loop: group.next(), options: options)
        // NIO's own resolver keeps the zone of a link-local address.
        let hasZone = url.host.contains("%") && options.addresses.isEmpty
        return ClientBootstrap(group: group).connectTimeout(TimeAmount(limit))
            .resolver(hasZone ? nil : addresses).connect(host: url.host, port: url.port)
    }

    private func addTLS(
        to channel: any Channel, url: HTTPURL, options: ConnectOptions
    ) throws -> any Channel {
        let context = try tlsContext(acceptsAnyCertificate: options.acceptsAnyCertificate)
        let name = options.serverName ?? url.host
        let isAddress = (try? SocketAddress(ipAddress: name, port: 1)) != nil
        let handler = try NIOSSLClientHandler(context: context, serverHostname: isAddress ? nil : name)
        try channel.pipeline.syncOperations.addHandler(handler)
        return channel
    }

    /// Reading the system's certificates takes milliseconds, so it is done once, and only for `https`.
    private func tlsContext(acceptsAnyCertificate: Bool) throws -> NIOSSLContext {
        try contexts.withLock { contexts in
            if let context = contexts[acceptsAnyCertificate] { return context }
            var configuration = TLSConfiguration.makeClientConfiguration()
            configuration.minimumTLSVersion = .tlsv12
            configuration.applicationProtocols = ["http/1.1"]
            if acceptsAnyCertificate { configuration.certificateVerification = .none }
            if let certificateFile { configuration.trustRoots = .file(certificateFile) }
            let context = try NIOSSLContext(configuration: configuration)
            contexts[acceptsAnyCertificate] = context
            return context
        }
    }
}

/// Asks a proxy for a tunnel: `CONNECT host:port`, then waits for a 2xx head and gets out of the way.
private final class ProxyConnect: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let target: HTTPURL
    private let done: EventLoopPromise<any Channel>
    private var received = ByteBuffer()
    private var isFinished = false

    private init(target: HTTPURL, done: EventLoopPromise<any Channel>) {
        self.target = target
        self.done = done
    }

    static func run(on channel: any Channel, proxy: HTTPURL, target: HTTPURL) -> EventLoopFuture<any Channel>
    {
        let done = channel.eventLoop.makePromise(of: (any Channel).self)
        var text = "CONNECT \(target.hostAndPort) HTTP/1.1\r\nHost: \(target.hostAndPort)\r\n"
        if let user = proxy.userInfo {
            text += "Proxy-Authorization: Basic \(base64(user.percentDecoded))\r\n"
        }
        do {
            try channel.pipeline.syncOperations.addHandler(ProxyConnect(target: target, done: done))
        } catch {
            done.fail(error)
        }
        channel.writeAndFlush(ByteBuffer(string: text + "\r\n"), promise: nil)
        return done.futureResult
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var bytes = unwrapInboundIn(data)
        guard !isFinished else { return context.fireChannelRead(data) }
        received.writeBuffer(&bytes)
        do {
            guard let (head, length) = try ResponseHead.parse(received.readableBytesView) else { return }
            guard 200..<300 ~= head.status else {
                throw HTTPError(.proxy, origin: target.origin, detail: "status \(head.status) \(head.reason)")
            }
            isFinished = true
            received.moveReaderIndex(forwardBy: length)
            let rest = received
            let channel = context.channel
            context.pipeline.syncOperations.removeHandler(self, promise: nil)
            done.succeed(channel)
            if rest.readableBytes > 0 { channel.pipeline.fireChannelRead(rest) }
        } catch {
            fail(error, context)
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { fail(error, context) }

    func channelInactive(context: ChannelHandlerContext) {
        fail(HTTPError(.proxy, origin: target.origin, detail: "the proxy closed the connection"), context)
        context.fireChannelInactive()
    }

    private func fail(_ error: any Error, _ context: ChannelHandlerContext) {
        guard !isFinished else { return }
        isFinished = true
        done.fail(error)
        context.close(promise: nil)
    }
}

extension String {
    /// Bytes with `%41` and the like decoded; a broken escape stays as it is.
    var percentDecoded: [UInt8] {
        var result: [UInt8] = []
        var rest = Array(utf8)[...]
        while let byte = rest.popFirst() {
            if byte == UInt8(ascii: "%"), rest.count >= 2,
                let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16)
            {
                result.append(value)
                rest = rest.dropFirst(2)
            } else {
                result.append(byte)
            }
        }
        return result
    }
}
