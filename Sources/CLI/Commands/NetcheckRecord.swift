// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import Glibc
internal import LinuxIO
internal import Mesh

/// `coder netcheck --record <workspace>`: what the flight recorders of this side and of the agent hold, as JSON that
/// `coder-netsim replay` plays again. Addresses and times; no keys, no names, no content.
enum NetcheckRecord {
    private struct File: Encodable {
        var format = 1
        var recordings: [Entry]
    }

    private struct Entry: Encodable {
        var side: String
        var recording: PathRecording
    }

    static func run(_ invocation: Invocation, _ client: APIClient) async throws -> Int32 {
        let name = try WorkspaceName(invocation.words[0])
        let workspace = try await client.workspace(name)
        let agent = try workspace.agent(named: name.agent)
        let link = try await AgentLink.open(invocation, client, agent)
        do {
            let text = try await record(invocation, link, agent.name)
            invocation.console.say(text)
            await link.close()
            return 0
        } catch {
            await link.close()
            throw error
        }
    }

    private static func record(
        _ invocation: Invocation, _ link: AgentLink, _ name: String
    ) async throws -> String {
        var far: JSON = .array([])
        do {
            try await link.reach(name, invocation.console, within: .seconds(15))
            // Long enough for probes, their repetition and the choice.
            try await Task.sleep(for: .seconds(3))
            far = try await agentRecordings(link)
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            invocation.console.note("the agent's record is missing: \(error)")
        }
        let own = try await link.node.recordings().filter { $0.peer == link.peer }
        let file = File(recordings: own.map { Entry(side: "client", recording: $0.recording) })
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        var json = try JSON.parse(try encoder.encode(file))
        if case .object(var members) = json, let index = members.firstIndex(where: { $0.key == "recordings" })
        {
            let others = far["recordings"].elements.map { entry -> JSON in
                .record(["side": .string("agent"), "recording": entry["recording"]])
            }
            members[index].value = .array(members[index].value.elements + others)
            json = .object(members)
        }
        return json.compact
    }

    private static let answerLimit = 64 << 20

    /// `GET /api/v0/path-recordings` of the agent's API on port 4 in the tunnel.
    private static func agentRecordings(_ link: AgentLink) async throws -> JSON {
        let number = try await link.node.dial(SocketAddress(link.address, port: 4)).release()
        let body: [UInt8]? = await withCheckedContinuation { continuation in
            do {
                try DedicatedThread(name: "agent-record") {
                    let socket = OwnedDescriptor(taking: number)
                    continuation.resume(returning: get(socket, "/api/v0/path-recordings"))
                }.detach()
            } catch {
                Glibc.close(number)
                continuation.resume(returning: nil)
            }
        }
        guard let body else { throw CommandError("the agent does not answer, or knows no records") }
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
