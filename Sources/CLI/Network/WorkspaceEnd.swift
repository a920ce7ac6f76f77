// SPDX-License-Identifier: Apache-2.0

/// How a workspace ceased to be the one that a session began in. Pure: what the server says goes in. An agent that was
/// stopped, deleted or built anew does not come back, however patient its streams are.
package enum WorkspaceEnd: Hashable, Sendable {
    case stopped
    case deleted
    case startedAnew

    /// From when on a stop or a deletion counts.
    package enum Moment: Hashable, Sendable {
        /// When somebody asks for it: forwarded ports have no last word (cli/commands.md §4.1.1).
        case asked
        /// When it is done: until then the agent ends the session itself, when its programs have stopped.
        case done
    }

    /// What `workspace`, as the server shows it, means for a session that began with `build`; nil: it may go on.
    package init?(of workspace: JSON, since build: String, when moment: Moment) {
        let now = workspace["latest_build"]
        let isOther = !now["id"].text.isEmpty && now["id"].text != build
        switch (now["transition"].text, now["status"].text, moment) {
        case ("stop", _, .asked), (_, "stopped", .done): self = .stopped
        case ("delete", _, .asked), (_, "deleted", .done): self = .deleted
        case ("start", _, _) where isOther: self = .startedAnew
        default: return nil
        }
    }

    /// What an answer to a question for the workspace means. That it is gone a server says with a message; a page of a
    /// proxy says nothing.
    package init?(status: Int, _ body: some Sequence<UInt8>, since build: String, when moment: Moment) {
        guard let answer = try? JSON.parse(body) else { return nil }
        switch status {
        case 404 where answer["message"].string != nil, 410 where answer["message"].string != nil:
            self = .deleted
        case 200: self.init(of: answer, since: build, when: moment)
        default: return nil
        }
    }

    /// What happened to it, after its name.
    package var words: String {
        switch self {
        case .stopped: "was stopped"
        case .deleted: "was deleted"
        case .startedAnew: "was started anew"
        }
    }
}
