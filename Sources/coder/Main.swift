// SPDX-License-Identifier: Apache-2.0

internal import CLI
internal import Glibc

/// Everything in one program: client, agent and server.
@main
enum Main {
    static func main() async {
        let status = await Program.run(
            arguments: Program.arguments(CommandLine.arguments), environment: Program.environment(),
            hooks: Hooks(
                version: Build.version, server: ServerCommand.hook, relay: RelayCommand.hook))
        exit(status)
    }
}
