// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import NIOCore
internal import NIOPosix
internal import TLS

/// Listens on one address and serves each connection in a task of its own.
struct HTTPServer: Sendable {
    /// Why a listener could not be opened.
    struct BindError: Error, CustomStringConvertible {
        var address: String
        var cause: any Error

        var description: String {
            if let error = cause as? IOError, error.errnoCode == 98 {
                return "cannot listen on \(address): the port is already in use by another program"
            }
            if let error = cause as? IOError, error.errnoCode == 13 {
                return "cannot listen on \(address): permission denied"
            }
            return "cannot listen on \(address): \(cause)"
        }
    }

    private let listener: NIOAsyncChannel<ByteStream, Never>
    private let logger: Logger
    private let counters: HTTPCounters

    /// Port that was really bound.
    let port: Int

    /// More simultaneous connections than this are refused: each may hold a few hundred KiB. Those that the relay has
    /// do not count: it has limits of its own.
    private let maximumConnections: Int

    /// Binds `host:port`; port 0 takes a free one.
    init(
        host: String, port: Int, tls: Certificates?, group: any EventLoopGroup, logger: Logger,
        counters: HTTPCounters, maximumConnections: Int = 8192
    ) async throws {
        self.logger = logger
        self.counters = counters
        self.maximumConnections = maximumConnections
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .serverChannelOption(.backlog, value: 512)
            .childChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(.autoRead, value: false)
        do {
            listener = try await bootstrap.bind(host: host, port: port) { channel in
                channel.eventLoop.makeCompletedFuture {
                    let session = try tls.map { tls in
                        guard let session = TLSSession(tls.context) else { throw ChannelError.outputClosed }
                        return session
                    }
                    return try ByteStream(wrapping: channel, session: session)
                }
            }
        } catch {
            throw BindError(
                address: host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)", cause: error)
        }
        self.port = listener.channel.localAddress?.port ?? port
    }

    /// Serves until the surrounding task is cancelled; then closes what is still open.
    func run(_ serve: @escaping @Sendable (ByteStream) async -> Void) async throws {
        try await listener.executeThenClose { inbound in
            try await withThrowingDiscardingTaskGroup { group in
                let active = ConnectionCount(limit: maximumConnections)
                for try await stream in inbound {
                    guard active.enter() else {
                        refuse(stream)
                        continue
                    }
                    stream.occupy(active)
                    group.addTask {
                        await serve(stream)
                        stream.close()
                        stream.leavePlace()
                    }
                }
                group.cancelAll()
            }
        }
    }

    private func refuse(_ stream: ByteStream) {
        if counters.add(\.refused) % 1_000 == 0 {
            logger.warning(
                "too many connections; further ones are closed",
                metadata: ["port": "\(port)", "limit": "\(maximumConnections)"])
        }
        stream.close()
    }
}
