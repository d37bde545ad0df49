// SPDX-License-Identifier: GPL-2.0-or-later

import AspenCLI

/// Figures as bars of text, for a terminal or a page.
enum Plot {
    /// Characters of the longest bar.
    static let width = 50
    /// Lines of a plot over time.
    static let linesMax = 30

    /// A line for each pair; the longest bar is the largest value's.
    static func bars(_ rows: [(label: String, value: Double, note: String)]) -> String {
        let labels = rows.map(\.label.count).max() ?? 0
        let notes = rows.map(\.note.count).max() ?? 0
        let largest = rows.map(\.value).max() ?? 0
        func padded(_ text: String, _ count: Int) -> String {
            String(repeating: " ", count: count - text.count) + text
        }
        return rows.map { row in
            let share = largest > 0 ? row.value / largest : 0
            // What is there is seen, however little it is.
            let length = row.value > 0 ? max(1, Int((share * Double(width)).rounded())) : 0
            let bar = length > 0 ? " " + String(repeating: "#", count: length) : ""
            return "  \(padded(row.label, labels))  \(padded(row.note, notes))\(bar)\n"
        }.joined()
    }

    /// How many of the values are at or below each bound and above the one before, by bounds of 1, 2 and
    /// 5 times a power of ten.
    ///
    /// - Parameter values: milliseconds, and how many of each, in order.
    static func distribution(_ values: [(milliseconds: Double, count: UInt64)]) -> String {
        var rows: [(bound: Double, count: UInt64)] = []
        var bounds = Bounds()
        var bound = bounds.next()
        var within: UInt64 = 0
        for (value, count) in values {
            while value > bound {
                // An empty one between others is part of the picture.
                if within > 0 || !rows.isEmpty { rows.append((bound, within)) }
                within = 0
                bound = bounds.next()
            }
            within += count
        }
        if within > 0 { rows.append((bound, within)) }
        let total = Double(rows.reduce(0) { $0 + $1.count })
        return bars(
            rows.map { row in
                (
                    "≤ \(JSON.decimal(row.bound)) ms", Double(row.count),
                    "\(JSON.decimal(100 * Double(row.count) / total)) %"
                )
            })
    }

    /// Requests a second over time; several seconds share a line when there are too many.
    static func overTime(_ perSecond: [Int]) -> String {
        let size = max(1, (perSecond.count + linesMax - 1) / linesMax)
        return bars(
            stride(from: 0, to: perSecond.count, by: size).map { first in
                let part = perSecond[first..<min(first + size, perSecond.count)]
                let mean = part.reduce(0, +) / part.count
                return ("\(first) s", Double(mean), "\(mean)/s")
            })
    }

    /// 0.001, 0.002, 0.005, 0.01 …
    private struct Bounds {
        private var power = 0.001
        private var step = 0
        mutating func next() -> Double {
            defer {
                step = (step + 1) % 3
                if step == 0 { power *= 10 }
            }
            return power * [1, 2, 5][step]
        }
    }
}
