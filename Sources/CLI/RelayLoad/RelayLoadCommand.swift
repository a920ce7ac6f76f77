// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Mesh

/// `coder relay-load URL`: load on a relay, ours or another one, for the benchmarks. Hidden.
enum RelayLoadCommand {
    static let command = Command(
        name: "relay-load", usage: "<url>",
        summary: "Put load on a relay and print what came through, as JSON.",
        arguments: .exactly(1),
        options: [
            CommandOption(
                "mode", .choice(["window", "flood", "paced", "ping", "connect", "idle"]), default: "window",
                help: "What to do."),
            CommandOption("pairs", .int, default: "1", help: "Pairs of clients, or connections to open."),
            CommandOption("payload", .int, default: "1400", help: "Bytes per packet."),
            CommandOption("window", .int, default: "24", help: "Packets in flight per pair."),
            CommandOption("greedy", .int, default: "0", help: "How many of the pairs know no window."),
            CommandOption("rate", .int, default: "0", help: "Bytes per second, all pairs together (paced)."),
            CommandOption("seconds", .duration, default: "5s", help: "How long."),
            CommandOption("probe", .bool, help: "Measure round trips of one more pair meanwhile."),
            CommandOption(
                "threads", .int, default: "8", help: "Connections opened at a time (connect, idle)."),
            CommandOption("insecure", .bool, help: "Accept any certificate."),
            CommandOption("pid", .int, default: "0", help: "Process of the relay, to measure what it uses."),
        ], isHidden: true, run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        guard var url = HTTPURL(invocation.words[0]) else {
            throw CommandError("\"\(invocation.words[0])\" is not an http or https URL")
        }
        if url.path == "/" { url.path = "/derp" }
        let values = invocation.values
        var options = ConnectOptions()
        options.acceptsAnyCertificate = values.bool("insecure")
        let door = LoadDoor(url: url, options: options)
        let seconds = values.duration("seconds").map { Double($0.components.seconds) } ?? 5
        let meter = ProcessMeter(pid: values.int("pid") ?? 0)
        let pairs = max(1, values.int("pairs") ?? 1)
        let result: JSON
        switch values.string("mode") {
        case "ping":
            let (a, b) = (try await door.open(), try await door.open())
            result = try await Self.blocking { try RoundTrips.run(a, b, seconds: seconds).json }
        case "connect", "idle":
            result = try await connect(
                door, pairs, threads: values.int("threads") ?? 8, stays: values.string("mode") == "idle",
                meter)
        default:
            var plan = LoadPlan()
            plan.seconds = seconds
            plan.payload = max(16, min(65_536, values.int("payload") ?? 1_400))
            plan.window = max(1, values.int("window") ?? 24)
            plan.greedy = values.int("greedy") ?? 0
            plan.isFlood = values.string("mode") != "window"
            plan.bytesPerSecond = values.string("mode") == "paced" ? values.int("rate") ?? 0 : 0
            result = try await load(door, plan, pairs, probes: values.bool("probe"), meter)
        }
        invocation.console.say(result.compact)
        return 0
    }

    private static func load(
        _ door: LoadDoor, _ plan: LoadPlan, _ count: Int, probes: Bool, _ meter: ProcessMeter
    ) async throws -> JSON {
        var pairs: [(LoadConnection, LoadConnection)] = []
        for _ in 0..<count { pairs.append((try await door.open(), try await door.open())) }
        let probe = probes ? (try await door.open(), try await door.open()) : nil
        let ends = pairs
        async let trips: RoundTrips? = Self.blocking {
            try probe.map { try RoundTrips.run($0.0, $0.1, seconds: plan.seconds, pauseMilliseconds: 1) }
        }
        let load = try await Self.blocking {
            let run = try LoadRun(plan, ends)
            let before = meter.cpuSeconds
            try run.run()
            var result = run.result
            result.cpuSeconds = meter.cpuSeconds - before
            try run.settle()
            result.lost = run.lost
            return result
        }
        var json = load.json(plan)
        if let trips = try await trips { json = json.adding("probe", trips.json) }
        return json
    }

    private static func connect(
        _ door: LoadDoor, _ count: Int, threads: Int, stays: Bool, _ meter: ProcessMeter
    ) async throws -> JSON {
        let (memory, cpu) = (meter.residentBytes, meter.cpuSeconds)
        let begin = Clock.monotonicNanoseconds()
        var open: [LoadConnection] = []
        try await withThrowingTaskGroup(of: [LoadConnection].self) { group in
            for index in 0..<max(1, threads) {
                let share = (count + threads - 1 - index) / threads
                group.addTask {
                    var opened: [LoadConnection] = []
                    for _ in 0..<share {
                        let connection = try await door.open(isIdle: true)
                        if stays { opened.append(connection) } else { connection.close() }
                    }
                    return opened
                }
            }
            for try await opened in group { open += opened }
        }
        let seconds = Double(Clock.monotonicNanoseconds() - begin) / 1e9
        let used = meter.cpuSeconds - cpu
        if stays { try await Task.sleep(for: .seconds(4)) }
        let json = JSON.record([
            "connections": .int(count), "seconds": .double(seconds),
            "per_second": .double(Double(count) / seconds, digits: 0),
            "cpu_us_per_connection": .double(used / Double(count) * 1e6, digits: 1),
            "bytes_per_connection": stays
                ? .double(Double(meter.residentBytes - memory) / Double(count), digits: 0) : .null,
        ])
        for connection in open { connection.close() }
        return json
    }

    /// Runs something that waits on a thread that may wait.
    static func blocking<R: Sendable>(_ body: @escaping @Sendable () throws -> R) async throws -> R {
        try await DedicatedThread.run(body)
    }
}

/// What a process uses, from `/proc`; nothing for process 0.
struct ProcessMeter: Sendable {
    let pid: Int

    /// User and system time of all its threads that live.
    var cpuSeconds: Double {
        guard pid > 0, let folder = opendir("/proc/\(pid)/task") else { return 0 }
        defer { closedir(folder) }
        var total = 0.0
        while let entry = readdir(folder) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            guard Int(name) != nil else { continue }
            let used = Self.text("/proc/\(pid)/task/\(name)/schedstat").split(separator: " ").first
            total += (used.flatMap { Double($0) } ?? 0) / 1e9
        }
        return total
    }

    /// Resident memory.
    var residentBytes: Int {
        guard pid > 0 else { return 0 }
        let pages = Self.text("/proc/\(pid)/statm").split(separator: " ").dropFirst().first
        return (pages.flatMap { Int($0) } ?? 0) * 4_096
    }

    private static func text(_ path: String) -> String {
        let descriptor = Glibc.open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 4_096)
        let count = read(descriptor, &bytes, bytes.count)
        return String(decoding: bytes[..<max(0, count)], as: UTF8.self)
    }
}

extension JSON {
    /// This object with one more member.
    func adding(_ key: String, _ value: JSON) -> JSON {
        guard case .object(let members) = self else { return self }
        return .object(members + [Member(key: key, value: value)])
    }
}
