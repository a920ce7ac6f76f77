// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc
import Synchronization
import Testing

/// Git's questions, answered by the deployment.
@Suite struct GitAskpassTests {
    @Test(arguments: [
        ("Username for 'https://github.com': ", "", "https://github.com"),
        ("Username for 'https://git.example.org:8443': ", "", "https://git.example.org:8443"),
        ("Password for 'https://ann@github.com': ", "ann", "https://github.com"),
        ("Password for 'https://a@b@github.com': ", "a@b", "https://github.com"),
        ("Username for 'http://[::1]:3000/group': ", "", "http://[::1]:3000/group"),
    ])
    func questionsAreRead(_ text: String, _ user: String, _ host: String) {
        let question = GitAskpassQuestion(text)
        #expect(question?.user == user)
        #expect(question?.host == host)
    }

    @Test(arguments: [
        "", "Username ", "Username for ", "Username for 'ssh://git@github.com': ",
        "Username for 'https://': ",
        "Password for 'https://ann@': ", "Username for 'https://a\u{1b}[2Jb': ", "Enter passphrase for key: ",
    ])
    func othersAreNot(_ text: String) { #expect(GitAskpassQuestion(text) == nil) }

    private func ask(_ server: StubServer, _ question: String) async -> Outcome {
        await coder(
            [question],
            environment: [
                "GIT_PREFIX": "", "CODER_AGENT_URL": server.url, "CODER_AGENT_TOKEN": "agent-token",
            ],
            directory: temporaryDirectory())
    }

    @Test func theDeploymentAnswers() async throws {
        let server = try StubServer { request in
            guard request.header("Coder-Session-Token") == "agent-token",
                request.line == "GET /api/v2/workspaceagents/me/external-auth?match=https%3A%2F%2Fgithub.com"
            else { return (404, #"{"message":"none"}"#) }
            return (200, #"{"username":"oauth2","password":"secret","url":""}"#)
        }
        let user = await ask(server, "Username for 'https://github.com': ")
        #expect(user.status == 0 && user.output == "oauth2\n")
        let password = await ask(server, "Password for 'https://oauth2@github.com': ")
        #expect(password.status == 0 && password.output == "secret\n")
        // Unknown hosts are left to git, without a word.
        let other = await ask(server, "Username for 'https://gitlab.com': ")
        #expect(other.status == 1 && other.output.isEmpty && other.errors.isEmpty)
    }

    @Test func theAgentsTokenMayLieInAFile() async throws {
        let server = try StubServer { request in
            request.header("Coder-Session-Token") == "agent-token"
                ? (200, #"{"username":"oauth2","password":"secret","url":""}"#) : (401, #"{"message":"no"}"#)
        }
        let path = "\(temporaryDirectory())/token"
        let file = try #require(fopen(path, "w"))
        fputs("agent-token\n", file)
        fclose(file)
        let outcome = await coder(
            ["Password for 'https://oauth2@github.com': "],
            environment: [
                "GIT_PREFIX": "", "CODER_AGENT_URL": server.url, "CODER_AGENT_TOKEN_FILE": path,
            ])
        #expect(outcome.status == 0 && outcome.output == "secret\n", "\(outcome)")
        // Flags of the same names, which start scripts of other releases give to any command.
        #expect(await coder(["--auth", "token", "--agent-url", server.url, "version"]).status == 0)
    }

    @Test func theUserIsSentThereOnce() async throws {
        let asked = Counter()
        let server = try StubServer { request in
            guard request.line.hasSuffix("&listen=true") else {
                return (200, #"{"url":"https://coder.example.com/external-auth/github"}"#)
            }
            let number = asked.count.withLock { count in
                count += 1
                return count
            }
            return number == 1 ? (401, "{}") : (200, #"{"username":"token-alone","password":""}"#)
        }
        let answer = await ask(server, "Password for 'https://x@github.com': ")
        #expect(answer.status == 0 && answer.output == "token-alone\n")
        #expect(answer.errors.contains("https://coder.example.com/external-auth/github"))
        #expect(asked.count.withLock { $0 } == 2)
    }

    private final class Counter: Sendable {
        let count = Mutex(0)
    }
}
