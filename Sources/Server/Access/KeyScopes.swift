// SPDX-License-Identifier: Apache-2.0

/// What a key may be limited to: names of the form `resource:action`, and names for a few of them together.
enum KeyScopes {
    /// Everything.
    static let all = "coder:all"

    /// Names that users may ask for, without those of `composites`.
    private static let actions: [(resource: String, actions: [String])] = [
        ("api_key", ["*", "create", "delete", "read", "update"]), ("file", ["*", "create", "read"]),
        ("organization", ["*", "delete", "read", "update"]),
        ("task", ["*", "create", "delete", "read", "update"]),
        ("template", ["*", "create", "delete", "read", "update", "use"]),
        ("user", ["read_personal", "update_personal"]),
        ("user_secret", ["*", "create", "delete", "read", "update"]),
        (
            "workspace",
            ["*", "application_connect", "create", "delete", "read", "ssh", "start", "stop", "update"]
        ),
    ]

    /// Names that stand for several others.
    private static let composites: [String: [String]] = [
        "coder:workspaces.create": [
            "template:read", "template:use", "workspace:create", "workspace:read", "workspace:update",
        ],
        "coder:workspaces.operate": ["workspace:read", "workspace:update"],
        "coder:workspaces.delete": ["workspace:read", "workspace:delete"],
        "coder:workspaces.access": ["workspace:read", "workspace:ssh", "workspace:application_connect"],
        "coder:templates.build": ["template:read", "file:create", "file:read", "provisioner_jobs:read"],
        "coder:templates.author": [
            "template:read", "template:create", "template:update", "template:delete",
            "template:view_insights",
            "file:create", "file:read",
        ],
        "coder:apikeys.manage_self": ["api_key:read", "api_key:create", "api_key:update", "api_key:delete"],
    ]

    /// All names that users may ask for, in order.
    static let known: [String] = {
        let plain = actions.flatMap { entry in entry.actions.map { "\(entry.resource):\($0)" } }
        return (plain + composites.keys + [all, "coder:application_connect"]).sorted()
    }()

    /// The name as it is stored; nil for an unknown one. Two old names are still taken.
    static func canonical(_ name: String) -> String? {
        switch name {
        case "", "all": all
        case "application_connect": "coder:application_connect"
        default: known.contains(name) ? name : nil
        }
    }

    /// Whether one of `scopes` allows that action.
    static func allow(_ scopes: [String], _ resource: String, _ action: String) -> Bool {
        let wanted = ["\(resource):\(action)", "\(resource):*"]
        return scopes.contains { name in
            name == all || wanted.contains(name)
                || composites[name]?.contains { wanted.contains($0) } == true
        }
    }

    /// Whether `scopes` allow everything that `name` does.
    static func cover(_ scopes: [String], _ name: String) -> Bool {
        if scopes.contains(all) || scopes.contains(name) { return true }
        let parts = (composites[name] ?? [name]).map { $0.split(separator: ":", maxSplits: 1) }
        return name != all
            && parts.allSatisfy { $0.count == 2 && allow(scopes, String($0[0]), String($0[1])) }
    }
}
