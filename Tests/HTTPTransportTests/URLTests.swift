// SPDX-License-Identifier: Apache-2.0

import HTTPTransport
import Testing

struct URLCase: Sendable, CustomTestStringConvertible {
    var text: String
    var expected: String?
    var host = ""
    var port = 0

    var testDescription: String { text }
}

@Suite struct URLTests {
    @Test(arguments: [
        URLCase(text: "http://a", expected: "http://a/", host: "a", port: 80),
        URLCase(
            text: "https://Dev.Example:443/x?y=1#z", expected: "https://dev.example/x?y=1",
            host: "dev.example", port: 443),
        URLCase(text: "http://[::1]:3000/", expected: "http://[::1]:3000/", host: "::1", port: 3_000),
        URLCase(text: "wss://h/derp", expected: "https://h/derp", host: "h", port: 443),
        URLCase(text: "http://u:p@h:1", expected: "http://h:1/", host: "h", port: 1),
        URLCase(text: "http://h?q", expected: "http://h/?q", host: "h", port: 80),
        URLCase(text: "ftp://h"), URLCase(text: "h:80"), URLCase(text: "http://"),
        URLCase(text: "http://h:0"),
        URLCase(text: "http://h:70000"), URLCase(text: "http://h:+1"), URLCase(text: "http://a b"),
        URLCase(text: "http://h/\r\nX: y"), URLCase(text: "http://[::1"), URLCase(text: "http://::1"),
    ])
    func parses(_ url: URLCase) {
        let result = HTTPURL(url.text)
        #expect(result?.description == url.expected)
        if url.expected != nil {
            #expect(result?.host == url.host)
            #expect(result?.port == url.port)
        }
    }

    @Test func appendsBelowThePath() throws {
        let base = try #require(HTTPURL("https://h/coder/"))
        #expect(
            base.appending("/api/v2/x", query: [("q", "owner:me a")]).description
                == "https://h/coder/api/v2/x?q=owner%3Ame%20a")
        #expect(HTTPURL.encode("a/b ü") == "a%2Fb%20%C3%BC")
    }

    @Test(arguments: [
        ("http://h.example/", "http://p:1/"), ("https://h.example/", "http://s:2/"),
        ("http://localhost/", nil),
        ("http://127.0.0.1/", nil), ("http://x.internal/", nil), ("http://internal/", "http://p:1/"),
        ("http://corp.test/", nil), ("http://a.corp.test/", nil), ("http://10.1.2.3/", nil),
        ("http://11.1.2.3/", "http://p:1/"), ("http://port.test:8080/", nil),
        ("http://port.test/", "http://p:1/"),
    ])
    func proxies(_ url: String, _ proxy: String?) throws {
        let settings = ProxySettings(environment: [
            "HTTP_PROXY": "p:1", "https_proxy": "http://s:2",
            "NO_PROXY": ".internal, corp.test,10.0.0.0/8,port.test:8080",
        ])
        #expect(settings.proxy(for: try #require(HTTPURL(url)))?.description == proxy)
        #expect(ProxySettings.none.proxy(for: try #require(HTTPURL(url))) == nil)
    }
}
