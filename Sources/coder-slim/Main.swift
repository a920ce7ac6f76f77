// SPDX-License-Identifier: Apache-2.0

internal import CLI
internal import Glibc

/// Client and agent in one static executable, without the server.
@main
enum Main {
    static func main() async {
        let status = await Program.run(
            arguments: Program.arguments(CommandLine.arguments), environment: Program.environment(),
            hooks: Hooks(version: Build.version))
        exit(status)
    }
}
