// SPDX-License-Identifier: Apache-2.0

/// Header fields in order. Names compare without case.
public struct HeaderFields: Sendable, ExpressibleByDictionaryLiteral, CustomStringConvertible {
    /// The fields in the order of the wire.
    public private(set) var fields: [(name: String, value: String)] = []

    /// No fields.
    public init() {}

    /// Fields in order; a name may occur more than once.
    public init(_ fields: [(name: String, value: String)]) { self.fields = fields }

    public init(dictionaryLiteral elements: (String, String)...) {
        fields = elements.map { (name: $0.0, value: $0.1) }
    }

    /// The first value of a field; setting replaces all of them, nil removes them.
    public subscript(name: String) -> String? {
        get { fields.first { $0.name.lowercased() == name.lowercased() }?.value }
        set {
            fields.removeAll { $0.name.lowercased() == name.lowercased() }
            if let newValue { fields.append((name: name, value: newValue)) }
        }
    }

    /// All values of a field.
    public func values(_ name: String) -> [String] {
        fields.filter { $0.name.lowercased() == name.lowercased() }.map(\.value)
    }

    /// Adds one more field.
    public mutating func add(_ name: String, _ value: String) { fields.append((name: name, value: value)) }

    /// Adds all fields of another list.
    public mutating func add(contentsOf other: HeaderFields) { fields += other.fields }

    /// Whether every name is a token and no value could end the line (RFC 9110 §5.5).
    var isValid: Bool {
        fields.allSatisfy { field in
            !field.name.isEmpty && field.name.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f && $0 != 0x3a }
                && field.value.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x7f || $0 == 0x09 }
        }
    }

    /// Whether a comma-separated field holds the token.
    func contains(_ name: String, token: String) -> Bool {
        values(name).contains { value in
            value.split(separator: ",").contains { $0.trimmingSpaces.lowercased() == token.lowercased() }
        }
    }

    public var description: String { fields.map { "\($0.name): \($0.value)" }.joined(separator: "\n") }
}

extension StringProtocol {
    /// Without spaces and tabs at both ends.
    var trimmingSpaces: SubSequence {
        var result = self[...]
        while let first = result.first, first == " " || first == "\t" { result.removeFirst() }
        while let last = result.last, last == " " || last == "\t" { result.removeLast() }
        return result
    }
}

/// A complete answer to a request.
public struct HTTPResponse: Sendable {
    /// 200, 404, …
    public let status: Int
    /// Its header fields.
    public let headers: HeaderFields
    /// Its body, no longer than the request's limit.
    public let body: [UInt8]
    /// Whether it came over IPv6; from the proxy, where there is one.
    public let isOverV6: Bool

    /// Puts an answer together.
    public init(
        status: Int, headers: HeaderFields = HeaderFields(), body: [UInt8] = [], isOverV6: Bool = false
    ) {
        self.status = status
        self.headers = headers
        self.body = body
        self.isOverV6 = isOverV6
    }

    /// The body as text; bytes that are not UTF-8 become replacement characters.
    public var text: String { String(decoding: body, as: UTF8.self) }
}
