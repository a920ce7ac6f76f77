// SPDX-License-Identifier: Apache-2.0

import CLI
import Testing

/// Where `coder open app` leads.
@Suite struct OpenAppTests {
    struct Case: CustomTestStringConvertible {
        var testDescription: String
        var app: String
        var base = "https://coder.example.com"
        var host = "*.apps.example.com"
        /// nil: refused.
        var address: String?
    }

    static let cases = [
        Case(
            testDescription: "by path", app: #"{"slug":"code server"}"#,
            address: "https://coder.example.com/@me/dev.main/apps/code%20server/"),
        Case(
            testDescription: "through a proxy below a path", app: #"{"slug":"a"}"#,
            base: "https://eu.example.com/p/", address: "https://eu.example.com/p/@me/dev.main/apps/a/"),
        Case(
            testDescription: "a command", app: #"{"slug":"top","command":"top -d 1","subdomain":true}"#,
            address: "https://coder.example.com/@me/dev.main/terminal?command=top%20-d%201"),
        Case(
            testDescription: "a host of its own",
            app: #"{"slug":"a","subdomain":true,"subdomain_name":"a--main--dev--me"}"#,
            base: "http://coder.example.com:3000", address: "http://a--main--dev--me.apps.example.com/"),
        Case(
            testDescription: "no hosts here",
            app: #"{"slug":"a","subdomain":true,"subdomain_name":"a--main--dev--me"}"#, host: "",
            address: "https://coder.example.com/@me/dev.main/apps/a/"),
        Case(
            testDescription: "elsewhere",
            app: #"{"slug":"x","external":true,"url":"vscode://x?t=$SESSION_TOKEN"}"#,
            address: "vscode://x?t=$SESSION_TOKEN"),
        Case(testDescription: "no address", app: #"{"slug":"x","external":true,"url":"--help"}"#),
        Case(
            testDescription: "a terminal's command",
            app: "{\"external\":true,\"url\":\"http://x/\\u001b[2J\"}"),
        Case(testDescription: "empty", app: #"{"slug":"x","external":true,"url":""}"#),
    ]

    @Test(arguments: cases) func address(_ item: Case) throws {
        let place = OpenAppCommand.Place(base: item.base, wildcardHost: item.host, workspace: "@me/dev.main")
        let app = try JSON.parse(item.app.utf8)
        guard let address = item.address else {
            #expect(throws: (any Error).self) { try OpenAppCommand.address(of: app, at: place) }
            return
        }
        #expect(try OpenAppCommand.address(of: app, at: place) == address)
    }

    @Test func whatIsMissingNamesWhatIsThere() throws {
        let apps = try ["b", "a"].map { try JSON.parse("{\"slug\":\"\($0)\"}".utf8) }
        #expect(try OpenAppCommand.choose("b", "app", in: apps, by: "slug")["slug"].string == "b")
        let missing = #expect(throws: (any Error).self) {
            try OpenAppCommand.choose("c", "app", in: apps, by: "slug")
        }
        #expect(missing.map { "\($0)" } == "there is no app \"c\", only: a, b")
        let none = #expect(throws: (any Error).self) {
            try OpenAppCommand.choose("c", "app", in: [], by: "slug")
        }
        #expect(none.map { "\($0)" } == "there is no app \"c\", there are none")
    }
}
