// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// A moment in seconds since 1970, read from and written as RFC 3339.
package struct Timestamp: Sendable, Comparable {
    package var seconds: Double

    init(seconds: Double) { self.seconds = seconds }

    /// Now, by the wall clock.
    static var now: Timestamp {
        let time = Clock.wallTime()
        return Timestamp(seconds: Double(time.seconds) + Double(time.nanoseconds) / 1e9)
    }

    /// Reads `2026-02-01T10:00:00.5+01:00`; nil for anything else.
    package init?(_ text: String) {
        let bytes = Array(text.utf8)
        guard bytes.count >= 20, bytes[4] == 45, bytes[7] == 45, bytes[10] | 32 == 116, bytes[13] == 58,
            bytes[16] == 58
        else { return nil }
        let number = { (start: Int, count: Int) -> Int? in
            guard bytes[start..<start + count].allSatisfy({ 48...57 ~= $0 }) else { return nil }
            return bytes[start..<start + count].reduce(0) { $0 * 10 + Int($1 - 48) }
        }
        guard let year = number(0, 4), let month = number(5, 2), let day = number(8, 2),
            let hour = number(11, 2),
            let minute = number(14, 2), let second = number(17, 2), 1...12 ~= month, 1...31 ~= day
        else { return nil }
        var rest = bytes[19...]
        var fraction = 0.0
        if rest.first == 46 {
            let digits = rest.dropFirst().prefix { 48...57 ~= $0 }
            guard !digits.isEmpty else { return nil }
            fraction = Double("0." + String(decoding: digits, as: UTF8.self)) ?? 0
            rest = rest[digits.endIndex...]
        }
        var offset = 0
        if rest.count == 6, rest.first == 43 || rest.first == 45, let hours = number(rest.startIndex + 1, 2),
            let minutes = number(rest.startIndex + 4, 2)
        {
            offset = (hours * 60 + minutes) * 60 * (rest.first == 45 ? -1 : 1)
        } else if !(rest.count == 1 && rest[rest.startIndex] | 32 == 122) {
            return nil
        }
        let days = Self.days(year, month, day)
        seconds = Double(days * 86_400 + hour * 3_600 + minute * 60 + second - offset) + fraction
    }

    package static func < (a: Timestamp, b: Timestamp) -> Bool { a.seconds < b.seconds }

    /// How long ago; never negative.
    var age: Duration { .milliseconds(Int64(max(0, Self.now.seconds - seconds) * 1_000)) }

    /// `2026-02-01T10:00:00Z`, or with the local zone's offset.
    package func text(isLocal: Bool = false) -> String {
        let parts = broken(isLocal: isLocal)
        let two = { (value: Int32) in value < 10 ? "0\(value)" : "\(value)" }
        let zone: String
        if isLocal, parts.tm_gmtoff != 0 {
            let minutes = parts.tm_gmtoff.magnitude / 60
            zone =
                (parts.tm_gmtoff < 0 ? "-" : "+") + two(Int32(minutes / 60)) + ":" + two(Int32(minutes % 60))
        } else {
            zone = "Z"
        }
        return
            "\(parts.tm_year + 1_900)-\(two(parts.tm_mon + 1))-\(two(parts.tm_mday))T\(two(parts.tm_hour)):"
            + "\(two(parts.tm_min)):\(two(parts.tm_sec))\(zone)"
    }

    /// Go's `time.Stamp` in local time: `Feb  1 10:00:00`.
    var stamp: String {
        let parts = broken(isLocal: true)
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        let two = { (value: Int32) in value < 10 ? "0\(value)" : "\(value)" }
        let day = parts.tm_mday < 10 ? " \(parts.tm_mday)" : "\(parts.tm_mday)"
        return
            "\(months[Int(parts.tm_mon)]) \(day) \(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec))"
    }

    /// `2006-01-02 15:04:05.000+01:00` in local time, for lines of logs.
    var logStamp: String {
        let text = text(isLocal: true)
        let milliseconds = Int((seconds - seconds.rounded(.down)) * 1_000)
        let places = String(repeating: "0", count: milliseconds < 10 ? 2 : milliseconds < 100 ? 1 : 0)
        let zone = text.dropFirst(19)
        return "\(text.prefix(10)) \(text.dropFirst(11).prefix(8)).\(places)\(milliseconds)\(zone)"
    }

    /// `20060102-150405` in local time, for names of files.
    var fileStamp: String {
        let parts = broken(isLocal: true)
        let two = { (number: Int32) in number < 10 ? "0\(number)" : "\(number)" }
        return "\(parts.tm_year + 1900)\(two(parts.tm_mon + 1))\(two(parts.tm_mday))"
            + "-\(two(parts.tm_hour))\(two(parts.tm_min))\(two(parts.tm_sec))"
    }

    /// Year, month and so on, in UTC or as people here count.
    func broken(isLocal: Bool) -> tm {
        var time = time_t(seconds.rounded(.down))
        var parts = tm()
        if isLocal {
            localtime_r(&time, &parts)
        } else {
            gmtime_r(&time, &parts)
        }
        return parts
    }

    /// Days since 1970-01-01 in the Gregorian calendar.
    private static func days(_ year: Int, _ month: Int, _ day: Int) -> Int {
        let shifted = month <= 2 ? year - 1 : year
        let era = (shifted >= 0 ? shifted : shifted - 399) / 400
        let yearOfEra = shifted - era * 400
        let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }
}

/// `<1m`, `1h2m`, `3d4h`: seconds are dropped.
package func shortDuration(_ duration: Duration) -> String {
    let minutes = duration.components.seconds / 60
    let (days, hours, rest) = (minutes / 1_440, minutes / 60 % 24, minutes % 60)
    if days > 0 { return hours > 0 ? "\(days)d\(hours)h" : "\(days)d" }
    if hours > 0 { return rest > 0 ? "\(hours)h\(rest)m" : "\(hours)h" }
    return minutes > 0 ? "\(minutes)m" : "<1m"
}
