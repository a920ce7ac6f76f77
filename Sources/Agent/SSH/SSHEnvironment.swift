// SPDX-License-Identifier: Apache-2.0

public import SSH

/// What the agent knows when a session starts: values from the manifest and of the agent process. The same
/// rules give start scripts their environment (`agent.md` §4.5, §6).
public struct SSHEnvironment: Sendable {
    /// Path of the running program, for git's helpers.
    public var agentBinary = ""
    /// Current agent token.
    public var agentToken = ""
    /// Names and id from the manifest.
    public var ownerName = "", workspaceName = "", agentName = "", workspaceID = ""
    /// `vs_code_port_proxy_uri` of the manifest.
    public var portProxyURI = ""
    /// `environment_variables` of the manifest, unexpanded.
    public var manifestVariables: [String: String] = [:]
    /// Work directory, expanded; ignored when it does not exist.
    public var directory = ""
    /// Put in front of PATH.
    public var scriptBinDirectory = ""
    /// File shown at the start of an interactive shell.
    public var motdPath = ""
    /// Messages of enabled banners.
    public var banners: [String] = []
    /// Refuses sftp, scp, rsync and nc.
    public var blocksFileTransfer = false
    /// Variables of the agent process, in its order.
    public var processVariables: [(name: String, value: String)] = []
    /// Who the sessions run as.
    public var account: UserAccount

    /// Nothing known but the account.
    public init(account: UserAccount) { self.account = account }

    /// A variable as it is handed to a program.
    public typealias Variable = (name: ByteString, value: ByteString)

    /// Names that steer the agent and are hidden from programs.
    static let hidden: Set<ByteString> = [
        "CODER_SSH_SESSION_TYPE", "CODER_CONTAINER", "CODER_CONTAINER_USER",
    ]

    /// The environment of a program: agent's own over manifest over predefined over process, session and
    /// account, where of the last three the first occurrence wins. `extra` comes last and replaces all.
    public func variables(session: [Variable] = [], extra: [Variable] = []) -> [Variable] {
        var result = VariableList()
        for (name, value) in processVariables where !(name == "GOTRACEBACK" && value == "none") {
            result.add(ByteString(name), ByteString(value))
        }
        for (name, value) in session where !Self.hidden.contains(name) { result.add(name, value) }
        for (name, value) in [
            ("USER", account.name), ("LOGNAME", account.name), ("SHELL", account.shell),
            ("HOME", account.home),
        ] {
            result.add(ByteString(name), ByteString(value))
        }
        for (name, value) in predefined { result.set(ByteString(name), ByteString(value)) }
        let process = Dictionary(processVariables.map { ($0.name, $0.value) }) { first, _ in first }
        for (name, value) in manifestVariables.sorted(by: { $0.key < $1.key }) {
            result.set(ByteString(name), ByteString(Self.expand(value) { process[$0] ?? "" }))
        }
        if !agentBinary.isEmpty { result.set("GIT_ASKPASS", ByteString(agentBinary)) }
        if !scriptBinDirectory.isEmpty {
            let path = result["PATH"].map { ByteString(Array(":".utf8) + $0.bytes) }
            result.set("PATH", ByteString(Array(scriptBinDirectory.utf8) + (path?.bytes ?? [])))
        }
        for (name, value) in extra { result.set(name, value) }
        return result.list
    }

    private var predefined: [(String, String)] {
        var list = [
            ("CODER", "true"), ("CODER_WORKSPACE_NAME", workspaceName),
            ("CODER_WORKSPACE_AGENT_NAME", agentName),
            ("CODER_WORKSPACE_OWNER_NAME", ownerName), ("CODER_WORKSPACE_ID", workspaceID),
            ("CODER_AGENT_TOKEN", agentToken), ("GIT_SSH_COMMAND", "\(agentBinary) gitssh --"),
            ("CS_DISABLE_GETTING_STARTED_OVERRIDE", "true"),
        ]
        if !portProxyURI.isEmpty { list.append(("VSCODE_PROXY_URI", portProxyURI)) }
        return list
    }

    /// Where programs start: the manifest's directory if it is there, else the home, else the root.
    public var workDirectory: String {
        for candidate in [directory, account.home]
        where !candidate.isEmpty && FileBytes.isDirectory(candidate) {
            return candidate
        }
        return "/"
    }

    /// What an interactive shell shows first: banners, then the message of the day unless it is hushed.
    func greeting() -> [UInt8] {
        var text: [UInt8] = []
        for banner in banners {
            let lines = banner.split(omittingEmptySubsequences: false, whereSeparator: \.isNewline)
            let trimmed = lines.joined(separator: "\r\n").trimmingBlanks
            if !trimmed.isEmpty { text += Array((trimmed + "\r\n\r\n").utf8) }
        }
        guard !motdPath.isEmpty, FileBytes.read("\(account.home)/.hushlogin", limit: .max) == nil,
            let motd = FileBytes.read(motdPath, limit: 1 << 20)
        else { return text }
        for byte in motd {
            if byte == 10, text.last != 13 { text.append(13) }
            text.append(byte)
        }
        return text
    }

    /// Replaces `$NAME` and `${NAME}`.
    static func expand(_ text: String, _ lookUp: (String) -> String) -> String {
        var result = ""
        var rest = Substring(text)
        while let dollar = rest.firstIndex(of: "$") {
            result += rest[..<dollar]
            rest = rest[rest.index(after: dollar)...]
            if rest.first == "{", let end = rest.firstIndex(of: "}") {
                result += lookUp(String(rest[rest.index(after: rest.startIndex)..<end]))
                rest = rest[rest.index(after: end)...]
                continue
            }
            let name = rest.prefix { $0 == "_" || ($0.isASCII && ($0.isLetter || $0.isNumber)) }
            if name.isEmpty { result += "$" } else { result += lookUp(String(name)) }
            rest = rest[name.endIndex...]
        }
        return result + rest
    }
}

/// Variables in order of their first appearance.
private struct VariableList {
    private(set) var list: [SSHEnvironment.Variable] = []
    private var index: [ByteString: Int] = [:]

    subscript(name: ByteString) -> ByteString? { index[name].map { list[$0].value } }

    /// Adds it unless it is there. Names and values that cannot be variables are left out.
    mutating func add(_ name: ByteString, _ value: ByteString) {
        guard index[name] == nil, !name.bytes.isEmpty, !name.bytes.contains(0x3d), name.isCString,
            value.isCString
        else { return }
        index[name] = list.count
        list.append((name, value))
    }

    mutating func set(_ name: ByteString, _ value: ByteString) {
        if let at = index[name] {
            if value.isCString { list[at].value = value }
        } else {
            add(name, value)
        }
    }
}

extension String {
    /// Without blanks at both ends.
    fileprivate var trimmingBlanks: String {
        guard let first = firstIndex(where: { !$0.isWhitespace }),
            let last = lastIndex(where: { !$0.isWhitespace })
        else { return "" }
        return String(self[first...last])
    }
}
