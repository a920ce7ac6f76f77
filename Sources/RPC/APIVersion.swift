// SPDX-License-Identifier: Apache-2.0

/// The shared version of the agent and tailnet APIs. rpc-transport §6.
public struct APIVersion: Hashable, Sendable, CustomStringConvertible {
    public var major: Int
    public var minor: Int

    public init(major: Int, minor: Int) {
        self.major = major
        self.minor = minor
    }

    /// 2.7, as of Coder 2.30.
    public static let current = APIVersion(major: 2, minor: 7)

    public var description: String { "\(major).\(minor)" }

    /// Why a version was refused; `detail` goes into the HTTP answer's validation field `version`.
    public struct Refused: Error, Hashable, Sendable {
        /// The text.
        public let detail: String
        /// Made from its text.
        public init(_ detail: String) { self.detail = detail }
    }

    /// Checks what a peer asks for against the version that this server speaks. Texts as upstream.
    public static func validate(_ text: String, server: APIVersion = .current) throws(Refused) -> APIVersion {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 2 else { throw Refused("invalid version string: \(text)") }
        guard let major = number(parts[0]) else { throw Refused("invalid major version: \(text)") }
        guard let minor = number(parts[1]) else { throw Refused("invalid minor version: \(text)") }
        guard major <= server.major else {
            throw Refused("server is at version \(server), behind requested major version \(text)")
        }
        guard major == server.major else { throw Refused("version \(text) is no longer supported") }
        guard minor <= server.minor else {
            throw Refused("server is at version \(server), behind requested minor version \(text)")
        }
        return APIVersion(major: major, minor: minor)
    }

    private static func number(_ text: Substring) -> Int? {
        guard !text.isEmpty, text.utf8.allSatisfy({ (48...57).contains($0) }) else { return nil }
        return Int(text)
    }
}
