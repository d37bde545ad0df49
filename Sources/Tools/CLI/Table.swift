// SPDX-License-Identifier: GPL-2.0-or-later

/// Columns of text, aligned with spaces so that they survive being pasted into a mail.
struct Table {
    enum Alignment { case left, right }

    struct Column {
        var title: String
        var alignment: Alignment = .left
    }

    private let columns: [Column]
    /// Of pages already printed: later ones are at least as wide.
    private var widths: [Int]
    private var isHeaderPrinted = false

    init(_ columns: [Column]) {
        self.columns = columns
        widths = columns.map(\.title.count)
    }

    /// - Parameter paint: colours a cell after it was padded; gets row and column.
    mutating func render(
        _ rows: [[String]], paint: (String, Int, Int) -> String = { text, _, _ in text }
    ) -> String {
        for row in rows {
            precondition(row.count == columns.count, "a row has a cell for each column")
            for (column, cell) in row.enumerated() {
                widths[column] = max(widths[column], cell.count)
            }
        }
        var text = ""
        if !isHeaderPrinted {
            isHeaderPrinted = true
            text += line(columns.map(\.title)) { cell, _ in cell }
        }
        for (number, row) in rows.enumerated() {
            text += line(row) { cell, column in paint(cell, number, column) }
        }
        return text
    }

    private func line(_ cells: [String], paint: (String, Int) -> String) -> String {
        var text = ""
        for (column, cell) in cells.enumerated() {
            let space = String(repeating: " ", count: widths[column] - cell.count)
            let isLast = column == cells.count - 1
            switch columns[column].alignment {
            case .right: text += space + paint(cell, column)
            // No blanks at the end of a line.
            case .left: text += paint(cell, column) + (isLast ? "" : space)
            }
            if !isLast { text += "  " }
        }
        return text + "\n"
    }
}

/// How bytes and numbers are shown to people.
enum Display {
    /// Longest value in a table, in characters.
    static let cellCharactersMax = 60

    /// True for bytes that no terminal should get: not UTF-8, or with control characters other than
    /// tab and line ends.
    static func isBinary(_ bytes: [UInt8]) -> Bool {
        guard let text = String(validating: bytes, as: UTF8.self) else { return true }
        return text.unicodeScalars.contains { scalar in
            isControl(scalar) && !["\t", "\n", "\r"].contains(scalar)
        }
    }

    private static func isControl(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0..<0x20, 0x7f..<0xa0: true
        // What turns the direction of text around, and line ends that are none in ASCII.
        case 0x202a...0x202e, 0x2066...0x2069, 0x2028, 0x2029: true
        default: false
        }
    }

    /// One line, nothing in it that moves a cursor.
    static func oneLine(_ text: String) -> String {
        var result = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\n": result.append(contentsOf: "\\n".unicodeScalars)
            case "\r": result.append(contentsOf: "\\r".unicodeScalars)
            case "\t": result.append(contentsOf: "\\t".unicodeScalars)
            case _ where isControl(scalar):
                let digits = String(scalar.value, radix: 16)
                result.append(contentsOf: "\\u{\(digits)}".unicodeScalars)
            default: result.append(scalar)
            }
        }
        return String(result)
    }

    static func value(_ bytes: [UInt8]) -> String {
        if bytes.isEmpty { return "<empty>" }
        guard !isBinary(bytes), let text = String(validating: bytes, as: UTF8.self) else {
            return "<binary: \(bytes.count) bytes>"
        }
        // Not the whole megabyte, when sixty characters are wanted.
        let line = oneLine(String(text.prefix(cellCharactersMax + 1)))
        guard line.count > cellCharactersMax else { return line }
        return line.prefix(cellCharactersMax - 1) + "…"
    }

    /// 412 µs, 1.3 ms, 25 ms.
    static func time(microseconds: UInt64) -> String {
        guard microseconds >= 1000 else { return "\(microseconds) µs" }
        let tenths = microseconds / 100
        return tenths < 100 ? "\(tenths / 10).\(tenths % 10) ms" : "\(tenths / 10) ms"
    }

    /// 0, 812 B, 1.2 KiB, 34 MiB.
    static func size(_ bytes: UInt64) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var tenths = bytes
        var unit = 0
        guard bytes >= 1024 else { return "\(bytes) B" }
        var scaled = Double(bytes)
        while scaled >= 1024, unit < units.count - 1 {
            scaled /= 1024
            unit += 1
        }
        tenths = UInt64((scaled * 10).rounded())
        return scaled < 10
            ? "\(tenths / 10).\(tenths % 10) \(units[unit])"
            : "\(UInt64(scaled.rounded())) \(units[unit])"
    }
}
