// SPDX-License-Identifier: Apache-2.0

import CLI
import Testing

@Suite struct OptionTests {
    /// A server hook whose action prints what it was given.
    private static func hooks() -> Hooks {
        let options = [
            CommandOption(
                "http-address", env: "CODER_HTTP_ADDRESS", default: "127.0.0.1:3000", help: "Where to listen."
            ),
            CommandOption(
                "flagged", short: "f", env: "CODER_FLAGGED", .bool, default: "true", help: "A switch."),
            CommandOption("names", short: "n", env: "CODER_NAMES", .stringArray, help: "A list."),
            CommandOption("pause", .duration, default: "1m", help: "A duration."),
            CommandOption("mode", .choice(["Fast", "slow"]), default: "slow", help: "A choice."),
            CommandOption("count", short: "c", .int, help: "A number."),
            CommandOption(
                "old-address", env: "CODER_OLD_ADDRESS", useInstead: "http-address", help: "Older name."),
        ]
        let server = ServerHook(options: options) { invocation in
            let values = invocation.values
            invocation.console.out(
                "\(values.string("http-address")) \(values.bool("flagged")) \(values.list("names"))"
                    + " \(values.duration("pause")?.components.seconds ?? -1) \(values.string("mode"))"
                    + " \(values.int("count") ?? -1) \(values.source("http-address"))")
            return 7
        }
        return Hooks(version: "v2.30.0-test", server: server)
    }

    struct Case: Sendable, CustomTestStringConvertible {
        var arguments: String
        var environment: [String: String] = [:]
        var output: String

        var testDescription: String { "\(arguments) \(environment)" }
    }

    @Test(arguments: [
        Case(arguments: "server", output: "127.0.0.1:3000 true [] 60 slow -1 default"),
        Case(
            arguments: "server", environment: ["CODER_HTTP_ADDRESS": "a", "CODER_FLAGGED": "F"],
            output: "a false [] 60 slow -1 env"),
        Case(
            arguments: "--http-address b server", environment: ["CODER_HTTP_ADDRESS": "a"],
            output: ""),
        Case(
            arguments: "server --http-address b", environment: ["CODER_HTTP_ADDRESS": "a"],
            output: "b true [] 60 slow -1 flag"),
        Case(
            arguments: "server", environment: ["CODER_HTTP_ADDRESS": ""],
            output: "127.0.0.1:3000 true [] 60 slow -1 default"),
        Case(
            arguments: "server", environment: ["HOMEBREW_CODER_HTTP_ADDRESS": "h"],
            output: "h true [] 60 slow -1 env"),
        Case(
            arguments: "server --flagged=false --mode FAST",
            output: "127.0.0.1:3000 false [] 60 Fast -1 default"),
        Case(arguments: "server --flagged= -c5", output: "127.0.0.1:3000 false [] 60 slow 5 default"),
        Case(arguments: "server -c=5 --pause 1h2m", output: "127.0.0.1:3000 true [] 3720 slow 5 default"),
        Case(
            arguments: "server --names a,b -n c", environment: ["CODER_NAMES": "z"],
            output: "127.0.0.1:3000 true [\"a\", \"b\", \"c\"] 60 slow -1 default"),
        Case(
            arguments: "server", environment: ["CODER_NAMES": "x,\"y,z\""],
            output: "127.0.0.1:3000 true [\"x\", \"y,z\"] 60 slow -1 default"),
        Case(
            arguments: "server --names a --names= --names b",
            output: "127.0.0.1:3000 true [\"b\"] 60 slow -1 default"),
        Case(arguments: "server --verbose -fc 5", output: "127.0.0.1:3000 true [] 60 slow 5 default"),
        Case(arguments: "-v server -c 5", output: "127.0.0.1:3000 true [] 60 slow 5 default"),
        Case(
            arguments: "server", environment: ["CODER_OLD_ADDRESS": "old"],
            output: "old true [] 60 slow -1 env"),
        Case(
            arguments: "server --http-address new", environment: ["CODER_OLD_ADDRESS": "old"],
            output: "new true [] 60 slow -1 flag"),
    ])
    func flagsBeatTheEnvironmentWhichBeatsDefaults(_ test: Case) async {
        let outcome = await coder(
            test.arguments.split(separator: " ").map(String.init), environment: test.environment,
            hooks: Self.hooks())
        #expect(outcome.output == test.output)
        #expect(outcome.status == (test.output.isEmpty ? 1 : 7))
    }

