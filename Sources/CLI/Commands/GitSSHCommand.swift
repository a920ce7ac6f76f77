// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// `coder gitssh`: what git runs for ssh inside a workspace (`GIT_SSH_COMMAND`): ssh with the owner's key from the
/// deployment, after the identities that the user has there already.
enum GitSSHCommand {
    static let command: Command = {
        var command = Command(
            name: "gitssh", summary: "ssh for git inside a workspace, with your key of the deployment.",
            isHidden: true, run: run)
        command.isRaw = true
        return command
    }()

    /// What `ssh -G` names when it cannot be asked.
    private static let usual = [
        "id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss",
    ].map { "~/.ssh/\($0)" }

    @Sendable private static func run(_ invocation: Invocation) async throws -> Int32 {
        var words = invocation.words
        if words.first == "--" { words.removeFirst() }
        let environment = invocation.environment
        var identities = identityFiles(words, environment)
        let key = try await deploymentKey(invocation)
        var temporary: String?
        defer { if let temporary { unlink(temporary) } }
        if let key {
            let path = try writeKey(key.privateKey)
            temporary = path
            identities.append(path)
        }
        let status = try spawn(["ssh"] + identities.flatMap { ["-i", $0] } + words)
        if status == 255, let key, environment["CODER"] == "true" {
            invocation.console.note(
                "\nThe other side may not know your key of this deployment. It is:\n\n\(key.publicKey.trimmed)\n"
            )
        }
        return status
    }

    private struct Key {
        var privateKey: String
        var publicKey: String
    }

    /// nil when the deployment has none to give: then ssh goes on with the user's own.
    private static func deploymentKey(_ invocation: Invocation) async throws -> Key? {
        guard let client = try invocation.agentClient() else { return nil }
        do {
            let answer = try await client.get("workspaceagents/me/gitsshkey")
            let key = Key(privateKey: answer["private_key"].text, publicKey: answer["public_key"].text)
            return key.privateKey.isEmpty ? nil : key
        } catch {
            if invocation.values.bool("verbose") {
                invocation.console.note("no key from the deployment: \(error)")
            }
            return nil
        }
    }

    /// Files that exist among those that ssh would use.
    private static func identityFiles(_ words: [String], _ environment: [String: String]) -> [String] {
        let command = ["/usr/bin/env", "ssh", "-G"] + words
        let text = ChildProcess.output(of: command, environment: environment) ?? ""
        let named = text.split(separator: "\n").compactMap { line in
            line.hasPrefix("identityfile ") ? String(line.dropFirst("identityfile ".count)) : nil
        }
        return (named.isEmpty ? usual : named)
            .map { $0.hasPrefix("~/") ? homeDirectory(environment) + $0.dropFirst() : $0 }
            .filter { access($0, R_OK) == 0 }
    }

    private static func writeKey(_ text: String) throws -> String {
        let file = try PrivateName.file("/tmp/coder-gitssh-")
        let content = Array((text.hasSuffix("\n") ? text : text + "\n").utf8)
        try content.withUnsafeBytes { try Descriptor.writeAll(file.descriptor.number, $0) }
        return file.path
    }

    /// Runs a program with this one's streams, and waits. Signals of the terminal go to both.
    private static func spawn(_ arguments: [String]) throws -> Int32 {
        let words = arguments.map { strdup($0) } + [nil]
        defer { words.forEach { free($0) } }
        var process: pid_t = 0
        let code = posix_spawnp(&process, arguments[0], nil, nil, words, environ)
        guard code == 0 else { throw SystemError(call: arguments[0], code: code) }
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0, errno == EINTR {}
        let signal = status & 0x7f
        return signal == 0 ? status >> 8 & 0xff : 128 + signal
    }
}
