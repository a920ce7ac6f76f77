// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// A moment of civil time in UTC with PostgreSQL's precision: microseconds since 1970.
struct Timestamp: Hashable, Comparable, Sendable {
    /// Microseconds since 1970-01-01 UTC, negative before.
    var microseconds: Int64

    /// `0001-01-01T00:00:00Z`, which stands for "none" on the wire and in the database.
    static let zero = Timestamp(microseconds: -62_135_596_800_000_000)

    /// What the machine's clock says. Only shells ask.
    static func now() -> Timestamp {
        let time = Clock.wallTime()
        return Timestamp(microseconds: time.seconds * 1_000_000 + Int64(time.nanoseconds / 1000))
    }

    static func < (a: Timestamp, b: Timestamp) -> Bool { a.microseconds < b.microseconds }

    /// Whole seconds since 1970, rounded down.
    var unixSeconds: Int64 {
        microseconds >= 0 ? microseconds / 1_000_000 : (microseconds - 999_999) / 1_000_000
    }

    /// `seconds` later.
    func adding(seconds: Int64) -> Timestamp {
        let (step, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000)
        let (sum, overflowed) = microseconds.addingReportingOverflow(overflow ? Int64.max : step)
        return Timestamp(microseconds: overflow || overflowed ? Timestamp.latest : min(sum, Timestamp.latest))
    }

    /// Seconds since `earlier`, negative when it is later.
    func seconds(since earlier: Timestamp) -> Double { Double(microseconds - earlier.microseconds) / 1e6 }

    /// The end of the year 9999: RFC 3339 cannot say more.
    private static let latest: Int64 = 253_402_300_799_000_000

    /// RFC 3339 in UTC, fraction without trailing zeros: `2026-02-01T10:00:00.25Z`.
    var rfc3339: String {
        var days = microseconds / 86_400_000_000
        var rest = microseconds % 86_400_000_000
        if rest < 0 {
            rest += 86_400_000_000
            days -= 1
        }
        let date = Self.civil(fromDays: days)
        let seconds = rest / 1_000_000
        var text =
            "\(pad(date.year, 4))-\(pad(date.month, 2))-\(pad(date.day, 2))T"
            + "\(pad(seconds / 3600, 2)):\(pad(seconds / 60 % 60, 2)):\(pad(seconds % 60, 2))"
        let fraction = rest % 1_000_000
        if fraction != 0 {
            var digits = pad(fraction, 6)
            while digits.hasSuffix("0") { digits.removeLast() }
            text += "." + digits
        }
        return text + "Z"
    }

    /// Reads RFC 3339 and PostgreSQL's ISO form (`2026-02-01 10:00:00.25+00`). Nil when it is neither.
    init?(_ text: String) {
        let bytes = Array(text.utf8)
        var reader = DigitReader(bytes: bytes)
        guard let year = reader.number(4), reader.take("-"), let month = reader.number(2), reader.take("-"),
            let day = reader.number(2), reader.take("T") || reader.take(" ") || reader.take("t"),
            let hour = reader.number(2), reader.take(":"), let minute = reader.number(2), reader.take(":"),
            let second = reader.number(2), (1...12).contains(month), (1...31).contains(day), hour < 24,
            minute < 60, second < 61
        else { return nil }
        let fraction = reader.fraction()
        guard let offset = reader.zone() else { return nil }
        let days = Self.days(fromYear: year, month: month, day: day)
        let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset
        microseconds = seconds * 1_000_000 + fraction
    }

    init(microseconds: Int64) { self.microseconds = microseconds }

    /// Days since 1970 of a date in the proleptic Gregorian calendar (era arithmetic over 400 years).
    private static func days(fromYear year: Int64, month: Int64, day: Int64) -> Int64 {
        let y = month <= 2 ? year - 1 : year
        let era = (y >= 0 ? y : y - 399) / 400
        let yearOfEra = y - era * 400
        let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }

    private static func civil(fromDays days: Int64) -> (year: Int64, month: Int64, day: Int64) {
        let z = days + 719_468
        let era = (z >= 0 ? z : z - 146_096) / 146_097
        let dayOfEra = z - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shifted = (5 * dayOfYear + 2) / 153
        let month = shifted < 10 ? shifted + 3 : shifted - 9
        return (yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, dayOfYear - (153 * shifted + 2) / 5 + 1)
    }
}

private func pad(_ value: Int64, _ width: Int) -> String {
    let digits = String(value)
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
}

/// Takes fixed-width numbers off a text.
private struct DigitReader {
    let bytes: [UInt8]
    var position = 0

    mutating func number(_ width: Int) -> Int64? {
        guard position + width <= bytes.count else { return nil }
        var value: Int64 = 0
        for byte in bytes[position..<position + width] {
            guard (48...57).contains(byte) else { return nil }
            value = value * 10 + Int64(byte - 48)
        }
        position += width
        return value
    }

    mutating func take(_ character: Character) -> Bool {
        guard position < bytes.count, bytes[position] == character.asciiValue else { return false }
        position += 1
        return true
    }

    /// Microseconds; further digits are dropped.
    mutating func fraction() -> Int64 {
        guard take(".") else { return 0 }
        var value: Int64 = 0
        var scale: Int64 = 100_000
        while position < bytes.count, (48...57).contains(bytes[position]) {
            value += Int64(bytes[position] - 48) * scale
            scale /= 10
            position += 1
        }
        return value
    }

    /// Seconds east of UTC; nil when there is anything else than a zone left.
    mutating func zone() -> Int64? {
        if position == bytes.count { return 0 }
        if take("Z") || take("z") { return position == bytes.count ? 0 : nil }
        let sign: Int64
        if take("+") { sign = 1 } else if take("-") { sign = -1 } else { return nil }
        guard let hours = number(2) else { return nil }
        var minutes: Int64 = 0
        if position < bytes.count {
            _ = take(":")
            guard let value = number(2) else { return nil }
            minutes = value
        }
        return position == bytes.count ? sign * (hours * 3600 + minutes * 60) : nil
    }
}
