// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Machine settings of VS Code and its kin: without these two, its git asks through the editor and never through
/// `GIT_ASKPASS`, which knows the user's logins. agent.md §4.4.
package enum EditorSettings {
    private static let wanted = ["git.useIntegratedAskPass", "github.gitAuthentication"]
    private static let servers = [
        ".vscode-server", ".vscode-insiders-server", ".cursor-server", ".windsurf-server", ".vscodium-server",
    ]

    /// Switches both off for all of them, where the user did not decide.
    package static func preferAskpass(home: String, dataHome: String?) {
        let data = dataHome.flatMap { $0.hasPrefix("/") ? $0 : nil } ?? "\(home)/.local/share"
        let files =
            ["\(data)/code-server/Machine/settings.json"]
            + servers.map { "\(home)/\($0)/data/Machine/settings.json" }
        for file in files { change(file) }
    }

    private static func change(_ file: String) {
        let exists = access(file, F_OK) == 0
        guard let before = exists ? FileBytes.read(file, limit: 1 << 20) : [],
            let after = edited(String(decoding: before, as: UTF8.self)), after.utf8.count != before.count
        else { return }
        for slash in file.indices.dropFirst() where file[slash] == "/" {
            mkdir(String(file[..<slash]), 0o700)
        }
        let temporary = "\(file).coder"
        let number = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard number >= 0 else { return }
        let written = OwnedDescriptor(taking: number)
        do {
            try Array(after.utf8).withUnsafeBytes { try Descriptor.writeAll(written.number, $0) }
        } catch {
            unlink(temporary)
            return  // a full disk: the editor's own settings stay as they are
        }
        rename(temporary, file)
    }

    /// The text with what is missing in front; the rest, comments included, stays as it is. nil: not an object.
    package static func edited(_ text: String) -> String? {
        let missing = wanted.filter { !text.contains("\"\($0)\"") }
        guard !missing.isEmpty else { return text }
        let lines = missing.map { "    \"\($0)\": false" }.joined(separator: ",\n")
        let body = text.drop { $0.isWhitespace }
        guard !body.isEmpty else { return "{\n\(lines)\n}\n" }
        guard body.first == "{" else { return nil }
        let rest = body.dropFirst()
        let isEmpty = rest.drop { $0.isWhitespace }.first == "}"
        return "{\n\(lines)\(isEmpty ? "\n" : ",")" + rest
    }
}
