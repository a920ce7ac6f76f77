// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import Testing

/// What browsers and installers find.
@Suite(.server) struct PageTests {
    @Test(arguments: [
        ("/.well-known/oauth-authorization-server", "", 404), ("/external-auth/github", "", 404),
        ("/@ann/dev/apps/code", "", 404), ("/nowhere", "text/html", 404), ("/api/v2/x", "text/html", 404),
        ("/", "text/html", 200), ("/login?redirect=%2Fcli-auth", "text/html", 200), ("/cli-auth", "", 200),
        ("/install.sh", "", 200),
    ]) func programsAreToldWhatIsNotThere(
        _ test: (path: String, accept: String, status: Int)
    ) async throws {
        let server = try TestServer.shared()
        var fields = HeaderFields()
        if !test.accept.isEmpty { fields.add("Accept", test.accept) }
        let answer = try await server.client.request("GET", server.url(test.path), headers: fields)
        #expect(answer.status == test.status)
    }

    @Test func theLoginPageRunsItsOwnScriptOnly() async throws {
        let server = try TestServer.shared()
        let page = try await server.client.request("GET", server.url("/cli-auth"))
        #expect(page.headers["Content-Security-Policy"]?.contains("script-src 'sha256-") == true)
        #expect(page.text.contains("users/login") && page.text.contains("type=\"password\""))
    }

    /// What the page does: the answer's token and the cookie are the same, so that no other site can do it.
    @Test func theLoginPageGetsAKey() async throws {
        let server = try TestServer.shared()
        let login = try await server.call(
            "POST", "users/login", ["email": "ann@example.org", "password": TestServer.password], token: "")
        let session = login.text("session_token")
        let key = try await server.call(
            "POST", "users/me/keys", [:], token: session,
            headers: ["Cookie": "coder_session_token=\(session)"])
        #expect(key.status == 201)
        #expect(try await server.call("GET", "users/me", token: key.text("key")).status == 200)
    }

    @Test func theInstallerNamesTheAddressThatWasUsed() async throws {
        let server = try TestServer.shared()
        func script(_ host: String) async throws -> String {
            let connection = try RawConnection(port: server.port)
            await connection.send("GET /install.sh HTTP/1.1\r\nHost: \(host)\r\n\r\n")
            return await connection.readResponse().body
        }
        #expect(
            try await script("coder.example.org:3000").contains(
                "http://coder.example.org:3000/bin/coder-linux-"))
        let local = try await server.client.request("GET", server.url("/install.sh"))
        #expect(local.text.contains("http://127.0.0.1:\(server.port)/bin/coder-linux-"))
        #expect(try await !script("$(id)").contains("$(id)"))
        let check = Process()
        check.executableURL = URL(filePath: "/bin/sh")
        check.arguments = ["-n"]
        let pipe = Pipe()
        check.standardInput = pipe
        try check.run()
        pipe.fileHandleForWriting.write(Data(local.body))
        try pipe.fileHandleForWriting.close()
        check.waitUntilExit()
        #expect(check.terminationStatus == 0)
    }

    @Test func theFrontPageSaysWhatToType() async throws {
        let server = try TestServer.shared()
        let page = try await server.client.request("GET", server.url("/"))
        #expect(page.status == 200)
        #expect(page.headers["Content-Type"]?.hasPrefix("text/html") == true)
        #expect(page.text.contains("coder login http://127.0.0.1:\(server.port)"))
        #expect(try await server.client.request("GET", server.url("/healthz")).text == "OK")
    }
}
