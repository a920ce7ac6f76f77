// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// What git runs inside a workspace to ask for a user or a password (`GIT_ASKPASS`): this program with nothing but the
/// question. The deployment knows the answer for the providers that it is set up for; an exit status of 1 makes git ask
/// the user. Source: cli/commands.md §5.3.
enum GitAskpassCommand {
    static let command: Command = {
        var command = Command(
            name: "gitaskpass", summary: "Answers git's questions inside a workspace.", isHidden: true,
            run: run)
        command.isRaw = true
        return command
    }()

    /// Whether the command line is a question of git.
    static func isQuestion(_ arguments: [String], _ environment: [String: String]) -> Bool {
        arguments.count == 1 && environment["GIT_PREFIX"] != nil
            && (arguments[0].hasPrefix("Username ") || arguments[0].hasPrefix("Password "))
    }

    @Sendable private static func run(_ invocation: Invocation) async throws -> Int32 {
        guard let question = invocation.words.first.flatMap({ GitAskpassQuestion($0) }) else { return 1 }
        guard let client = try invocation.agentClient() else { return 1 }
        let route = "workspaceagents/me/external-auth"
        var answer: JSON
        do {
            answer = try await client.get(route, [("match", question.host)])
        } catch let error as APIError where error.status == 404 {
            if invocation.values.bool("verbose") { invocation.console.note("\(error)") }
            return 1
        }
        if !answer["url"].text.isEmpty {
            invocation.console.note(
                "Open the following URL to authenticate with Git:\n\n\t\(Table.clean(answer["url"].text))\n")
            answer = try await untilAuthenticated(client, route, question.host)
        }
        let password = answer["password"].text
        invocation.console.say(
            question.user.isEmpty || password.isEmpty ? answer["username"].text : password)
        return 0
    }

    /// Asks until the user has been there: 250 ms apart, later up to 10 s.
    private static func untilAuthenticated(
        _ client: APIClient, _ route: String, _ host: String
    ) async throws -> JSON {
        var pause = Duration.milliseconds(250)
        while true {
            try await Task.sleep(for: pause)
            let response = try await client.raw("GET", route, [("match", host), ("listen", "true")])
            if 200..<300 ~= response.status, let answer = try? JSON.parse(response.body),
                !answer["username"].text.isEmpty
            {
                return answer
            }
            pause = min(pause * 2, .seconds(10))
        }
    }
}

/// `Username for 'https://host':` or `Password for 'https://user@host':`.
package struct GitAskpassQuestion: Hashable, Sendable {
    /// Empty when git does not know yet.
    package var user: String
    /// Scheme and host.
    package var host: String

    /// nil: nothing that the deployment could answer.
    package init?(_ text: String) {
        let words = text.split(separator: " ")
        guard words.count == 3, words[1] == "for" else { return nil }
        var rest = words[2].drop { $0 == "'" || $0 == "\"" }
        while let last = rest.last, ":'\"".contains(last) { rest.removeLast() }
        guard let scheme = ["https://", "http://"].first(where: { rest.hasPrefix($0) }) else { return nil }
        rest = rest.dropFirst(scheme.count)
        let end = rest.firstIndex(of: "/") ?? rest.endIndex
        let authority = rest[..<end]
        let at = authority.lastIndex(of: "@")
        let name = at.map { authority[authority.index(after: $0)...] } ?? authority
        guard !name.isEmpty, !text.contains(where: { $0.asciiValue.map { $0 < 32 } == true }) else {
            return nil
        }
        user = at.map { String(authority[..<$0]) } ?? ""
        host = scheme + name + rest[end...]
    }
}
