// SPDX-License-Identifier: Apache-2.0

/// Logs of jobs and agents: as a list, or followed over a WebSocket.
struct LogStreams {
    let services: Services

    /// Clients of these routes refuse messages above 32 KiB.
    private static let maximumMessageBytes = 30_000

    /// Logs of a provisioner job. Ours have always ended: a follower gets the backlog and a normal close.
    func jobLogs(_ call: Call, job: Identifier) async throws -> Reply {
        let lines = try await services.store.jobLogs(job, after: try after(call))
        guard call.query.has("follow") else { return .json(.array(lines)) }
        return try call.webSocket { socket in
            await socket.sendOnly(for: call) {
                for line in lines { try await socket.send(text: line.encoded) }
                await socket.close(code: 1000)
            }
        }
    }

    /// Logs of an agent; a follower gets lists of lines until the agent's build is no longer the latest.
    func agentLogs(_ call: Call, agent: Identifier) async throws -> Reply {
        let after = try after(call)
        guard call.query.has("follow") else {
            return .json(.array(try await services.store.agentLogs(agent, after: after)))
        }
        let (services, store) = (services, try services.store(for: call))
        return try call.webSocket { socket in
            await socket.sendOnly(for: call) {
                var last = after
                var isFirst = true
                let changes = services.events.subscribe(.agentLogs(agent))
                defer { changes.cancel() }
                while true {
                    let lines = try await services.store.agentLogs(agent, after: last)
                    for group in Self.groups(lines, evenIfEmpty: isFirst) {
                        try await socket.send(text: JSON.array(group).encoded)
                    }
                    isFirst = false
                    last = lines.last?["id"]?.integer ?? last
                    _ = try await changes.next(timeoutSeconds: 5)
                    guard (try? await store.workspace(ofAgent: agent)) != nil else { break }
                }
                await socket.close(code: 1000)
            }
        }
    }

    private func after(_ call: Call) throws(APIError) -> Int64 {
        guard let text = call.query["after"], !text.isEmpty else { return 0 }
        guard let value = Int64(text), value >= 0 else {
            throw APIError.invalid(
                "after", "Must be an integer greater than or equal to zero",
                message: "Query param \"after\" must be an integer.")
        }
        return value
    }

    /// Cuts a list into pieces that fit into one message each.
    static func groups(_ lines: [JSON], evenIfEmpty: Bool) -> [[JSON]] {
        var groups: [[JSON]] = evenIfEmpty ? [[]] : []
        var size = 0
        for line in lines {
            let bytes = line.encoded.count + 1
            if groups.isEmpty || size + bytes > maximumMessageBytes {
                if groups.last?.isEmpty != true { groups.append([]) }
                size = 0
            }
            groups[groups.count - 1].append(line)
            size += bytes
        }
        return groups
    }
}
