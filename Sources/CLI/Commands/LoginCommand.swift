// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport

/// `coder login`.
enum LoginCommand {
    static let command = Command(
        name: "login", usage: "[<url>]", summary: "Log in to a deployment, and make its first user.",
        arguments: .between(0, 1),
        options: [
            CommandOption(
                "first-user-email", env: "CODER_FIRST_USER_EMAIL",
                help: "E-mail address of the first user, or of the user who logs in with a password."),
            CommandOption(
                "first-user-username", env: "CODER_FIRST_USER_USERNAME", help: "Name of the first user."),
            CommandOption(
                "first-user-full-name", env: "CODER_FIRST_USER_FULL_NAME",
                help: "Full name of the first user."),
            CommandOption(
                "first-user-password", env: "CODER_FIRST_USER_PASSWORD",
                help:
                    "Password of the first user, or of the user who logs in with it. Left out, it is asked for."
            ),
            CommandOption(
                "first-user-trial", env: "CODER_FIRST_USER_TRIAL", .bool, hidden: true,
                help: "Accepted; there are no trials."),
            CommandOption(
                "use-token-as-session", .bool,
                help: "Store the given token itself. Without this a new session key is made with it."),
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let url = try address(invocation)
        let client = try invocation.client(url: url, token: nil)
        let first = try await client.raw("GET", "users/first")
        let token: String
        switch first.status {
        case 404:
            token = try await createFirstUser(invocation, client)
        case 200:
            token = try await existing(invocation, client)
        default:
            throw CommandError(
                "\(url.origin) does not answer like a Coder server (HTTP status \(first.status)): is the URL right?"
            )
        }
        let session = try invocation.client(url: url, token: token)
        let user = try await session.get("users/me")
        try invocation.config.write(.session, token)
        try invocation.config.write(.url, url.short)
        invocation.console.say("Welcome to Coder, \(user["username"].text)! You're authenticated.")
        return 0
    }

    /// The argument, else flag, variable or file.
    private static func address(_ invocation: Invocation) throws -> HTTPURL {
        let source: String
        var text: String
        if let word = invocation.words.first {
            (text, source) = (word, "argument")
        } else if !invocation.values.string("url").isEmpty {
            text = invocation.values.string("url")
            source = invocation.values.source("url") == .flag ? "flag" : "environment"
        } else if let stored = try invocation.config.read(.url), !stored.isEmpty {
            (text, source) = (stored, "config")
        } else {
            throw CommandError("say where: '\(invocation.programName) login <url>'")
        }
        if text.range(ofText: "://") == nil {
            text = (text.hasPrefix("localhost") ? "http://" : "https://") + text
        }
        guard let url = HTTPURL(text) else { throw CommandError("\"\(text)\" is not an http or https URL") }
        invocation.console.note("Attempting to authenticate with \(source) URL: '\(text)'")
        return url
    }

    // MARK: First user

    private static func createFirstUser(_ invocation: Invocation, _ client: APIClient) async throws -> String
    {
        let values = invocation.values
        let prompt = invocation.prompt
        var name = values.string("first-user-username")
        var fullName = values.string("first-user-full-name")
        if name.isEmpty {
            guard invocation.console.isInputTerminal else {
                throw CommandError(
                    "this deployment has no user yet: run this on a terminal, or give --first-user-username,"
                        + " --first-user-email and --first-user-password")
            }
            invocation.console.say("Your Coder deployment hasn't been set up!")
            guard try prompt.confirm("Would you like to create the first user?", default: true) else {
                throw SilentFailure()
            }
            name = try prompt.line("What username would you like?", default: systemUser())
            if fullName.isEmpty { fullName = try prompt.line("What name would you like? (optional)") }
        }
        var email = values.string("first-user-email")
        if email.isEmpty { email = try prompt.line("What's your email?", problem: emailProblem) }
        if let problem = emailProblem(email) { throw CommandError(problem) }
        var password = values.string("first-user-password")
        if password.isEmpty { password = try await askPassword(invocation, client) }
        _ = try await client.post(
            "users/first",
            .record([
                "email": .string(email), "username": .string(name), "name": .string(fullName),
                "password": .string(password), "trial": .bool(false),
            ]))
        return try await session(client, email: email, password: password)
    }

    /// Twice the same, and strong enough for the server, which says what is missing.
    private static func askPassword(_ invocation: Invocation, _ client: APIClient) async throws -> String {
        while true {
            let password = try invocation.prompt.secret(
                "Enter a password (hidden; some words in a row are best):"
            ) {
                $0.isEmpty ? "a password is needed" : nil
            }
            let verdict = try await client.raw(
                "POST", "users/validate-password", [], .record(["password": .string(password)]))
            if verdict.status == 200, let json = try? JSON.parse(verdict.body),
                case .bool(false) = json["valid"]
            {
                let details = json["details"].text
                invocation.console.fail(details.isEmpty ? "the password is too weak" : details)
                continue
            }
            if try invocation.prompt.secret("Confirm password:") == password { return password }
            invocation.console.fail("Passwords do not match")
        }
    }

    private static func emailProblem(_ text: String) -> String? {
        let parts = text.split(separator: "@", omittingEmptySubsequences: false)
        let isFine = parts.count == 2 && parts.allSatisfy { !$0.isEmpty } && !text.contains(" ")
        return isFine ? nil : "that's not a valid email address"
    }

    private static func systemUser() -> String? {
        guard let entry = getpwuid(getuid()), let name = entry.pointee.pw_name else { return nil }
        return String(cString: name)
    }

    // MARK: Later users

    private static func existing(_ invocation: Invocation, _ client: APIClient) async throws -> String {
        let given = invocation.values.string("token")
        if !given.isEmpty {
            guard !invocation.values.bool("use-token-as-session") else { return given }
            let authorised = try invocation.client(url: client.base, token: given)
            return try await authorised.post("users/me/keys")["key"].text
        }
        let values = invocation.values
        let isPasswordGiven = ["first-user-email", "first-user-password"].contains {
            !values.string($0).isEmpty
        }
        guard !isPasswordGiven else { return try await withPassword(invocation, client) }
        let page = client.base.appending("/cli-auth")
        invocation.console.say("Open the following in your browser:\n\n\t\(page)\n")
        if invocation.console.isOutputTerminal, !invocation.values.bool("no-open") {
            openBrowser("\(page)", invocation.environment)
        }
        let isAsking = invocation.console.isInputTerminal
        let question =
            isAsking ? "Paste your token here, or press enter to use a password:" : "Paste your token here:"
        while true {
            let token = try invocation.prompt.secret(question).trimmed
            guard !token.isEmpty else {
                guard isAsking else { throw CommandError("no token was given") }
                return try await withPassword(invocation, client)
            }
            let answer = try await invocation.client(url: client.base, token: token).raw("GET", "users/me")
            if answer.status == 200 { return token }
            invocation.console.fail("That's not a valid token!")
            if !isAsking { throw SilentFailure() }
        }
    }

    /// By e-mail address and password: those that were given, or asked for. Only a password that was typed is asked
    /// for again.
    private static func withPassword(_ invocation: Invocation, _ client: APIClient) async throws -> String {
        var email = invocation.values.string("first-user-email")
        if email.isEmpty { email = try invocation.prompt.line("What's your email?", problem: emailProblem) }
        if let problem = emailProblem(email) { throw CommandError(problem) }
        let given = invocation.values.string("first-user-password")
        guard given.isEmpty else { return try await session(client, email: email, password: given) }
        while true {
            let password = try invocation.prompt.secret("Password:") {
                $0.isEmpty ? "a password is needed" : nil
            }
            do {
                return try await session(client, email: email, password: password)
            } catch let error as CommandError where invocation.console.isInputTerminal {
                invocation.console.fail(error.description)
            }
        }
    }

    private static func session(
        _ client: APIClient, email: String, password: String
    ) async throws -> String {
        do {
            let login = try await client.post(
                "users/login", .record(["email": .string(email), "password": .string(password)]))
            return login["session_token"].text
        } catch let error as APIError where error.status == 401 {
            // Without the advice to log in.
            throw CommandError(error.message)
        }
    }

    private static func openBrowser(_ url: String, _ environment: [String: String]) {
        let program = environment["BROWSER"] ?? "xdg-open"
        _ = ChildProcess.output(of: ["/usr/bin/env", program, url], environment: environment)
    }
}

/// `coder logout`.
enum LogoutCommand {
    static let command = Command(
        name: "logout", summary: "Forget the session on this machine, and end it on the server.",
        options: [Commands.yes], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        if !invocation.values.bool("yes"), invocation.console.isInputTerminal {
            guard try invocation.prompt.confirm("Are you sure you want to log out?", default: true) else {
                throw SilentFailure()
            }
        }
        var problems: [String] = []
        do {
            let answer = try await client.raw("POST", "users/logout")
            // A session that has ended already is what was wanted.
            if answer.status >= 500 {
                problems.append("the server answered with HTTP status \(answer.status)")
            }
        } catch {
            problems.append("\(error)")
        }
        for file in ConfigDirectory.File.allCases {
            do { try invocation.config.delete(file) } catch { problems.append("\(error)") }
        }
        guard problems.isEmpty else {
            throw CommandError("Failed to log out. " + problems.joined(separator: "; "))
        }
        invocation.console.say("You are no longer logged in. You can log in using 'coder login <url>'.")
        return 0
    }
}
