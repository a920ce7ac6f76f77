// SPDX-License-Identifier: Apache-2.0

/// Takes secrets out of what is given to others. Pure.
package struct Redaction: Sendable {
    /// What stands in the place of a secret.
    package static let mark = "***"
    /// Parts of the names of members that hold secrets.
    private static let names = [
        "token", "secret", "password", "passphrase", "private_key", "api_key", "apikey", "connection_url",
        "credential", "cookie", "authorization",
    ]
    /// Members all of whose values may be secrets, whatever they are called.
    private static let containers = ["env", "environment_variables", "headers", "external_auth"]

    /// Texts that must not appear anywhere.
    private let known: [String]

    /// - Parameter known: what is secret for sure, such as the session's token.
    package init(known: [String]) { self.known = known.filter { $0.utf8.count >= 8 } }

    /// A text without the secrets that are known.
    package func text(_ text: String) -> String {
        known.reduce(text) { $0.replacing($1, with: Self.mark) }
    }

    /// JSON without them, and without what its members' names say to be secret.
    package func json(_ value: JSON) -> JSON { json(value, isSecret: false) }

    private func json(_ value: JSON, isSecret: Bool) -> JSON {
        switch value {
        case .null, .bool: return value
        case .number: return isSecret ? .string(Self.mark) : value
        case .string(let text):
            return .string(isSecret && !text.isEmpty ? Self.mark : self.text(text))
        case .array(let elements): return .array(elements.map { json($0, isSecret: isSecret) })
        case .object(let members):
            // An option of the deployment says so in its annotations.
            let isAnnotated = value["annotations"]["secret"].text == "true"
            return .object(
                members.map { member in
                    let hides =
                        isSecret || Self.isSecret(member.key)
                        || isAnnotated && ["value", "default"].contains(member.key)
                    return JSON.Member(key: member.key, value: json(member.value, isSecret: hides))
                })
        }
    }

    private static func isSecret(_ key: String) -> Bool {
        let key = key.lowercased()
        return containers.contains(key) || names.contains { key.range(ofText: $0) != nil }
    }

    /// Names without values: a workspace's parameters may be anything.
    package func parameters(_ value: JSON) -> JSON {
        .array(
            value.elements.map { parameter in
                .object(
                    parameter.members.map {
                        JSON.Member(
                            key: $0.key, value: $0.key == "value" ? .string(Self.mark) : json($0.value))
                    })
            })
    }
}
