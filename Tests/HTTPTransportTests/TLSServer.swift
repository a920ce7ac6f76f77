// SPDX-License-Identifier: Apache-2.0

import NIOCore
import NIOPosix
import NIOSSL
import Testing

/// A TLS server on 127.0.0.1 that answers each request head by `answer`, and echoes what follows a 101.
final class TLSServer: Sendable {
    let port: Int
    private let group: MultiThreadedEventLoopGroup

    private init(port: Int, group: MultiThreadedEventLoopGroup) {
        self.port = port
        self.group = group
    }

    static func start(answer: @escaping @Sendable (String) -> String) async throws -> TLSServer {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let key = try NIOSSLPrivateKey(bytes: Array(testKey.utf8), format: .pem)
        let chain = try NIOSSLCertificate.fromPEMBytes(Array(testCertificate.utf8))
        let context = try NIOSSLContext(
            configuration: .makeServerConfiguration(
                certificateChain: chain.map { .certificate($0) }, privateKey: .privateKey(key)))
        let channel = try await ServerBootstrap(group: group).childChannelInitializer { channel in
            channel.eventLoop.makeCompletedFuture {
                try channel.pipeline.syncOperations.addHandlers([
                    NIOSSLServerHandler(context: context), AnswerHandler(answer: answer),
                ])
            }
        }.bind(host: "127.0.0.1", port: 0).get()
        return TLSServer(port: try #require(channel.localAddress?.port), group: group)
    }

    func stop() { group.shutdownGracefully { _ in } }
}

private final class AnswerHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let answer: @Sendable (String) -> String
    private var head = ""
    private var isEcho = false

    init(answer: @escaping @Sendable (String) -> String) { self.answer = answer }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let bytes = unwrapInboundIn(data)
        guard !isEcho else { return context.writeAndFlush(data, promise: nil) }
        head += String(buffer: bytes)
        guard head.hasSuffix("\r\n\r\n") else { return }
        let text = answer(head)
        isEcho = text.contains(" 101 ")
        head = ""
        context.writeAndFlush(wrapOutboundOut(ByteBuffer(string: text)), promise: nil)
    }
}

// Made for this test: `openssl req -x509 -newkey ec …`, for localhost only. It protects nothing.
private let testKey = """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgtqTmANjasCWgOSAc
    XgsIkafUpFMXItrAqLaNpHbSmjqhRANCAAQQ4jBOrQXV6o42iquBbU/JLKgSajHD
    qKpg10xDCIF6IRM/SRsXdIYQBdnjdWBy+NxgHEWSdMwjBK6zhX6AJKbr
    -----END PRIVATE KEY-----
    """

private let testCertificate = """
    -----BEGIN CERTIFICATE-----
    MIIBmjCCAUGgAwIBAgIUEqxcOl2FZrbWBs6dIPAGwcyBA6IwCgYIKoZIzj0EAwIw
    FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIwMDIwN1oYDzIxMjYxMDMw
    MjAwMjA3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
    PQMBBwNCAAQQ4jBOrQXV6o42iquBbU/JLKgSajHDqKpg10xDCIF6IRM/SRsXdIYQ
    BdnjdWBy+NxgHEWSdMwjBK6zhX6AJKbro28wbTAdBgNVHQ4EFgQUWEnYNE4N00Dm
    HW6Cppt78fM+hOIwHwYDVR0jBBgwFoAUWEnYNE4N00DmHW6Cppt78fM+hOIwDwYD
    VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
    zj0EAwIDRwAwRAIgHbKRJFo+5s09VJwJuZHS2JvH2g97L3+3ElEcmQLEP+ECIAHW
    KSVrUodyX7R4A3Qm+8GLGPmaL4PY4DobIaNqxhEe
    -----END CERTIFICATE-----
    """
