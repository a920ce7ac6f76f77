// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

/// A load test between two mesh nodes: how fast, how late, and whether every byte arrived.
struct MeshLoad: Sendable {
    enum Kind: String, CaseIterable, Sendable {
        /// To a `sink` (or `discard` with `check=false`).
        case up
        /// From a `source`.
        case down
        /// Both ways at once through an `echo`.
        case both
        /// Question and answer with an `echo`: latencies.
        case rr
        /// The same by datagrams with a `udp-echo`.
        case udp
        /// Connects and closes: any service.
        case connects
        /// Connects `count` times and holds all of that for a while: memory. With a `hold`.
        case idle
    }

    var kind: Kind
    var target: SocketAddress
    var streams = 1
    /// Over all streams.
    var bytes = 64 << 20
    /// Of one question.
    var size = 64
    /// Questions over all streams.
    var count = 1_000
    /// Seconds after which the test gives up, or for which `connects` runs.
    var seconds = 30.0
    var checks = true
    /// Bytes per second over all streams, for `up` and `both`; 0 for as fast as it goes.
    var rate = 0

    /// From words: `up [fd7a::1]:5001 streams=4 bytes=1G`.
    init(_ words: [String]) throws {
        guard words.count >= 2, let kind = Kind(rawValue: words[0]), let target = SocketAddress(words[1])
        else {
            let kinds = Kind.allCases.map(\.rawValue).joined(separator: "|")
            throw CommandError(
                "load (\(kinds)) ADDRESS:PORT [streams= bytes= size= count= seconds= rate= check=]")
        }
        self.kind = kind
        self.target = target
        if kind == .connects { seconds = 5 }
        for word in words.dropFirst(2) {
            let parts = word.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2, let number = Self.number(parts[1]) else {
                throw CommandError("load: not name=number: \"\(word)\"")
            }
            switch parts[0] {
            case "streams" where 1...256 ~= number: streams = Int(number)
            case "bytes" where 1...1e15 ~= number: bytes = Int(number)
            case "size" where 1...Double(1 << 20) ~= number: size = Int(number)
            case "count" where 1...1e9 ~= number: count = Int(number)
            case "seconds" where 0.01...86_400 ~= number: seconds = number
            case "rate" where 0...1e12 ~= number: rate = Int(number)
            case "check": checks = number != 0
            default: throw CommandError("load: unknown or out of range: \"\(word)\"")
            }
        }
        if kind == .udp { size = min(size, 1_200) }
    }

    private static func number(_ text: String) -> Double? {
        if let value = parseBool(text), !text.isEmpty, Double(text) == nil { return value ? 1 : 0 }
        let units: [Character: Double] = [
            "k": 1e3, "K": 1_024, "m": 1e6, "M": 1_048_576, "g": 1e9, "G": 1_073_741_824,
        ]
        if let unit = text.last.flatMap({ units[$0] }) { return Double(text.dropLast()).map { $0 * unit } }
        return Double(text)
    }

    /// Open connections that nobody uses: what they cost this process.
    private func idle(on node: Node) async -> JSON {
        let start = Clock.monotonicNanoseconds()
        let before = MeshMemory.residentBytes
        var held: [Int32] = []
        var problem: String?
        func note(_ result: Result<Int32, NodeError>) {
            switch result {
            case .success(let number): held.append(number)
            case .failure(let error): problem = "\(error)"
            }
        }
        await withTaskGroup(of: Result<Int32, NodeError>.self) { group in
            for index in 0..<count {
                if index >= 64, let result = await group.next() { note(result) }
                group.addTask {
                    do throws(NodeError) { return .success(try await node.dial(target).release()) } catch {
                        return .failure(error)
                    }
                }
            }
            for await result in group { note(result) }
        }
        let took = Self.seconds(since: start)
        try? await Task.sleep(for: .seconds(seconds))
        let grown = MeshMemory.residentBytes - before
        for number in held { OwnedDescriptor(taking: number).close() }
        return .record([
            "kind": .string(kind.rawValue), "count": .int(held.count), "seconds": .double(took),
            "per_second": .double(Double(held.count) / took, digits: 1), "grown_bytes": .int(grown),
            "problems": .array(problem.map { [.string($0)] } ?? []),
        ])
    }

