// SPDX-License-Identifier: Apache-2.0

/// What a browser gets until there is a web interface: says what this is and what to type.
enum LandingPage {
    static func page(url: String, version: String) -> Page {
        let (url, program) = (Page.escape(url), "coder-linux-" + DownloadRoutes.architecture)
        return Page(
            title: "Welcome",
            body: """
                <h1>This server is running</h1>
                <p class="dim">Version \(Page.escape(version)). Everything works from the command line; a web
                interface is not there yet.</p>
                <pre>curl -fsSL \(url)/install.sh | sh
                coder login \(url)
                coder external-workspaces create dev
                coder ssh dev</pre>
                <p class="dim">Or take the program itself:
                <a href="/bin/\(program)">\(program)</a>, one file that runs on any Linux.</p>
                """, isWide: true)
    }

    /// For addresses that nobody has.
    static let nowhere = Page(
        title: "Not found",
        body:
            "<h1>Nothing is here</h1>\n<p class=\"dim\">Perhaps you want the <a href=\"/\">first page</a>.</p>",
        status: 404)
}
