// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// `coder speedtest`.
enum SpeedtestCommand {
    private static let names = ["Interval", "Throughput"]

    static let command = Command(
        name: "speedtest", usage: "<workspace>", summary: "Measure upload and download speed to a workspace.",
        arguments: .exactly(1),
        options: [
            CommandOption("direct", short: "d", .bool, help: "Wait for a direct connection first."),
            CommandOption(
                "direction", .choice(["up", "down"]), default: "down",
                help: "up: this side sends; down: the workspace sends."),
            CommandOption(
                "pcap-file", .string,
                help: "File to write the packets inside the tunnel to, for tcpdump and its like."),
            CommandOption(
                "time", short: "t", .duration, default: "5s", help: "Length of the test, at most 30s."),
            Commands.columns(names, default: "Interval,Throughput"), Commands.output(["table", "json"]),
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        let duration = values.duration("time") ?? .seconds(5)
        guard duration > .zero, duration <= .seconds(30) else {
            throw CommandError("--time must be between 0 and 30s")
        }
        guard !(values.bool("direct") && values.bool("disable-direct-connections")) else {
            throw CommandError("--direct and --disable-direct-connections exclude each other")
        }
        let client = try invocation.client()
        let name = try WorkspaceName(invocation.words[0])
        let workspace = try await client.workspace(name)
        let agent = try workspace.agent(named: name.agent)
        guard agent.status == "connected" else {
            throw CommandError(
                "the agent of the workspace \"\(workspace.name)\" is not connected (\(agent.status))")
        }
        let path = values.string("pcap-file")
        let capture = path.isEmpty ? nil : try PacketCapture(path: path)
        let outcome: Result<Int32, any Error>
        do {
            outcome = .success(try await test(invocation, client, agent, duration, capture))
        } catch {
            outcome = .failure(error)
        }
        try await finish(capture, path, invocation.console)
        return try outcome.get()
    }

    private static func test(
        _ invocation: Invocation, _ client: APIClient, _ agent: WorkspaceAgent, _ duration: Duration,
        _ capture: PacketCapture?
    ) async throws -> Int32 {
        let link = try await AgentLink.open(invocation, client, agent, capture: capture)
        do {
            let signal = try await untilStopped {
                try await link.reach(agent.name, invocation.console)
                if invocation.values.bool("direct") { try await waitForDirect(link, invocation.console) }
                try await measure(invocation, link, duration)
            }
            await link.close()
            return signal == nil ? 0 : 1
        } catch {
            await link.close()
            throw error
        }
    }

    /// How long what was captured may still take to get to the file.
    private static let captureLimit: Int32 = 5

    private static func finish(_ capture: PacketCapture?, _ path: String, _ console: Console) async throws {
        guard let capture else { return }
        let summary = try await DedicatedThread.run { capture.finish(within: captureLimit) }
        console.note("\(summary.written) packets are in \(path)")
        guard summary.lost > 0 else { return }
        let reason = summary.failure.map { "\($0)" } ?? "the file is written too slowly"
        console.note("\(summary.lost) more are not: \(reason)")
    }

    private static func waitForDirect(_ link: AgentLink, _ console: Console) async throws {
        while true {
            let ping = try await link.node.ping(link.peer)
            if case .direct = ping.path { return }
            console.note(
                "Waiting for a direct connection... (\(PingCommand.milliseconds(ping.latency.inSeconds))"
                    + " \(link.describe(ping.path)))")
            try await Task.sleep(for: .seconds(1))
        }
    }

    private static func measure(
        _ invocation: Invocation, _ link: AgentLink, _ duration: Duration
    ) async throws {
        let isDown = invocation.values.string("direction") == "down"
        invocation.console.note("Starting a \(format(duration)) \(isDown ? "download" : "upload") test...")
        let socket = try await link.node.dial(SocketAddress(link.address, port: 3))
        let result = try await Speedtest.run(over: socket, isDown ? .down : .up, for: duration)
        show(result, invocation)
    }

    private static func show(_ result: Speedtest.Result, _ invocation: Invocation) {
        if invocation.values.string("output") == "json" {
            let json = { (interval: Speedtest.Interval) in
                JSON.record([
                    "start_time_seconds": .double(interval.start), "end_time_seconds": .double(interval.end),
                    "throughput_mbits": .double(interval.megabits),
                ])
            }
            let all = JSON.record([
                "overall": json(result.total), "intervals": .array(result.intervals.map(json)),
            ])
            return invocation.console.say(all.pretty)
        }
        let row = { (interval: Speedtest.Interval) in
            [
                "\(fixed(interval.start, 2))-\(fixed(interval.end, 2)) sec",
                "\(fixed(interval.megabits, 4)) Mbits/sec",
            ]
        }
        let rule = ["----------------------------------------", ""]
        invocation.console.out(
            Table.text(
                names: names, columns: invocation.values.columns("column"),
                rows: result.intervals.map(row) + [rule, row(result.total)]))
    }
}
