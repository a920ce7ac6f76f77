// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import Glibc
internal import LinuxIO
internal import Mesh
internal import NetSim

/// `coder-netsim`: plays scenario files, networks made at random, and flight records.
@main
enum NetSimTool {
    private static let usage = """
        coder-netsim run [--seed N] [--seeds N] [--verbose] FILE…   play scenario files
        coder-netsim campaign [--seed N] [--seeds N]                pairs behind random NATs, with faults
        coder-netsim crowd [--seed N] [--nodes N]                   many nodes at once
        coder-netsim figures [--seed N] [--pairs N]                 how soon pairs go directly, and recover
        coder-netsim replay FILE                                    play a record of 'coder netcheck --record'
        Exit status: 0, or 1 when something that must be so was not.

        """

    static func main() {
        let arguments = Array(CommandLine.arguments.dropFirst())
        do {
            exit(try run(arguments))
        } catch {
            say("coder-netsim: \(error)\n", to: 2)
            exit(2)
        }
    }

    private struct Options {
        var seed: UInt64 = 1
        var seeds = 1
        var nodes = 1_000
        var pairs = 100
        var isVerbose = false
        var files: [String] = []
    }

    private struct UsageError: Error, CustomStringConvertible {
        var description: String
    }

    private static func parse(_ words: [String]) throws -> Options {
        var options = Options()
        var index = 0
        func number() throws -> UInt64 {
            index += 1
            guard index < words.count, let value = UInt64(words[index]) else {
                throw UsageError(description: "\(words[index - 1]) needs a number")
            }
            return value
        }
        while index < words.count {
            switch words[index] {
            case "--seed": options.seed = try number()
            case "--seeds": options.seeds = Int(clamping: try number())
            case "--pairs": options.pairs = max(1, Int(clamping: try number()))
            case "--nodes": options.nodes = Int(clamping: try number())
            case "--verbose", "-v": options.isVerbose = true
            case let word where word.hasPrefix("-"): throw UsageError(description: "unknown option \(word)")
            case let word: options.files.append(word)
            }
            index += 1
        }
        return options
    }

    private static func run(_ arguments: [String]) throws -> Int32 {
        guard let command = arguments.first else {
            say(usage, to: 2)
            return 2
        }
        let options = try parse(Array(arguments.dropFirst()))
        let seeds = (0..<UInt64(max(1, options.seeds))).map { options.seed &+ $0 }
        switch command {
        case "run":
            let scenarios = try options.files.map { try JSONDecoder().decode(Scenario.self, from: read($0)) }
            return play(scenarios.flatMap { scenario in seeds.map { (scenario, $0) } }, options)
        case "campaign": return play(seeds.map { (Campaign.pair(seed: $0), $0) }, options)
        case "crowd":
            return play(seeds.map { (Campaign.crowd(options.nodes, seed: $0), $0) }, options)
        case "figures":
            let figures = PathFigures(pairs: options.pairs, seed: options.seed)
            say(figures.text, to: 1)
            return figures.violations.isEmpty ? 0 : 1
        case "replay": return try replay(options)
        default:
            say(usage, to: 2)
            return command == "--help" ? 0 : 2
        }
    }

    private static func play(_ runs: [(Scenario, UInt64)], _ options: Options) -> Int32 {
        let began = Clock.monotonicNanoseconds()
        var table = ResultTable()
        for (scenario, seed) in runs {
            let world = World(
                scenario, seed: seed, log: options.isVerbose ? { say($0 + "\n", to: 1) } : nil)
            world.run()
            table.add(world)
        }
        say(table.text, to: 1)
        let took = (Clock.monotonicNanoseconds() - began) / 1_000_000
        say("\(runs.count) runs, \(table.violations.count) violations, \(took / 1_000).", to: 1)
        say("\(String(1_000 + took % 1_000).dropFirst()) s\n", to: 1)
        return table.violations.isEmpty ? 0 : 1
    }

    // MARK: Records

    private struct RecordFile: Decodable {
        struct Entry: Decodable {
            var side: String
            var recording: PathRecording
        }
        var recordings: [Entry]
    }

    private static func replay(_ options: Options) throws -> Int32 {
        guard let name = options.files.first else { throw UsageError(description: "replay needs a file") }
        let file = try JSONDecoder().decode(RecordFile.self, from: read(name))
        var isFaithful = true
        for (number, entry) in file.recordings.enumerated() {
            let replay = entry.recording.replay()
            isFaithful = isFaithful && replay.isFaithful
            say("record \(number + 1), \(entry.side): \(entry.recording.inputCount) inputs, ", to: 1)
            say("\(replay.decisions.count) decisions, ", to: 1)
            say(replay.isFaithful ? "as they were made\n" : "NOT as they were made\n", to: 1)
            for event in replay.decisions {
                let milliseconds = event.at.since(entry.recording.began).nanoseconds / 1_000_000
                let fraction = String(1_000 + milliseconds % 1_000).dropFirst()
                say("  +\(milliseconds / 1_000).\(fraction) \(event.kind.words)\n", to: 1)
            }
        }
        return isFaithful ? 0 : 1
    }

    private static func read(_ name: String) throws -> Data { try Data(contentsOf: URL(filePath: name)) }

    private static func say(_ text: String, to number: Int32) {
        var text = text
        text.withUTF8 { bytes in
            // A closed pipe leaves nobody to tell.
            do { try Descriptor.writeAll(number, UnsafeRawBufferPointer(bytes)) } catch { return }
        }
    }
}
