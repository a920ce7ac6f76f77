// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc

/// Client and agent in one static executable, without the server.
@main
enum Main {
    static func main() async {
        var environment: [String: String] = [:]
        var next = environ
        while let entry = next.pointee {
            let text = String(cString: entry)
            if let equals = text.firstIndex(of: "=") {
                environment[String(text[..<equals])] = String(text[text.index(after: equals)...])
            }
            next += 1
        }
        let status = await Program.run(
            arguments: Array(CommandLine.arguments.dropFirst()), environment: environment,
            hooks: Hooks(version: Build.version))
        exit(status)
    }
}
