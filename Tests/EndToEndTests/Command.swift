// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A child process whose output goes to files, so that no pipe can fill and block it.
final class Command: @unchecked Sendable {  // the process is started once and only waited for afterwards
    /// What a finished command left behind.
    struct Outcome: Sendable, CustomStringConvertible {
        let status: Int32
        let output: Data
        let errorOutput: Data
        let seconds: Double
        var text: String { String(decoding: output, as: UTF8.self) }
        var errorText: String { String(decoding: errorOutput, as: UTF8.self) }
        var description: String {
            "status \(status) after \(seconds) s\nstdout: \(text.prefix(2000))\nstderr: \(errorText.suffix(3000))"
        }
    }

    private let process = Process()
    private let folder: URL
    private let started = ContinuousClock.now

    /// Starts `arguments[0]`, found on PATH.
    init(
        _ arguments: [String], environment: [String: String] = [:], input: Data? = nil,
        openInput: Bool = false
    ) throws {
        folder = FileManager.default.temporaryDirectory.appending(path: "coder-e2e-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        for name in ["out", "err", "in"] {
            _ = FileManager.default.createFile(
                atPath: folder.appending(path: name).path, contents: name == "in" ? input ?? Data() : nil)
        }
        process.executableURL = URL(filePath: "/usr/bin/env")
        process.arguments = arguments
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        process.standardOutput = try FileHandle(forWritingTo: folder.appending(path: "out"))
        process.standardError = try FileHandle(forWritingTo: folder.appending(path: "err"))
        if openInput {
            process.standardInput = Pipe()
        } else {
            process.standardInput = try FileHandle(forReadingFrom: folder.appending(path: "in"))
        }
        try process.run()
    }

    deinit {
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
        try? FileManager.default.removeItem(at: folder)
    }

    var pid: Int32 { process.processIdentifier }
    var isRunning: Bool { process.isRunning }
    var output: Data { (try? Data(contentsOf: folder.appending(path: "out"))) ?? Data() }
    var errorOutput: Data { (try? Data(contentsOf: folder.appending(path: "err"))) ?? Data() }
    var errorText: String { String(decoding: errorOutput, as: UTF8.self) }
    var text: String { String(decoding: output, as: UTF8.self) }

    func signal(_ number: Int32) { kill(process.processIdentifier, number) }

    /// Writes to an input that was opened with `openInput`.
    func write(_ text: String) throws {
        try (process.standardInput as? Pipe)?.fileHandleForWriting.write(contentsOf: Data(text.utf8))
    }

    func closeInput() throws { try (process.standardInput as? Pipe)?.fileHandleForWriting.close() }

    /// Waits for the end; after `timeout` seconds the process is killed and the status is 137.
    @discardableResult
    func finish(timeout: Double = 60) async throws -> Outcome {
        let deadline = ContinuousClock.now + .seconds(timeout)
        while process.isRunning, ContinuousClock.now < deadline {
            try await Task.sleep(for: .milliseconds(5))
        }
        let expired = process.isRunning
        if expired { kill(process.processIdentifier, SIGKILL) }
        process.waitUntilExit()
        let took = (ContinuousClock.now - started) / .seconds(1)
        let status =
            process.terminationReason == .exit ? process.terminationStatus : 128 + process.terminationStatus
        return Outcome(
            status: expired ? 137 : status, output: output, errorOutput: errorOutput, seconds: took)
    }

    /// Waits until `condition` holds or the time is over; answers whether it held.
    static func eventually(
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
    static func run(
        _ arguments: [String], environment: [String: String] = [:], input: Data? = nil, timeout: Double = 60
    ) async throws -> Outcome {
        try await Command(arguments, environment: environment, input: input).finish(timeout: timeout)
    }
}