    /// What one stream saw.
    private struct Part: Sendable {
        var bytes = 0
        var isExact = true
        var problem: String?
        var latencies: [UInt64] = []
        var lost = 0
        /// Seconds after the start of the test.
        var connected = 0.0
        var firstByte: Double?
        var longestGap = 0.0
    }

    /// Runs it and returns the result.
    func run(on node: Node) async -> JSON {
        if kind == .idle { return await idle(on: node) }
        let start = Clock.monotonicNanoseconds()
        let parts = await withTaskGroup(of: Part.self) { group in
            for index in 0..<streams {
                group.addTask {
                    var part = Part()
                    do {
                        if kind == .connects {
                            try await connects(node, start, &part)
                        } else {
                            part = try await stream(node, index, start)
                        }
                    } catch {
                        part.problem = "\(error)"
                    }
                    return part
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        return report(parts, seconds: Self.seconds(since: start))
    }

    private static func seconds(since start: UInt64) -> Double {
        Double(Clock.monotonicNanoseconds() - start) / 1e9
    }

    // MARK: One stream

    private func connects(_ node: Node, _ start: UInt64, _ part: inout Part) async throws {
        while Self.seconds(since: start) < seconds {
            let began = Clock.monotonicNanoseconds()
            try await node.dial(target).close()
            part.latencies.append(Clock.monotonicNanoseconds() - began)
        }
    }

    private func stream(_ node: Node, _ index: Int, _ start: UInt64) async throws -> Part {
        let socket = kind == .udp ? try await node.dialUDP(target) : try await node.dial(target)
        let connected = Self.seconds(since: start)
        // Lets the time limit end the thread's reads and writes.
        let control = try socket.duplicate()
        let (number, copy) = (socket.release(), control.number)
        let limit = Task {
            try await Task.sleep(for: .seconds(seconds))
            shutdown(copy, Int32(SHUT_RDWR))
        }
        var part = await withCheckedContinuation { continuation in
            let thread = try? DedicatedThread(name: "mesh-load") {
                var part = Part()
                do {
                    try exchange(MeshSocket(OwnedDescriptor(taking: number)), index, start, &part)
                } catch {
                    part.problem = "\(error)"
                }
                continuation.resume(returning: part)
            }
            if let thread {
                thread.detach()
            } else {
                OwnedDescriptor(taking: number).close()
                continuation.resume(returning: Part(problem: "no thread"))
            }
        }
        limit.cancel()
        _ = await limit.result
        control.close()
        part.connected = connected
        return part
    }

    private func share(_ total: Int, _ index: Int) -> Int {
        total / streams + (index < total % streams ? 1 : 0)
    }

    private func exchange(
        _ socket: borrowing MeshSocket, _ index: Int, _ start: UInt64, _ part: inout Part
    ) throws {
        let mine = share(bytes, index)
        switch kind {
        case .up:
            try socket.writePattern(mine, rate: rate / streams) { part.bytes += $0 }
            socket.finishWriting()
            let answer = try socket.line()
            guard checks else { break }
            let report = try JSON.parse(Array(answer.utf8))
            part.isExact = report["exact"].bool && report["bytes"].int == mine
            part.bytes = report["bytes"].int ?? 0
        case .down:
            try socket.say("\(mine)")
            try receive(socket, start, &part, until: checks ? .max : mine)
            if checks { part.isExact = part.isExact && part.bytes == mine }
        case .both:
            let (number, writer) = (socket.number, try writer(socket, mine))
            try receive(socket, start, &part, until: mine)
            shutdown(number, Int32(SHUT_RDWR))
            writer.join()
            if checks { part.isExact = part.isExact && part.bytes == mine }
        case .rr, .udp: try questions(socket, share(count, index), start, &part)
        case .connects, .idle: break
        }
    }

    private func writer(_ socket: borrowing MeshSocket, _ count: Int) throws -> DedicatedThread {
        let rate = rate / streams
        let copy = fcntl(socket.number, F_DUPFD_CLOEXEC, 3)
        guard copy >= 0 else { throw SystemError(call: "fcntl") }
        return try DedicatedThread(name: "mesh-load-up") {
            // What goes wrong shows on the reading side: bytes are missing.
            guard let socket = try? MeshSocket(OwnedDescriptor(taking: copy)) else { return }
            try? socket.writePattern(count, rate: rate)
            socket.finishWriting()
        }
    }

    private func receive(
        _ socket: borrowing MeshSocket, _ start: UInt64, _ part: inout Part, until limit: Int = .max
    ) throws {
        var checker = MeshChecker()
        var last = Self.seconds(since: start)
        while checker.count + part.bytes < limit, let bytes = try socket.read() {
            let now = Self.seconds(since: start)
            if part.firstByte == nil {
                part.firstByte = now
            } else {
                part.longestGap = max(part.longestGap, now - last)
            }
            last = now
            if checks { checker.take(bytes) } else { part.bytes += bytes.count }
        }
        guard checks else { return }
        part.bytes = checker.count
        part.isExact = checker.firstWrong == nil
    }

    private func questions(
        _ socket: borrowing MeshSocket, _ count: Int, _ start: UInt64, _ part: inout Part
    ) throws {
        part.latencies.reserveCapacity(min(count, 1 << 20))
        for number in 0..<count {
            guard Self.seconds(since: start) < seconds else {
                part.problem = "the time is up"
                return
            }
            let began = Clock.monotonicNanoseconds()
            try socket.writePattern(size, from: number * size)
            if kind == .udp, !Self.isReadable(socket.number) {
                part.lost += 1
                continue
            }
            var got = 0
            while got < size, let bytes = try socket.read(limit: kind == .udp ? 65_536 : size - got) {
                MeshPattern.with(at: number * size + got, limit: bytes.count) {
                    if memcmp($0.baseAddress!, bytes.baseAddress!, bytes.count) != 0 { part.isExact = false }
                }
                got += bytes.count
            }
            guard got == size else {
                if kind == .udp { part.isExact = false }
                part.problem = "the stream ended"
                return
            }
            let took = Clock.monotonicNanoseconds() - began
            if part.firstByte == nil { part.firstByte = Self.seconds(since: start) }
            part.longestGap = max(part.longestGap, Double(took) / 1e9)
            part.latencies.append(took)
            part.bytes += size
        }
    }

    private static func isReadable(_ number: Int32) -> Bool {
        var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
        return poll(&wait, 1, 1_000) == 1
    }

    // MARK: Result

    private func report(_ parts: [Part], seconds: Double) -> JSON {
        let total = parts.reduce(0) { $0 + $1.bytes }
        let latencies = parts.flatMap(\.latencies).sorted()
        var members: [JSON.Member] = [
            .init(key: "kind", value: .string(kind.rawValue)), .init(key: "streams", value: .int(streams)),
            .init(key: "seconds", value: .double(seconds)), .init(key: "bytes", value: .int(total)),
            .init(key: "megabytes_per_second", value: .double(Double(total) / 1e6 / seconds, digits: 3)),
            .init(key: "exact", value: .bool(parts.allSatisfy(\.isExact))),
            .init(
                key: "problems",
                value: .array(Set(parts.compactMap(\.problem)).sorted().map { .string($0) })),
            .init(key: "connect_seconds", value: .double(parts.map(\.connected).max() ?? 0)),
            .init(
                key: "first_byte_seconds",
                value: parts.compactMap(\.firstByte).min().map { .double($0) } ?? .null),
            .init(key: "longest_gap_seconds", value: .double(parts.map(\.longestGap).max() ?? 0)),
        ]
        if !latencies.isEmpty {
            let at = { (quantile: Double) -> JSON in
                let place = min(latencies.count - 1, Int(Double(latencies.count) * quantile))
                return .double(Double(latencies[place]) / 1e6)
            }
            members += [
                .init(key: "count", value: .int(latencies.count)),
                .init(key: "per_second", value: .double(Double(latencies.count) / seconds, digits: 1)),
                .init(key: "lost", value: .int(parts.reduce(0) { $0 + $1.lost })),
                .init(
                    key: "latency_ms",
                    value: .record(["p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1)])),
            ]
        }
        return .object(members)
    }
}
