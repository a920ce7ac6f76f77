// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// `--forward-gpg`: the workspace learns the user's public keys and how far they are trusted, and its gpg talks to the
/// user's own agent, through the socket that gpg-agent has for strangers: keys can be used there, not taken away.
struct GPGForward {
    let link: AgentLink
    let environment: [String: String]

    /// Prepares the workspace, and says what is to be forwarded.
    func prepare() async throws -> RemoteForward {
        guard let local = own(["gpgconf", "--list-dir", "agent-extra-socket"])?.trimmed, local.hasPrefix("/"),
            let keys = own(["gpg", "--armor", "--export"]), let trust = own(["gpg", "--export-ownertrust"])
        else { throw CommandError("--forward-gpg needs gpg on this machine, and it failed") }
        // The agent is started by the first program that wants it.
        _ = own(["gpgconf", "--launch", "gpg-agent"])
        if !keys.isEmpty {
            _ = try await remote("gpg --batch --import", input: keys)
            _ = try await remote("gpg --batch --import-ownertrust", input: trust)
        }
        let path = try await remote(
            "gpgconf --create-socketdir >/dev/null 2>&1; gpgconf --kill gpg-agent;"
                + " s=$(gpgconf --list-dir agent-socket) && rm -f \"$s\" && echo \"$s\"", input: "")
        return try RemoteForward("\(path.trimmed):\(local)")
    }

    private func own(_ words: [String]) -> String? {
        ChildProcess.output(of: ["/usr/bin/env"] + words, environment: environment)
    }

    /// Runs a command in the workspace, over a stream of its own; what it prints.
    private func remote(_ command: String, input: String) async throws -> String {
        let (mine, theirs) = try Descriptor.socketPair(nonBlocking: true).release()
        let socket = OwnedDescriptor(taking: mine)
        let stream = try await link.stream(to: 1, local: [theirs])
        let (given, output, errors) = (try Scratch(input), try Scratch(), try Scratch())
        var request = SSHSessionRequest(command: command, wantsTerminal: false)
        request.isResumable = stream.isResuming
        request.input = given.number
        request.output = output.number
        request.error = errors.number
        let end = try await SSHSession.run(over: socket, request)
        withExtendedLifetime(given) {}
        await stream.settle(within: .milliseconds(500))
        guard end == .exited(0) else {
            let lines = Table.clean(try errors.text().trimmed)
            throw CommandError(
                "--forward-gpg: gpg failed in the workspace: \(lines.isEmpty ? "\(end)" : lines)")
        }
        return try output.text()
    }
}

/// A file without a name.
private final class Scratch {
    private let file: UnsafeMutablePointer<FILE>
    var number: Int32 { fileno(file) }

    init(_ text: String = "") throws {
        guard let file = tmpfile() else { throw SystemError(call: "tmpfile") }
        self.file = file
        try Array(text.utf8).withUnsafeBytes { try Descriptor.writeAll(number, $0) }
        lseek(number, 0, SEEK_SET)
    }

    deinit { fclose(file) }

    /// Everything that was written.
    func text() throws -> String { try TextFile.read("/proc/self/fd/\(number)") }
}
