// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Logging
internal import RPC
internal import SwiftProtobuf
internal import Synchronization

/// The server's token by which a client keeps its peer id over connections, so that agents see an update and not a
/// new peer. rpc-transport §7.
final class ResumeToken: Sendable {
    private struct Value {
        var token: String
        var expiresAt: Int64
    }

    private let value = Mutex<Value?>(nil)

    /// The token, unless it has expired.
    var current: String? {
        value.withLock { value in
            guard let known = value, known.expiresAt > Clock.wallTime().seconds else { return nil }
            return known.token
        }
    }

    /// The server refused it.
    func drop() { value.withLock { $0 = nil } }

    /// Fetches a token, and a new one whenever half of its life has passed. Gives up at the first error, which
    /// only costs the peer id of the next connection.
    func refresh(on connection: RPCConnection, logger: Logger) async {
        do {
            while true {
                let response = try await connection.unary(TailnetMethods.refreshResumeToken)
                value.withLock { $0 = Value(token: response.token, expiresAt: response.expiresAt.seconds) }
                let seconds = response.refreshIn.seconds
                try await Task.sleep(for: .seconds(seconds > 0 ? min(seconds, 86_400) : 1_800))
            }
        } catch {
            logger.debug("no resume token", metadata: ["error": "\(error)"])
        }
    }
}

/// Something that happens once.
final class Once: Sendable {
    private let flag = Atomic<Bool>(false)
    var isDone: Bool { flag.load(ordering: .relaxed) }
    func finish() { flag.store(true, ordering: .relaxed) }
}
