// SPDX-License-Identifier: Apache-2.0

/// A signed-in user, and what the key that was used may do.
struct Subject: Sendable {
    var userID: Identifier
    var username: String
    /// Site roles; `member` is implied.
    var roles: [String]
    var organizationIDs: [Identifier]
    var keyID: String
    var loginType: String
    /// `coder:all`, or a list of `resource:action`.
    var scopes: [String]
    /// `*:*`, or a list of `type:id`.
    var allowList: [String]

    /// Whether the user administers the whole deployment.
    var isOwner: Bool { roles.contains("owner") }

    /// What somebody may want to do.
    enum Action: String, Sendable {
        case read, create, update, delete, use, ssh
    }

    /// Something with an owner, or a part of the deployment.
    struct Object: Sendable {
        /// Resource type as in the API: `workspace`, `template`, `user`, `api_key`, `deployment_config`, …
        var type: String
        var id: Identifier?
        var owner: Identifier?
        var organization: Identifier?
    }

    /// Roles ∩ scopes ∩ allow list.
    func may(_ action: Action, _ object: Object) -> Bool {
        rolesAllow(action, object) && scopesAllow(action, object) && listAllows(action, object)
    }

    private func rolesAllow(_ action: Action, _ object: Object) -> Bool {
        if isOwner { return true }
        switch object.type {
        case "workspace", "api_key":
            if object.owner == userID { return true }
            return object.type == "workspace" && action == .read && roles.contains("template-admin")
        case "user":
            if object.id == userID { return action == .read || action == .update }
            return roles.contains("user-admin")
        case "template":
            if roles.contains("template-admin") { return true }
            let isMember = object.organization.map { organizationIDs.contains($0) } ?? false
            return isMember && (action == .read || action == .use)
        case "organization":
            return action == .read && (object.id.map { organizationIDs.contains($0) } ?? false)
        case "workspace_proxy": return action == .read
        case "deployment_config", "audit_log": return action == .read && roles.contains("auditor")
        default: return false
        }
    }

    private func scopesAllow(_ action: Action, _ object: Object) -> Bool {
        KeyScopes.allow(scopes, object.type, action.rawValue) || asksWhoItIs(action, object)
    }

    private func listAllows(_ action: Action, _ object: Object) -> Bool {
        if allowList.contains("*:*") || allowList.contains("\(object.type):*") { return true }
        if let id = object.id, allowList.contains("\(object.type):\(id.text)") { return true }
        return asksWhoItIs(action, object)
    }

    /// Even a key for nothing but applications may ask whose it is.
    private func asksWhoItIs(_ action: Action, _ object: Object) -> Bool {
        object.type == "user" && action == .read && object.id == userID
    }

    /// Throws 403 when a key with these limits could do more than the one that asks for it.
    func requireCoverage(scopes wanted: [String], allowList list: [String]) throws(APIError) {
        let isCovered = wanted.allSatisfy { KeyScopes.cover(scopes, $0) }
        let isListed = list.allSatisfy { entry in
            let type = entry.prefix { $0 != ":" }
            return allowList.contains("*:*") || allowList.contains("\(type):*") || allowList.contains(entry)
        }
        guard isCovered, isListed else {
            throw APIError(
                403, "Forbidden.", detail: "A key cannot be given more rights than the one that makes it.")
        }
    }
}

/// The agent behind a token: valid only while it belongs to the latest build of a living workspace.
struct AgentIdentity: Sendable {
    var agentID: Identifier
    var agentName: String
    var resourceID: Identifier
    var workspaceID: Identifier
    var workspaceName: String
    var ownerID: Identifier
    var ownerName: String
    var organizationID: Identifier
    var buildID: Identifier
    var keyScope: String
}
