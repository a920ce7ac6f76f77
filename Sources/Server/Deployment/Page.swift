// SPDX-License-Identifier: Apache-2.0

/// The frame of the pages that a browser gets until there is a web interface: no file beside them, nothing from other
/// hosts, and no script but the one that is named by its hash.
struct Page {
    var title: String
    /// Inside of `<main>`.
    var body: String
    var script = ""
    var status = 200
    /// Whether long lines are more likely than a form.
    var isWide = false

    var reply: Reply {
        let hash = Base64.encode(Digest.sha256(Array(script.utf8)))
        let policy = [
            "default-src 'none'", "style-src 'unsafe-inline'",
            script.isEmpty ? "script-src 'none'" : "script-src 'sha256-\(hash)'", "connect-src 'self'",
            "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
        ]
        var reply = Reply.text(html, status: status, type: "text/html; charset=utf-8")
        reply.fields = [
            ("Content-Security-Policy", policy.joined(separator: "; ")), ("Referrer-Policy", "no-referrer"),
            ("X-Frame-Options", "DENY"), ("Cache-Control", "no-store"),
        ]
        return reply
    }

    private var html: String {
        """
        <!doctype html>
        <html lang="en"><head><meta charset="utf-8"><title>\(Page.escape(title)) · Coder</title>
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <style>\(Self.style)</style></head>
        <body><main\(isWide ? " class=\"wide\"" : "")>
        <p class="mark" aria-hidden="true">coder<span></span></p>
        \(body)
        </main>\(script.isEmpty ? "" : "<script>\(script)</script>")</body></html>

        """
    }

    /// A terminal on a quiet desk: the house has no colours but ink, paper and the cursor.
    private static let style = """
        :root{color-scheme:light dark;--paper:#f6f5f2;--card:#fff;--ink:#1d1e20;--dim:#6a6d72;--line:#dcdad4;
        --cursor:#2f7d4f;--bad:#b3261e}
        @media(prefers-color-scheme:dark){:root{--paper:#141516;--card:#1c1e20;--ink:#eceae5;--dim:#9a9da2;
        --line:#34373a;--cursor:#6fce96;--bad:#ff8a80}}
        *{box-sizing:border-box}
        body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;background:var(--paper);
        color:var(--ink);font:16px/1.5 system-ui,sans-serif}
        main{width:100%;max-width:27rem;background:var(--card);border:1px solid var(--line);border-radius:10px;
        padding:2rem;box-shadow:0 1px 2px #0001,0 12px 32px #0000000f}
        .wide{max-width:36rem}main>:last-child{margin-bottom:0}
        .mark{margin:0 0 1.5rem;font:600 1.05rem ui-monospace,monospace;letter-spacing:.02em}
        .mark span{display:inline-block;width:.58em;height:1.05em;margin-left:.2em;vertical-align:-.16em;
        background:var(--cursor)}
        h1{margin:0 0 .35rem;font-size:1.35rem;line-height:1.25}
        p{margin:0 0 1.25rem}.dim{color:var(--dim)}
        label{display:block;margin-bottom:1rem;font-size:.9rem;font-weight:600}
        input{display:block;width:100%;margin-top:.3rem;padding:.6rem .7rem;border:1px solid var(--line);
        border-radius:6px;background:var(--paper);color:inherit;font:inherit;font-weight:400}
        input:focus-visible,button:focus-visible,a:focus-visible{outline:2px solid var(--cursor);outline-offset:1px}
        button{width:100%;padding:.65rem;border:0;border-radius:6px;background:var(--ink);color:var(--card);
        font:inherit;font-weight:600;cursor:pointer}button:disabled{opacity:.55;cursor:default}
        .bad{margin:1rem 0 0;color:var(--bad)}.bad:empty{display:none}
        pre,.key{margin:0 0 1.25rem;padding:.75rem .8rem;border:1px solid var(--line);border-radius:6px;
        background:var(--paper);font:.88rem/1.6 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;
        user-select:all}pre{user-select:text}
        a{color:inherit}
        """

    static func escape(_ text: String) -> String {
        text.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing("\"", with: "&quot;")
    }
}
