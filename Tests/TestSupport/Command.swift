// SPDX-License-Identifier: Apache-2.0

public import Foundation
internal import LinuxIO
internal import Synchronization

/// A child process whose output goes to files, so that no pipe can fill and block it. (Foundation's `Process` takes a
/// child that closes inherited descriptors, as OpenSSH's do, for one that has ended, and then waits for it on the
/// thread that all of them share.)
public final class Command: Sendable {
    /// What a finished command left behind.
    public struct Outcome: Sendable, CustomStringConvertible {
        /// Exit status, 128 and the number of a signal, or 137 after too long a time.
        public let status: Int32
        public let output: Data
        public let errorOutput: Data
        public let seconds: Double
        public var text: String { String(decoding: output, as: UTF8.self) }
        public var errorText: String { String(decoding: errorOutput, as: UTF8.self) }
        public var description: String {
            "status \(status) after \(seconds) s\nstdout: \(text.prefix(2000))\nstderr: \(errorText.suffix(3000))"
        }
    }

    private let child: ChildProcess
    private let exit = Mutex<ChildProcess.Exit?>(nil)
    private let feed: Mutex<Int32>
    private let folder: URL
    private let started = ContinuousClock.now

    /// Starts `arguments[0]`, found on PATH.
    public init(
        _ arguments: [String], environment: [String: String] = [:], input: Data? = nil,
        openInput: Bool = false
    ) throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "coder-test-\(UUID().uuidString)")
        self.folder = folder
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        func file(_ name: String, _ contents: Data? = nil) throws -> FileHandle {
            let path = folder.appending(path: name)
            _ = FileManager.default.createFile(atPath: path.path, contents: contents)
            return contents == nil
                ? try FileHandle(forWritingTo: path) : try FileHandle(forReadingFrom: path)
        }
        let (output, errors) = (try file("out"), try file("err"))
        let pipe = openInput ? try Descriptor.pipe().release() : nil
        let given = openInput ? nil : try file("in", input ?? Data())
        let merged = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        child = try ChildProcess(
            path: Array("/usr/bin/env".utf8), arguments: (["env"] + arguments).map { Array($0.utf8) },
            environment: merged.map { Array("\($0.key)=\($0.value)".utf8) }, directory: nil,
            streams: .descriptors(
                pipe?.0 ?? given?.fileDescriptor ?? -1, output.fileDescriptor, errors.fileDescriptor))
        if let pipe { close(pipe.0) }
        feed = Mutex(pipe?.1 ?? -1)
        withExtendedLifetime((output, errors, given)) {}
    }

    deinit {
        if isRunning {
            child.signal(SIGKILL)
            wait(until: .now + .seconds(5))
        }
        try? closeInput()
        try? FileManager.default.removeItem(at: folder)
    }

    public var pid: Int32 { child.id }
    public var isRunning: Bool {
        exit.withLock { exit in
            if exit == nil { exit = child.reap() }
            return exit == nil
        }
    }
    public var output: Data { (try? Data(contentsOf: folder.appending(path: "out"))) ?? Data() }
    public var errorOutput: Data { (try? Data(contentsOf: folder.appending(path: "err"))) ?? Data() }
    public var errorText: String { String(decoding: errorOutput, as: UTF8.self) }
    public var text: String { String(decoding: output, as: UTF8.self) }

    /// Signals the process alone, not those that it started.
    public func signal(_ number: Int32) { if isRunning { kill(child.id, number) } }

    /// Writes to an input that was opened with `openInput`.
    public func write(_ text: String) throws {
        try feed.withLock { feed in
            try Array(text.utf8).withUnsafeBytes { try Descriptor.writeAll(feed, $0) }
        }
    }

    public func closeInput() throws {
        feed.withLock { feed in
            if feed >= 0 { close(feed) }
            feed = -1
        }
    }

    /// Waits for the end; after `timeout` seconds the process is killed and the status is 137.
    @discardableResult
    public func finish(timeout: Double = 60) async throws -> Outcome {
        let deadline = ContinuousClock.now + .seconds(timeout)
        while isRunning, ContinuousClock.now < deadline { try await Task.sleep(for: .milliseconds(5)) }
        return outcome()
    }

    /// `finish` for threads that may wait.
    @discardableResult
    public func finishNow(timeout: Double = 60) -> Outcome {
        wait(until: .now + .seconds(timeout))
        return outcome()
    }

    private func wait(until deadline: ContinuousClock.Instant) {
        while isRunning, ContinuousClock.now < deadline { usleep(2_000) }
    }

    private func outcome() -> Outcome {
        let expired = isRunning
        if expired {
            child.signal(SIGKILL)
            wait(until: .now + .seconds(5))
        }
        let took = (ContinuousClock.now - started) / .seconds(1)
        let status: Int32 =
            switch exit.withLock({ $0 }) {
            case .code(let code) where !expired: code
            case .signal(let number, _) where !expired: 128 + number
            default: 137
            }
        return Outcome(status: status, output: output, errorOutput: errorOutput, seconds: took)
    }

    /// Waits until `condition` holds or the time is over; answers whether it held.
    public static func eventually(
        within seconds: Double, _ condition: () async throws -> Bool
    ) async throws -> Bool {
        let deadline = ContinuousClock.now + .seconds(seconds)
        while ContinuousClock.now < deadline {
            if try await condition() { return true }
            try await Task.sleep(for: .milliseconds(50))
        }
        return try await condition()
    }

    /// Runs a command to its end.
    @discardableResult
    public static func run(
        _ arguments: [String], environment: [String: String] = [:], input: Data? = nil, timeout: Double = 60
    ) async throws -> Outcome {
        try await Command(arguments, environment: environment, input: input).finish(timeout: timeout)
    }

    /// `run` for threads that may wait.
    @discardableResult
    public static func runNow(
        _ arguments: [String], input: Data? = nil, timeout: Double = 40
    ) throws -> Outcome {
        try Command(arguments, input: input).finishNow(timeout: timeout)
    }
}
