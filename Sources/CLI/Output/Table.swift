// SPDX-License-Identifier: Apache-2.0

/// Tables as all list commands print them: an upper-case header, left-aligned cells with two spaces behind each,
/// no borders.
package enum Table {
    /// `columns` selects and orders; `rows` hold one cell per column of `names`.
    package static func text(names: [String], columns: [String], rows: [[String]]) -> String {
        let indices = columns.compactMap { column in names.firstIndex { isSameColumn($0, column) } }
        let header = indices.map { names[$0].uppercased() }
        let lines = [header] + rows.map { row in indices.map { clean(row[$0]) } }
        let widths = header.indices.map { column in lines.map { width($0[column]) }.max() ?? 0 }
        return lines.map { line in
            zip(line, widths).map { cell, wide in
                cell + String(repeating: " ", count: wide - width(cell) + 2)
            }.joined()
        }.joined(separator: "\n") + "\n"
    }

    /// A cell comes from other people: no line breaks, no escape codes.
    package static func clean(_ cell: String) -> String {
        String(
            String.UnicodeScalarView(
                cell.unicodeScalars.map { $0.value < 0x20 || $0.value == 0x7f ? " " : $0 }))
    }

    /// Terminal columns; wide East Asian characters take two.
    package static func width(_ text: String) -> Int {
        text.reduce(0) { sum, character in
            let value = character.unicodeScalars.first?.value ?? 0
            let isWide =
                0x1100...0x115f ~= value || 0x2e80...0xa4cf ~= value || 0xac00...0xd7a3 ~= value
                || 0xf900...0xfaff ~= value || 0xff00...0xff60 ~= value || 0x1f300...0x1faff ~= value
            return sum + (isWide ? 2 : 1)
        }
    }

    /// The light box round the resource tree of `show`.
    package static func box(header: [String], rows: [[String]]) -> String {
        let lines = [header] + rows.map { $0.map(clean) }
        let widths = header.indices.map { column in lines.map { width($0[column]) }.max() ?? 0 }
        let rule = { (left: String, middle: String, right: String) in
            left + widths.map { String(repeating: "─", count: $0 + 2) }.joined(separator: middle) + right
        }
        let row = { (cells: [String]) in
            "│"
                + zip(cells, widths).map { " \($0)" + String(repeating: " ", count: $1 - width($0) + 1) }
                .joined(separator: "│")
                + "│"
        }
        let body = lines.dropFirst().map(row)
        let all = [rule("┌", "┬", "┐"), row(header), rule("├", "┼", "┤")] + body + [rule("└", "┴", "┘")]
        return all.joined(separator: "\n") + "\n"
    }
}
