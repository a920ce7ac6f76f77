// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

/// `coder ping`.
enum PingCommand {
    static let command = Command(
        name: "ping", usage: "<workspace>",
        summary: "Ping a workspace: is the path direct or relayed, how long does it take.",
        arguments: .exactly(1),
        options: [
            CommandOption("wait", .duration, default: "1s", help: "Pause between pings."),
            CommandOption(
                "timeout", short: "t", .duration, default: "5s", help: "How long to wait for each answer."),
            CommandOption(
                "num", short: "n", .int, default: "0", help: "How many pings; 0 means until interrupted."),
            CommandOption("time", .bool, help: "Show the time of each answer, local."),
            CommandOption("utc", .bool, help: "Show the time of each answer in UTC."),
            CommandOption(
                "explain", .bool,
                help: "Say which addresses were tried and why the path is what it is. Exit status: 0 direct, "
                    + "3 relayed, 1 unreachable."),
            CommandOption(
                "output", short: "o", .choice(["text", "json"]), default: "text",
                help: "Output format of --explain."),
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let name = try WorkspaceName(invocation.words[0])
        let workspace = try await client.workspace(name)
        let agent = try workspace.agent(named: name.agent)
        guard agent.status == "connected" else {
            let why = "the agent of the workspace \"\(workspace.name)\" is not connected (\(agent.status))"
            guard invocation.values.bool("explain") else { throw CommandError(why) }
            return try PingExplanation.unreachable(invocation, workspace.name, why)
        }
        let link = try await AgentLink.open(invocation, client, agent)
        if invocation.values.bool("explain") { return try await explain(invocation, link, workspace.name) }
        let tally = Tally()
        do {
            let signal = try await untilStopped {
                try await link.reach(agent.name, invocation.console)
                try await diagnose(link, invocation)
                try await pings(invocation, link, workspace.name, tally)
            }
            if signal != nil { invocation.console.note("") }
            await summarise(link, invocation, workspace.name, tally)
            await link.close()
            return 0
        } catch {
            await link.close()
            throw error
        }
    }

    private static func explain(
        _ invocation: Invocation, _ link: AgentLink, _ name: String
    ) async throws -> Int32 {
        do {
            let status = try await PingExplanation.run(invocation, link, name)
            await link.close()
            return status
        } catch {
            await link.close()
            throw error
        }
    }

    // MARK: Pings

    private final class Tally: Sendable {
        struct Numbers {
            var sent = 0
            var latencies: [Double] = []
            var wasDirect = false
            var lastAddress: SocketAddress?
        }
        let numbers = Mutex(Numbers())
    }

    private static func pings(
        _ invocation: Invocation, _ link: AgentLink, _ name: String, _ tally: Tally
    ) async throws {
        let values = invocation.values
        let count = values.int("num") ?? 0
        let began = Clock.monotonicNanoseconds()
        var number = 0
        while count == 0 || number < count {
            if number > 0 { try await Task.sleep(for: values.duration("wait") ?? .seconds(1)) }
            number += 1
            tally.numbers.withLock { $0.sent += 1 }
            do {
                let timeout = values.duration("timeout") ?? .seconds(5)
                let result = try await link.ping(within: timeout)
                report(result, invocation, link, name, tally, began)
            } catch is CancellationError {
                throw CancellationError()
            } catch NodeError.cancelled where Task.isCancelled {
                throw CancellationError()
            } catch NodeError.timedOut {
                invocation.console.say("ping to \"\(name)\" timed out ")
            } catch {
                invocation.console.say("ping to \"\(name)\" failed \(error)")
            }
        }
    }

    private static func report(
        _ result: PingResult, _ invocation: Invocation, _ link: AgentLink, _ name: String, _ tally: Tally,
        _ began: UInt64
    ) {
        let values = invocation.values
        var prefix = ""
        if values.bool("time") || values.bool("utc") {
            prefix = "[\(Timestamp.now.text(isLocal: !values.bool("utc")))] "
        }
        var address: SocketAddress?
        if case .direct(let found) = result.path { address = found }
        let becameDirect = tally.numbers.withLock { numbers in
            numbers.latencies.append(result.latency.inSeconds)
            defer { numbers.wasDirect = address != nil }
            numbers.lastAddress = address
            return address != nil && !numbers.wasDirect
        }
        if becameDirect {
            let elapsed = Duration.milliseconds(Int64((Clock.monotonicNanoseconds() - began) / 1_000_000))
            invocation.console.say("p2p connection established in \(format(elapsed))")
        }
        invocation.console.say(
            "\(prefix)pong from \(name) \(link.describe(result.path)) in \(milliseconds(result.latency.inSeconds))"
        )
    }

    /// Go's form, rounded to milliseconds; below one of them with two places, because a local path is that quick.
    static func milliseconds(_ seconds: Double) -> String {
        seconds < 0.001
            ? "\(fixed(seconds * 1_000, 2))ms" : format(.milliseconds(Int64((seconds * 1_000).rounded())))
    }

    // MARK: Words around them

    private static func diagnose(_ link: AgentLink, _ invocation: Invocation) async throws {
        let status = try await link.node.status()
        let console = invocation.console
        let own = status.ownNode
        let region = { (number: Int) in "\(number) (\(link.regionNames(number)))" }
        console.note(
            own.homeRegion == 0
                ? "✘ not connected to DERP" : "✔ preferred DERP region: \(region(own.homeRegion))")
        guard let peer = status.peers.first(where: { $0.id == link.peer }) else {
            console.note("✘ have not received remote agent data from the Coder networking coordinator")
            return
        }
        let hasSent = own.homeRegion != 0 || !own.endpoints.isEmpty
        console.note(
            hasSent
                ? "✔ sent local data to Coder networking coordinator"
                : "✘ have not sent local data to Coder networking coordinator")
        console.note("✔ received remote agent data from Coder networking coordinator")
        console.note("    preferred DERP region: \(region(peer.homeRegion))")
        let endpoints = try await link.node.explain(link.peer).candidates
            .filter { $0.sources.contains(.nodeList) || $0.sources.contains(.callMeMaybe) }
        console.note("    endpoints: \(endpoints.map(\.address.description).joined(separator: ", "))")
        if let since = peer.sinceHandshake {
            let mark = since > .seconds(300) ? "⚠" : "✔"
            console.note("\(mark) Wireguard handshake \(milliseconds(since.inSeconds)) ago")
        } else {
            console.note("✘ Wireguard is not connected")
        }
        try await hints(link, invocation)
    }

    /// What is known already to stand in the way of a direct path. The path itself may only be found later.
    private static func hints(_ link: AgentLink, _ invocation: Invocation) async throws {
        let explanation = try await link.node.explain(link.peer)
        guard explanation.outcome != .direct || invocation.values.bool("verbose") else { return }
        for line in PingHints.lines(
            explanation.reason, isDisabledHere: invocation.values.bool("disable-direct-connections"),
            narrow: NetworkInterface.narrow())
        {
            invocation.console.note(line)
        }
    }

    private static func summarise(
        _ link: AgentLink, _ invocation: Invocation, _ name: String, _ tally: Tally
    ) async {
        let numbers = tally.numbers.withLock { $0 }
        guard numbers.sent > 0 else { return }
        if let address = numbers.lastAddress {
            let isPrivate = address.ip.isPrivate || address.ip.isLoopback
            invocation.console.note(
                "✔ You are connected directly (p2p)" + (isPrivate ? ", over a private network" : ""))
        } else if !numbers.latencies.isEmpty {
            invocation.console.note("❗ You are connected via a DERP relay, not directly (p2p)")
            do {
                if let reason = try await link.node.explain(link.peer).reason {
                    invocation.console.note("    \(PingHints.sentence(reason))")
                }
            } catch {
                invocation.console.note("    The reason is not known: \(error)")
            }
        }
        let all = numbers.latencies
        let mean = all.isEmpty ? 0 : all.reduce(0, +) / Double(all.count)
        let variance =
            all.isEmpty ? 0 : all.map { ($0 - mean) * ($0 - mean) }.reduce(0, +) / Double(all.count)
        let names = ["workspace", "total", "successful", "min", "avg", "max", "variance"]
        let row = [
            name, "\(numbers.sent)", "\(all.count)", milliseconds(all.min() ?? 0), milliseconds(mean),
            milliseconds(all.max() ?? 0), "\(fixed(variance * 1e6, 3))ms²",
        ]
        invocation.console.say("---")
        invocation.console.out(Table.text(names: names, columns: names, rows: [row]))
    }
}
