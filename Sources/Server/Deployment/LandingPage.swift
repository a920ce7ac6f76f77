// SPDX-License-Identifier: Apache-2.0

/// What a browser gets until there is a web interface: says what this is and what to type.
enum LandingPage {
    static func html(url: String, version: String) -> String {
        """
        <!doctype html>
        <html lang="en"><head><meta charset="utf-8"><title>Coder</title>
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem}
        code,pre{background:#f3f3f3;border-radius:4px;padding:.1rem .3rem}
        pre{padding:.8rem;overflow:auto}</style></head>
        <body><h1>Coder</h1>
        <p>This server is running (\(escape(version))). It has no web interface yet; everything works from the
        command line:</p>
        <pre>coder login \(escape(url))
        coder external-workspaces create dev
        coder ssh dev</pre>
        <p>The program for Linux: <a href="/bin/coder-linux-amd64">/bin/coder-linux-amd64</a></p>
        </body></html>
        """
    }

    static func escape(_ text: String) -> String {
        text.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing("\"", with: "&quot;")
    }
}
