// SPDX-License-Identifier: Apache-2.0

public import HTTPTransport

/// What `coder agent` was started with. agent.md §4.2. The composition root fills it from flags and environment.
public struct AgentOptions: Sendable {
    /// CODER_AGENT_URL
    public var serverURL: HTTPURL
    /// CODER_AGENT_TOKEN, or the trimmed content of CODER_AGENT_TOKEN_FILE.
    public var token: String
    /// Of this program, with leading `v`.
    public var version: String
    /// Path of the running program.
    public var binaryPath: String
    /// CODER_AGENT_LOG_DIR: `coder-agent.log` and the logs of scripts.
    public var logDirectory = "/tmp"
    /// CODER_AGENT_SCRIPT_DATA_DIR: `coder-script-data` inside.
    public var scriptDataDirectory = "/tmp"
    /// CODER_AGENT_HEADER: with each request, also to relays.
    public var headers = HeaderFields()
    /// CODER_AGENT_SSH_MAX_TIMEOUT
    public var sshMaxTimeout = Duration.seconds(72 * 3_600)
    /// CODER_AGENT_TAILNET_LISTEN_PORT
    public var listenPort: UInt16 = 0
    /// CODER_AGENT_BLOCK_FILE_TRANSFER
    public var blocksFileTransfer = false
    /// CODER_AGENT_SUBSYSTEM: `envbox`, `envbuilder`, `exectrace`.
    public var subsystems: [String] = []
    /// Variables of the agent process, in its order.
    public var environment: [(name: String, value: String)] = []
    /// Options that were set and do nothing in this agent: told in its log.
    public var ignored: [String] = []
    /// Whether debug lines are wanted.
    public var isVerbose = false

    /// Only what has no default.
    public init(serverURL: HTTPURL, token: String, version: String, binaryPath: String) {
        self.serverURL = serverURL
        self.token = token
        self.version = version
        self.binaryPath = binaryPath
    }
}
