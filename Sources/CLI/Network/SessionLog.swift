// SPDX-License-Identifier: Apache-2.0

internal import SSH

/// How much a session tells at the terminal of what its connection does: OpenSSH's levels, and their names. `~v` goes
/// one up, `~V` one down.
package enum SessionLogLevel: Int, Comparable, CaseIterable, Sendable {
    case quiet, fatal, error, info, verbose, debug, debug2, debug3

    package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }

    /// As OpenSSH shows it.
    package var name: String { "\(self)".uppercased() }

    /// The next one; the last stays.
    package var louder: Self { Self(rawValue: rawValue + 1) ?? self }
    package var quieter: Self { Self(rawValue: rawValue - 1) ?? self }

    /// What stands before a line of this level.
    var prefix: String {
        switch self {
        case .debug: "debug1: "
        case .debug2: "debug2: "
        case .debug3: "debug3: "
        default: ""
        }
    }
}

/// What a session tells of one event, and from which level on. Pure.
enum SessionLog {
    static func line(for event: SSHEvent) -> (level: SessionLogLevel, text: String)? {
        switch event {
        case .authenticated: (.debug, "the workspace lets this side in")
        case .channelRequested(let id, let type): (.debug, "channel \(id): the workspace opens \(kind(type))")
        case .opened(let id): (.debug, "channel \(id): open")
        case .openFailed(let id, let reason, let message):
            (.verbose, "channel \(id): refused: \(Table.clean(message)) (\(reason))")
        case .closed(let id): (.debug, "channel \(id): closed")
        case .endOfData(let id): (.debug2, "channel \(id): the workspace sends no more")
        case .request(let id, let request, _): (.debug2, "channel \(id): \(kind(request))")
        case .reply(let id, let success): (.debug2, "channel \(id): \(success ? "granted" : "refused")")
        case .globalRequest(let request, _): (.debug2, "request of the workspace: \(kind(request))")
        case .globalReply(let success, _): (.debug2, "forward \(success ? "granted" : "refused")")
        case .data(let id, _, let count): (.debug3, "channel \(id): \(count) bytes")
        case .writable, .hostKey, .authenticationRequested: nil
        }
    }

    /// The name of a case, without what the workspace put into it.
    private static func kind(_ value: some Any) -> String {
        let text = "\(value)"
        return String(text.prefix { $0.isLetter || $0.isNumber })
    }
}
