// SPDX-License-Identifier: Apache-2.0

/// Why a call or a connection failed. Handlers throw `.failed` to answer with a code and a text of their choice.
public enum RPCError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The peer's handler failed. Code 0 means none was given.
    case failed(code: UInt64, message: String)
    /// The whole connection is gone.
    case connectionClosed(String)
    /// This call's stream is gone: the peer closed or reset it.
    case streamClosed
    /// The peer broke the protocol on this call.
    case protocolViolation(String)
    /// A message that is not what the call's type says.
    case undecodable(String)
    /// A message above 4 MiB, which no peer would take.
    case messageTooLarge(Int)
    /// The calling task was cancelled.
    case cancelled

    /// 12: the peer does not know the call. The only code that Coder looks at. rpc-transport §4.2.
    public static let unimplementedCode: UInt64 = 12

    /// An answer that says that this call does not exist here.
    public static func unimplemented(_ name: String) -> RPCError {
        .failed(code: unimplementedCode, message: "protocol error: unknown rpc: \"\(name)\"")
    }

    /// Whether the peer does not know the call.
    public var isUnimplemented: Bool {
        if case .failed(Self.unimplementedCode, _) = self { return true }
        return false
    }

    public var description: String {
        switch self {
        case .failed(_, let message): message
        case .connectionClosed(let reason): "connection closed: \(reason)"
        case .streamClosed: "stream closed"
        case .protocolViolation(let what): "protocol violation: \(what)"
        case .undecodable(let what): "undecodable message: \(what)"
        case .messageTooLarge(let size): "message of \(size) bytes is too large"
        case .cancelled: "cancelled"
        }
    }
}
