// SPDX-License-Identifier: Apache-2.0

internal import Dispatch
internal import FoundationEssentials
internal import Glibc
internal import LinuxIO
internal import Mesh

/// What the flight recorders of both sides hold of one connection, as JSON that `coder-netsim replay` plays again.
/// Addresses and times; no keys, no names, no content.
struct PathRecords: Sendable {
    private struct Entry: Encodable {
        var side: String
        var recording: PathRecording
    }

    let node: Node
    /// The agent's address in the tunnel, and its name at the node.
    let address: IPAddress
    let peer: MeshPeerID

    /// One file's content. `note` is told what is missing.
    func json(note: (String) -> Void) async throws -> JSON {
        var far: [JSON] = []
        do {
            far = try await agentRecordings()["recordings"].elements
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            note("the agent's record is missing: \(error)")
        }
        let own = try await node.recordings().filter { $0.peer == peer }
        return Self.file(
            try own.map { try Self.entry("client", $0.recording) }
                + far.map { .record(["side": .string("agent"), "recording": $0["recording"]]) })
    }

    static func file(_ entries: [JSON]) -> JSON {
        .record(["format": .int(1), "recordings": .array(entries)])
    }

    static func entry(_ side: String, _ recording: PathRecording) throws -> JSON {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return try JSON.parse(try encoder.encode(Entry(side: side, recording: recording)))
    }

    /// `GET /api/v0/path-recordings` of the agent's API on port 4 in the tunnel: what it kept of this connection.
    private func agentRecordings() async throws -> JSON {
        try await AgentAPI.get("/api/v0/path-recordings", node: node, address: address)
    }
}

/// Writes the records of the running connection when SIGUSR1 comes: its trouble is not that of a new connection.
final class RecordOnSignal: @unchecked Sendable {  // one dispatch source, which any thread may use
    private let source: any DispatchSourceSignal

    /// Files go to `path-recordings` in the directory, named by process.
    init(_ records: PathRecords, directory: String, _ console: Console) {
        signal(SIGUSR1, SIG_IGN)
        source = DispatchSource.makeSignalSource(signal: SIGUSR1, queue: .global())
        source.setEventHandler { Task { await Self.write(records, directory + "/path-recordings", console) } }
        source.resume()
    }

    func stop() {
        source.cancel()
        signal(SIGUSR1, SIG_DFL)
    }

    private static func write(_ records: PathRecords, _ directory: String, _ console: Console) async {
        do {
            let json = try await records.json { console.note($0) }
            try makeDirectories(directory, mode: 0o700)
            try TextFile.replace("\(directory)/\(getpid()).json", with: json.compact, mode: 0o600)
        } catch {
            console.note("the record of this connection could not be written: \(error)")
        }
    }
}

/// The agent's HTTP API on port 4 in the tunnel.
enum AgentAPI {
    private static let answerLimit = 64 << 20

    /// The JSON of one answer.
    static func get(_ path: String, node: Node, address: IPAddress) async throws -> JSON {
        let number = try await node.dial(SocketAddress(address, port: 4)).release()
        let body: [UInt8]? = await withCheckedContinuation { continuation in
            do {
                try DedicatedThread(name: "agent-api") {
                    let socket = OwnedDescriptor(taking: number)
                    continuation.resume(returning: get(socket, path))
                }.detach()
            } catch {
                Glibc.close(number)
                continuation.resume(returning: nil)
            }
        }
        guard let body else { throw CommandError("the agent does not answer, or does not know \(path)") }
        return try JSON.parse(body)
    }

    /// The body of a 200 answer. Blocks, 20 s at most without progress.
    private static func get(_ socket: borrowing OwnedDescriptor, _ path: String) -> [UInt8]? {
        var time = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(socket.number, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
        let request = Array("GET \(path) HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".utf8)
        guard send(socket.number, request, request.count, Int32(MSG_NOSIGNAL)) == request.count else {
            return nil
        }
        var answer: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65_536)
        while answer.count < answerLimit {
            let count = recv(socket.number, &piece, piece.count, 0)
            guard count > 0 else { break }
            answer += piece[..<count]
        }
        // The head is short and ends in the first blank line.
        let blank = Array("\r\n\r\n".utf8)
        let head = answer.prefix(4_096)
        guard answer.starts(with: "HTTP/1.1 200".utf8),
            let end = head.indices.first(where: { head[$0...].starts(with: blank) })
        else { return nil }
        return Array(answer[(end + blank.count)...])
    }
}
