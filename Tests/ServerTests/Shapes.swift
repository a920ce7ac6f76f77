// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// Holds JSON against the types of the published API: every key that must be there is, no other is, values have
/// the right kind, enumerated texts are known. `Tests/Vectors/rest-types.json`.
struct Shapes {
    private struct Field: Decodable {
        var key: String
        var type: String
        var presence: String
    }

    private struct Shape: Decodable {
        var fields: [Field]?
        var alias: String?
        var values: [String]?
    }

    private struct File: Decodable {
        var types: [String: Shape]
    }

    private let types: [String: Shape]

    init() throws {
        let path = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Vectors/rest-types.json")
        types = try JSONDecoder().decode(File.self, from: Data(contentsOf: path)).types
    }

    /// Complaints about `value` as a `type`; none when it fits.
    func complaints(_ value: Any?, _ type: String, at path: String = "$") -> [String] {
        let value = value ?? NSNull()
        if type.hasPrefix("["), type.hasSuffix("]") {
            if value is NSNull { return [] }
            guard let list = value as? [Any] else { return ["\(path): not a list"] }
            let element = String(type.dropFirst().dropLast())
            return list.enumerated().flatMap { complaints($1, element, at: "\(path)[\($0)]") }
        }
        if type.hasPrefix("{"), type.hasSuffix("}"), let colon = type.firstIndex(of: ":") {
            guard let table = value as? [String: Any] else { return ["\(path): not an object"] }
            let element = type[type.index(after: colon)...].dropLast().trimmingCharacters(in: .whitespaces)
            return table.flatMap { complaints($1, element, at: "\(path).\($0)") }
        }
        if let shape = types[type] { return complaints(value, shape, at: path) }
        return Self.isPlain(value, type) ? [] : ["\(path): \(value) is not \(type)"]
    }

    private func complaints(_ value: Any, _ shape: Shape, at path: String) -> [String] {
        guard let fields = shape.fields else {
            if let alias = shape.alias, alias != "string" { return complaints(value, alias, at: path) }
            guard let text = value as? String else { return ["\(path): not a text"] }
            let values = shape.values ?? []
            return values.isEmpty || values.contains(text) ? [] : ["\(path): unknown value \(text)"]
        }
        guard let table = value as? [String: Any] else { return ["\(path): not an object"] }
        let known = Set(fields.map(\.key))
        var result = table.keys.filter { !known.contains($0) }.map { "\(path).\($0): unknown key" }
        for field in fields {
            let place = "\(path).\(field.key)"
            guard let inner = table[field.key] else {
                if field.presence != "omit-if-empty" { result.append("\(place): missing") }
                continue
            }
            let mayBeNull = field.presence.contains("null")
            if inner is NSNull, mayBeNull { continue }
            result += complaints(inner, field.type, at: place)
        }
        return result
    }

    private static func isPlain(_ value: Any, _ type: String) -> Bool {
        switch type {
        case "string": return value is String
        case "uuid", "uuid or null":
            return (value as? String).map { UUID(uuidString: $0) != nil && $0 == $0.lowercased() }
                ?? (value is NSNull)
        case "rfc3339", "rfc3339 or null":
            return (value as? String).map { $0.contains("T") && $0.hasSuffix("Z") } ?? (value is NSNull)
        case "bool": return value is Bool
        case "int", "int32", "int64", "int64 ns": return value is Int || value is Int64
        case "number": return value is Double || value is Int
        default: return true  // types of other documents
        }
    }
}
