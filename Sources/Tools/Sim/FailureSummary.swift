// SPDX-License-Identifier: GPL-2.0-or-later

import SimChecks
import SimFaults

/// One page on how a run failed: what broke, what each node did last, and the last messages as a
/// diagram. The run is gone through once more for it, read along this time.
struct FailureSummary {
    private static let eventsPerNode = 6
    private static let messagesMax = 24
    private static let columnWidth = 9

    private var nodes: Int
    private var events: [[String]]
    private var messages: [(time: Substring, from: Int, to: Int, text: String)] = []

    init(_ scenario: Scenario, strictness: Oracle.Strictness) {
        nodes = scenario.nodes
        events = Array(repeating: [], count: scenario.nodes)
        var lines: [String] = []
        _ = Trial.run(scenario, strictness: strictness) { line in
            lines.append(line)
            if lines.count > 20_000 { lines.removeFirst(10_000) }
        }
        for line in lines { take(line) }
    }

    /// "12.345678 n1 -> n2 t3 vote …", or "12.345678 n1 anything else".
    private mutating func take(_ line: String) {
        let words = line.split(separator: " ", omittingEmptySubsequences: true)
        guard words.count > 2, let node = Self.node(words[1]), node < nodes else { return }
        if words[2] == "<-" { return }
        if words[2] == "->", words.count > 4, let other = Self.node(words[3]), other < nodes {
            let text = words[4...].joined(separator: " ")
            messages.append((words[0], node, other, text))
            if messages.count > Self.messagesMax { messages.removeFirst() }
            return
        }
        events[node].append(line)
        if events[node].count > Self.eventsPerNode { events[node].removeFirst() }
    }

    private static func node(_ word: Substring) -> Int? {
        guard word.first == "n", let number = Int(word.dropFirst()), number > 0 else { return nil }
        return number - 1
    }

    var lines: [String] {
        var page: [String] = []
        for node in 0..<nodes {
            page.append("n\(node + 1), last:")
            page += events[node].map { "  " + $0 }
        }
        page.append("last messages:")
        let heads = (1...nodes).map { Self.pad("n\($0)", Self.columnWidth) }.joined()
        page.append(Self.pad("", 14) + heads)
        for message in messages { page.append(Self.draw(message, nodes)) }
        return page
    }

    /// An arrow from one column to another, and what goes along it.
    private static func draw(
        _ message: (time: Substring, from: Int, to: Int, text: String), _ nodes: Int
    ) -> String {
        var row = [Character](repeating: " ", count: nodes * columnWidth)
        for node in 0..<nodes { row[node * columnWidth] = "|" }
        let (from, to) = (message.from * columnWidth, message.to * columnWidth)
        for place in min(from, to)...max(from, to) { row[place] = "-" }
        row[from] = "o"
        row[to] = from < to ? ">" : "<"
        return pad(String(message.time), 14) + String(row) + message.text
    }

    private static func pad(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(0, width - text.count))
    }
}
