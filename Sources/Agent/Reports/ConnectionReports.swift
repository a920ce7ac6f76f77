// SPDX-License-Identifier: Apache-2.0

internal import RPC
internal import SwiftProtobuf
internal import Synchronization

/// Tells the server when sessions start and end, and counts them for the statistics. agent.md §5.4.
final class ConnectionReports: Sendable {
    private struct Open {
        var id: RawUUID
        var kind: SSHSessionKind
        var address: String
    }

    /// 2,048 reports wait at most. agent.md §8.
    private let outbox = Outbox<AgentConnection>(limit: 2_048)
    private let open = Mutex<[UInt64: Open]>([:])

    /// A session started or ended.
    func report(_ session: SSHSessionReport) {
        let entry: Open? = open.withLock { open in
            if session.exitStatus != nil { return open.removeValue(forKey: session.number) }
            var generator = SystemRandomNumberGenerator()
            let entry = Open(
                id: RawUUID.random(using: &generator), kind: session.kind, address: session.remoteAddress)
            open[session.number] = entry
            return entry
        }
        guard let entry else { return }
        var connection = AgentConnection()
        connection.id = entry.id.bytes()
        connection.action = session.exitStatus == nil ? .connect : .disconnect
        connection.type = entry.kind.wireType
        connection.timestamp = .now()
        connection.ip = entry.address
        if let status = session.exitStatus { connection.statusCode = status }
        outbox.put(connection)
    }

    /// Sessions of a kind that are open now.
    func count(_ kind: SSHSessionKind) -> Int64 {
        open.withLock { open in Int64(open.values.count { $0.kind == kind }) }
    }

    /// Delivers over this connection until it fails. A report that cannot be delivered is dropped.
    func deliver(on connection: RPCConnection) async throws {
        while true {
            var request = AgentReportConnectionRequest()
            request.connection = try await outbox.first()
            outbox.removeFirst()
            do throws(RPCError) {
                _ = try await connection.unary(AgentMethods.reportConnection, request)
            } catch {
                guard case .failed = error else { throw error }
                if error.isUnimplemented { return try await Task.sleep(for: .seconds(1 << 30)) }
            }
        }
    }
}

extension SSHSessionKind {
    fileprivate var wireType: AgentConnection.TypeEnum {
        switch self {
        case .ssh: .ssh
        case .vscode: .vscode
        case .jetbrains: .jetbrains
        case .reconnectingTerminal: .reconnectingPty
        case .unknown: .unspecified
        }
    }
}
