// SPDX-License-Identifier: Apache-2.0

/// Go's `strconv.ParseBool`; the empty text is false.
package func parseBool(_ text: String) -> Bool? {
    switch text {
    case "1", "t", "T", "TRUE", "true", "True": return true
    case "", "0", "f", "F", "FALSE", "false", "False": return false
    default: return nil
    }
}

/// Go's `time.ParseDuration`, with weeks, days and (for token lifetimes) years before its units. A leading minus
/// is read; `0` alone is zero.
package func parseDuration(_ text: String) -> Duration? {
    var rest = Substring(text)
    let isNegative = rest.hasPrefix("-")
    if isNegative || rest.hasPrefix("+") { rest.removeFirst() }
    guard !rest.isEmpty else { return nil }
    if rest == "0" { return .zero }
    var total = 0.0
    while !rest.isEmpty {
        let digits = rest.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let unit = rest[digits.endIndex...].prefix { !($0.isASCII && ($0.isNumber || $0 == ".")) }
        guard let number = Double(digits), let nanoseconds = nanosecondsPerUnit[String(unit)] else {
            return nil
        }
        total += number * nanoseconds
        rest = rest[unit.endIndex...]
    }
    guard total < 9e18 else { return nil }
    return .nanoseconds(Int64(isNegative ? -total : total))
}

private let nanosecondsPerUnit: [String: Double] = [
    "ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3_600e9, "d": 86_400e9,
    "w": 7 * 86_400e9, "y": 365 * 86_400e9,
]

/// Go's form of a duration: `1h2m3s`, `1.5s`, `12ms`, `0s`.
package func format(_ duration: Duration) -> String {
    let nanoseconds = duration.wholeNanoseconds
    let magnitude = nanoseconds.magnitude
    let sign = nanoseconds < 0 ? "-" : ""
    if magnitude == 0 { return "0s" }
    let trimmed = { (value: UInt64, unit: UInt64) -> String in
        var text = fixed(Double(value) / Double(unit), 9)
        while text.hasSuffix("0") { text.removeLast() }
        if text.hasSuffix(".") { text.removeLast() }
        return text
    }
    if magnitude < 1_000 { return "\(sign)\(magnitude)ns" }
    if magnitude < 1_000_000 { return sign + trimmed(magnitude, 1_000) + "µs" }
    if magnitude < 1_000_000_000 { return sign + trimmed(magnitude, 1_000_000) + "ms" }
    let hours = magnitude / 3_600_000_000_000
    let minutes = magnitude / 60_000_000_000 % 60
    let seconds = trimmed(magnitude % 60_000_000_000, 1_000_000_000) + "s"
    if hours > 0 { return "\(sign)\(hours)h\(minutes)m\(seconds)" }
    return minutes > 0 ? "\(sign)\(minutes)m\(seconds)" : sign + seconds
}

extension Duration {
    /// In nanoseconds; clamped, which matters after 292 years.
    var wholeNanoseconds: Int64 {
        let (seconds, overflow) = components.seconds.multipliedReportingOverflow(by: 1_000_000_000)
        if overflow { return components.seconds < 0 ? .min : .max }
        return seconds &+ components.attoseconds / 1_000_000_000
    }

    /// In seconds.
    var inSeconds: Double { Double(wholeNanoseconds) / 1e9 }
}

/// The fields of one CSV record (RFC 4180): quotes may surround a field and are doubled inside it.
package func splitCSV(_ text: String) -> [String] {
    var fields: [String] = []
    var field = ""
    var isQuoted = false
    var characters = text.makeIterator()
    var pushedBack: Character?
    while let character = pushedBack ?? characters.next() {
        pushedBack = nil
        if isQuoted {
            guard character == "\"" else {
                field.append(character)
                continue
            }
            pushedBack = characters.next()
            if pushedBack == "\"" {
                field.append("\"")
                pushedBack = nil
            } else {
                isQuoted = false
            }
        } else if character == "\"", field.isEmpty {
            isQuoted = true
        } else if character == "," {
            fields.append(field)
            field = ""
        } else {
            field.append(character)
        }
    }
    return fields + [field]
}

/// Column names compare without case, and `_` equals a space.
func isSameColumn(_ name: String, _ given: String) -> Bool {
    let simple = { (text: String) in
        String(text.lowercased().map { $0 == "_" ? " " : $0 }).split(separator: " ").joined(separator: " ")
    }
    return simple(name) == simple(given)
}
