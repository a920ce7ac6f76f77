// SPDX-License-Identifier: Apache-2.0

/// A value for a placeholder (`$1`, …) of a statement. Travels as text; PostgreSQL knows the type from the place.
enum SQLValue: Sendable {
    case null
    case text(String)
    case bytes([UInt8])

    init(_ value: String) { self = .text(value) }
    init(_ value: String?) { self = value.map(SQLValue.text) ?? .null }
    init(_ value: some BinaryInteger) { self = .text(String(value)) }
    init(_ value: Double) { self = .text("\(value)") }
    init(_ value: Bool) { self = .text(value ? "true" : "false") }
    init(_ value: Identifier) { self = .text(value.text) }
    init(_ value: Identifier?) { self = value.map { .text($0.text) } ?? .null }
    init(_ value: Timestamp) { self = .text(value.rfc3339) }
    init(_ value: Timestamp?) { self = value.map { .text($0.rfc3339) } ?? .null }
    init(_ value: JSON) { self = .text(String(decoding: value.encoded, as: UTF8.self)) }
    init(_ values: [Identifier]) { self = .text("{" + values.map(\.text).joined(separator: ",") + "}") }

    /// An array of texts. Byte by byte, as PostgreSQL reads it: a quote and the accent on it are one `Character`.
    init(_ values: [String]) {
        var bytes: [UInt8] = []
        for value in values {
            bytes += bytes.isEmpty ? [] : [UInt8(ascii: ",")]
            bytes.append(UInt8(ascii: "\""))
            for byte in value.utf8 {
                if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") {
                    bytes.append(UInt8(ascii: "\\"))
                }
                bytes.append(byte)
            }
            bytes.append(UInt8(ascii: "\""))
        }
        self = .text("{" + String(decoding: bytes, as: UTF8.self) + "}")
    }
}

/// What went wrong between us and PostgreSQL.
struct DatabaseError: Error, Sendable, CustomStringConvertible {
    /// Five characters, such as `23505`; empty when the server was not reached.
    var sqlState: String
    var message: String
    /// Name of the violated constraint, if any.
    var constraint: String
    /// Whether the connection is gone.
    var isDisconnected: Bool

    /// A row with the same key exists already.
    var isUniqueViolation: Bool { sqlState == "23505" }
    /// A CHECK constraint refused the row.
    var isCheckViolation: Bool { sqlState == "23514" }

    var description: String {
        (sqlState.isEmpty ? "PostgreSQL: " : "PostgreSQL \(sqlState): ") + message.trimmingLine()
    }
}

/// Something that takes statements: a pool, or one connection inside a transaction.
protocol SQLRunner: Sendable {
    /// Runs one statement and returns its rows.
    @discardableResult
    func query(_ sql: String, _ parameters: [SQLValue]) async throws -> [Row]
}

extension SQLRunner {
    /// Runs a statement without parameters.
    @discardableResult
    func query(_ sql: String) async throws -> [Row] { try await query(sql, []) }

    /// The first row, or nil.
    func first(_ sql: String, _ parameters: [SQLValue] = []) async throws -> Row? {
        try await query(sql, parameters).first
    }
}

/// A database with transactions.
protocol Database: SQLRunner {
    /// Runs `body` between BEGIN and COMMIT on one connection; rolls back when it throws.
    func transaction<Result: Sendable>(
        _ body: @Sendable (any SQLRunner) async throws -> Result
    ) async throws -> Result
}

/// One row of a result. Columns are looked up by name; a wrong name is a programming error and traps.
struct Row: Sendable {
    let columns: ColumnNames
    let values: [String?]

    /// Names of a result's columns, shared by its rows.
    final class ColumnNames: Sendable {
        let positions: [String: Int]
        init(_ names: [String]) {
            positions = Dictionary(
                names.enumerated().map { ($1, $0) }, uniquingKeysWith: { first, _ in first })
        }
    }

    private func value(_ name: String) -> String? {
        guard let position = columns.positions[name] else { preconditionFailure("no column \(name)") }
        return values[position]
    }

    /// Text; empty for NULL.
    func text(_ name: String) -> String { value(name) ?? "" }
    /// Text, or nil for NULL.
    func optionalText(_ name: String) -> String? { value(name) }
    /// A whole number; 0 for NULL.
    func integer(_ name: String) -> Int64 { value(name).flatMap { Int64($0) } ?? 0 }
    /// A whole number, or nil for NULL.
    func optionalInteger(_ name: String) -> Int64? { value(name).flatMap { Int64($0) } }
    /// A truth value; false for NULL.
    func flag(_ name: String) -> Bool { value(name) == "t" }
    /// A UUID; zero for NULL.
    func identifier(_ name: String) -> Identifier { value(name).flatMap { Identifier($0) } ?? .zero }
    /// A UUID, or nil for NULL.
    func optionalIdentifier(_ name: String) -> Identifier? { value(name).flatMap { Identifier($0) } }
    /// A moment; year 1 for NULL.
    func time(_ name: String) -> Timestamp { optionalTime(name) ?? .zero }
    /// A moment, or nil for NULL.
    func optionalTime(_ name: String) -> Timestamp? { value(name).flatMap { Timestamp($0) } }
    /// JSON; null for NULL.
    func json(_ name: String) -> JSON { value(name).flatMap { try? JSON(parsing: $0.utf8) } ?? .null }

    /// Raw bytes in PostgreSQL's `\x…` form; empty for NULL.
    func bytes(_ name: String) -> [UInt8] {
        let digits = Array(text(name).utf8.dropFirst(2))
        return stride(from: 0, to: digits.count - 1, by: 2).map { index in
            UInt8(String(decoding: digits[index...index + 1], as: UTF8.self), radix: 16) ?? 0
        }
    }

    /// An array of texts or UUIDs; empty for NULL.
    func list(_ name: String) -> [String] {
        var items: [String] = []
        var current: [UInt8] = []
        var isQuoted = false
        var isEscaped = false
        var hasItem = false
        for byte in text(name).utf8.dropFirst().dropLast() {
            if isEscaped {
                current.append(byte)
                isEscaped = false
            } else if byte == UInt8(ascii: "\\") {
                isEscaped = true
            } else if byte == UInt8(ascii: "\"") {
                isQuoted.toggle()
                hasItem = true
            } else if byte == UInt8(ascii: ","), !isQuoted {
                items.append(String(decoding: current, as: UTF8.self))
                current = []
                hasItem = true
            } else {
                current.append(byte)
                hasItem = true
            }
        }
        return hasItem ? items + [String(decoding: current, as: UTF8.self)] : []
    }
}
