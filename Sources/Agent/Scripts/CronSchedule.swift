// SPDX-License-Identifier: Apache-2.0

/// When a script is due: five fields, or six with the day of the week. agent.md §4.5. Pure.
///
///     second │ minute │ hour │ day of month │ month │ [day of week]
///
/// Each field is `*` or `?`, or a list of numbers, names of months and days, and ranges, with `/step` behind.
package struct CronSchedule: Hashable, Sendable {
    /// A moment in local time, as `tm` of the C library has it.
    package struct Moment: Hashable, Sendable {
        package var second: Int
        package var minute: Int
        package var hour: Int
        /// 1 to 31.
        package var day: Int
        /// 1 to 12.
        package var month: Int
        /// 0 is Sunday.
        package var weekday: Int

        package init(second: Int, minute: Int, hour: Int, day: Int, month: Int, weekday: Int) {
            (self.second, self.minute, self.hour) = (second, minute, hour)
            (self.day, self.month, self.weekday) = (day, month, weekday)
        }
    }

    /// The values of one field, a bit each.
    private struct Field: Hashable {
        var bits: UInt64 = 0
        /// Begins with a star: it does not restrict.
        var isOpen = false

        func contains(_ value: Int) -> Bool { bits & 1 << UInt64(value) != 0 }
    }

    private var seconds, minutes, hours, days, months, weekdays: Field

    private static let monthNames = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ]
    private static let dayNames = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]

    /// nil: not a schedule.
    package init?(_ text: String) {
        let words = text.split(whereSeparator: \.isWhitespace)
        guard 5...6 ~= words.count, let seconds = Self.field(words[0], 0...59),
            let minutes = Self.field(words[1], 0...59), let hours = Self.field(words[2], 0...23),
            let days = Self.field(words[3], 1...31),
            let months = Self.field(words[4], 1...12, names: Self.monthNames),
            let weekdays = Self.field(words.count > 5 ? words[5] : "*", 0...6, names: Self.dayNames)
        else { return nil }
        (self.seconds, self.minutes, self.hours) = (seconds, minutes, hours)
        (self.days, self.months, self.weekdays) = (days, months, weekdays)
    }

    /// Whether a script is due at this second. cron(5): two restricted days are alternatives.
    package func matches(_ moment: Moment) -> Bool {
        let isDay = days.contains(moment.day), isWeekday = weekdays.contains(moment.weekday)
        let dayMatches = days.isOpen || weekdays.isOpen ? isDay && isWeekday : isDay || isWeekday
        return dayMatches && seconds.contains(moment.second) && minutes.contains(moment.minute)
            && hours.contains(moment.hour) && months.contains(moment.month)
    }

    private static func field(
        _ text: Substring, _ bounds: ClosedRange<Int>, names: [String] = []
    ) -> Field? {
        var result = Field()
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let halves = part.split(separator: "/", omittingEmptySubsequences: false)
            guard 1...2 ~= halves.count, let range = range(halves[0], bounds, names) else { return nil }
            var (low, high) = (range.lowerBound, range.upperBound)
            var step = 1
            if halves.count == 2 {
                guard let number = Int(halves[1]), number > 0 else { return nil }
                step = number
                // `5/10`: from 5 on.
                if low == high, Int(halves[0]) != nil { high = bounds.upperBound }
            }
            if halves[0] == "*" || halves[0] == "?" { result.isOpen = step == 1 }
            while low <= high {
                result.bits |= 1 << UInt64(low)
                low += step
            }
        }
        return result.bits == 0 ? nil : result
    }

    private static func range(
        _ text: Substring, _ bounds: ClosedRange<Int>, _ names: [String]
    ) -> ClosedRange<Int>? {
        if text == "*" || text == "?" { return bounds }
        let ends = text.split(separator: "-", omittingEmptySubsequences: false).map { word in
            names.firstIndex(of: word.lowercased()).map { $0 + bounds.lowerBound } ?? Int(word)
        }
        guard 1...2 ~= ends.count, let low = ends[0], let high = ends[ends.count - 1], low <= high,
            bounds.contains(low), bounds.contains(high)
        else { return nil }
        return low...high
    }
}