    @Test(arguments: [
        ("server --unknown", "error: coder server: unknown flag: --unknown"),
        ("server -z", "error: coder server: unknown shorthand flag: 'z' in -z"),
        ("server --http-address", "error: coder server: flag needs an argument: --http-address"),
        (
            "server --mode x",
            "error: coder server: invalid argument for --mode: invalid choice: x, should be one of [Fast slow]"
        ),
        ("server --count x", "error: coder server: invalid argument for --count: not a whole number: \"x\""),
        ("server word", "error: coder server: wanted no args but got 1 [word], see \"coder server --help\""),
        ("nonsense", "error: unrecognized subcommand \"nonsense\" for \"coder\", see \"coder --help\""),
        (
            "tokens nonsense",
            "error: unrecognized subcommand \"nonsense\" for \"coder tokens\", see \"coder tokens --help\""
        ),
        ("ssh", "error: coder ssh: wanted at least 1 args but got 0 [], see \"coder ssh --help\""),
    ])
    func mistakesAreToldInOneLine(_ arguments: String, _ message: String) async {
        let outcome = await coder(arguments.split(separator: " ").map(String.init), hooks: Self.hooks())
        #expect(outcome.errors == message + "\n")
        #expect(outcome.output == "")
        #expect(outcome.status == 1)
    }

    @Test func aBadVariableIsNamed() async {
        let outcome = await coder(["server"], environment: ["CODER_FLAGGED": "perhaps"], hooks: Self.hooks())
        #expect(outcome.errors == "error: parsing env: CODER_FLAGGED: not a boolean: \"perhaps\"\n")
    }

    @Test func aDeprecatedOptionWarns() async {
        let outcome = await coder(["server", "--old-address", "o"], hooks: Self.hooks())
        #expect(outcome.errors == "--old-address is deprecated, please use --http-address instead.\n")
        #expect(outcome.output.hasPrefix("o "))
    }

    @Test func aBuildWithoutServerSaysSo() async {
        let outcome = await coder(["server"])
        #expect(outcome.status == 1)
        #expect(outcome.errors.contains("slim build"))
    }

    @Test(arguments: [
        "", "ssh", "login", "port-forward", "tokens", "tokens create", "external-workspaces create", "ping",
        "speedtest",
        "list", "config-ssh", "agent", "whoami", "show", "logout", "netcheck", "external-workspaces",
        "external-workspaces list", "external-workspaces agent-instructions", "start", "stop", "restart",
        "update", "open vscode", "completion",
    ])
    func helpIsAsRecorded(_ command: String) async {
        let words = command.split(separator: " ").map(String.init)
        let outcome = await coder(words + ["--help"])
        #expect(outcome.status == 0)
        #expect(outcome.errors == "")
        let name = (["coder"] + words).joined(separator: "-")
        #expect(outcome.output == golden("\(name).txt"))
        // Help needs no valid arguments and wins over everything else on the line.
        #expect(await coder(words + ["-h"]).output == outcome.output)
    }

    @Test(
        arguments: [
            ("1w2d3h", 788_400_000_000_000), ("1.5h", 5_400_000_000_000), ("90", nil), ("10ms", 10_000_000),
            ("", nil),
            ("-2s", -2_000_000_000), ("1y", 31_536_000_000_000_000), ("5x", nil), ("0", 0), ("1µs", 1_000),
        ] as [(String, Int64?)])
    func durations(_ text: String, _ nanoseconds: Int64?) {
        #expect(parseDuration(text) == nanoseconds.map { Duration.nanoseconds($0) })
    }

    @Test(
        arguments: [
            (0, "0s"), (1_500_000, "1.5ms"), (1_002_000_000, "1.002s"), (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"), (12_000, "12µs"),
        ] as [(Int64, String)])
    func durationsAsGoWritesThem(_ nanoseconds: Int64, _ text: String) {
        #expect(format(.nanoseconds(nanoseconds)) == text)
    }
}
