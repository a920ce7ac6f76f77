// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc
import Synchronization

/// What a run of the program printed, and how it ended.
struct Outcome: Sendable {
    var status: Int32
    var output: String
    var errors: String
}

private final class Capture: Sendable {
    let output = Mutex("")
    let errors = Mutex("")
    let input: Mutex<[String]>

    init(input: [String]) { self.input = Mutex(input) }
}

/// Runs a command line in this process, without terminal. The configuration lies in a fresh directory unless one is
/// given.
func coder(
    _ arguments: [String], environment: [String: String] = [:], input: [String] = [],
    directory: String = temporaryDirectory(), hooks: Hooks = Hooks(version: "v2.30.0-test")
) async -> Outcome {
    let capture = Capture(input: input)
    let console = Console(
        out: { text in capture.output.withLock { $0 += text } },
        error: { text in capture.errors.withLock { $0 += text } },
        readLine: { capture.input.withLock { $0.isEmpty ? nil : $0.removeFirst() } },
        isInputTerminal: false, isOutputTerminal: false, isErrorTerminal: false)
    let variables = environment.merging(["CODER_CONFIG_DIR": directory]) { given, _ in given }
    let status = await Program.run(
        arguments: arguments, environment: variables, hooks: hooks, console: console)
    return Outcome(
        status: status, output: capture.output.withLock { $0 }, errors: capture.errors.withLock { $0 })
}

/// An empty directory below the system's temporary one.
func temporaryDirectory() -> String {
    var template = Array("/tmp/coder-cli-test-XXXXXX".utf8CString)
    let made = template.withUnsafeMutableBufferPointer { mkdtemp($0.baseAddress!) != nil }
    precondition(made, "no temporary directory")
    return String(decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// A file beside this one.
func golden(_ name: String) -> String? {
    let path = "\(#filePath)".split(separator: "/").dropLast().joined(separator: "/")
    guard let file = fopen("/\(path)/Golden/\(name)", "r") else { return nil }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    while case let byte = getc(file), byte != EOF { bytes.append(UInt8(truncatingIfNeeded: byte)) }
    return String(decoding: bytes, as: UTF8.self)
}
