// SPDX-License-Identifier: GPL-2.0-or-later

/// Finds the line of each key in a text that is known to be TOML: the parser keeps no places for
/// those who use it. Total: a text that is no TOML gives some answer, too.
struct TOMLLines {
    /// `["node", "id"]` joined by a separator that no key has.
    private var lines: [[String]: Int] = [:]
    /// The first line whose structure is no TOML: brackets that do not match, a value that is
    /// missing. The parser asserts that such things do not come (toml++ 3.4).
    private(set) var unsoundLine: Int?
    private let bytes: [UInt8]
    private var position = 0
    private var line = 1

    init(_ text: String) {
        bytes = Array(text.utf8)
        var table: [String] = []
        while skipBlank() {
            let start = (line, position)
            if peek() == UInt8(ascii: "[") {
                while peek() == UInt8(ascii: "[") { position += 1 }
                table = readKey()
                note(table, start.0)
                skipLine()
            } else {
                if let byte = peek(), !Self.isKeyStart(byte) { blame() }
                let key = table + readKey()
                note(key, start.0)
                skipValue()
            }
            // Whatever this was, go on behind it.
            if position == start.1 { position += 1 }
        }
    }

    /// The line of that key, or of the nearest table that it stands in; 1 when there is none.
    func line(of path: [String]) -> Int {
        var path = path
        while !path.isEmpty {
            if let line = lines[path] { return line }
            path.removeLast()
        }
        return 1
    }

    private mutating func note(_ path: [String], _ line: Int) {
        if lines[path] == nil { lines[path] = line }
    }

    private func peek(_ ahead: Int = 0) -> UInt8? {
        position + ahead < bytes.count ? bytes[position + ahead] : nil
    }

    private mutating func advance() {
        if peek() == UInt8(ascii: "\n") { line += 1 }
        position += 1
    }

    /// - Returns: false at the end.
    private mutating func skipBlank() -> Bool {
        while let byte = peek() {
            switch byte {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\r"), UInt8(ascii: "\n"):
                advance()
            case UInt8(ascii: "#"): skipLine()
            default: return true
            }
        }
        return false
    }

    private mutating func skipLine() {
        while let byte = peek(), byte != UInt8(ascii: "\n") { position += 1 }
    }

    private mutating func readKey() -> [String] {
        var parts: [String] = []
        while let byte = peek() {
            switch byte {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "."): position += 1
            case UInt8(ascii: "\""), UInt8(ascii: "'"):
                let start = position + 1
                skipString()
                parts.append(text(start..<max(start, position - 1)))
            case UInt8(ascii: "="), UInt8(ascii: "]"), UInt8(ascii: "\n"), UInt8(ascii: "#"):
                return parts
            default:
                let start = position
                while let byte = peek(), !" \t.=]\n\"'#".utf8.contains(byte) { position += 1 }
                parts.append(text(start..<position))
            }
        }
        return parts
    }

    private func text(_ range: Range<Int>) -> String {
        String(decoding: bytes[range.clamped(to: 0..<bytes.count)], as: UTF8.self)
    }

    /// One string, with its quotes; three of them make one that spans lines.
    private mutating func skipString() {
        guard let quote = peek() else { return }
        let isLong = peek(1) == quote && peek(2) == quote
        position += isLong ? 3 : 1
        while let byte = peek() {
            if byte == UInt8(ascii: "\\"), quote == UInt8(ascii: "\"") {
                position += 1
                if peek() != nil { advance() }
            } else if byte == quote, !isLong || (peek(1) == quote && peek(2) == quote) {
                position += isLong ? 3 : 1
                // Up to two quotes may stand right before the closing three.
                while isLong, peek() == quote { position += 1 }
                return
            } else if byte == UInt8(ascii: "\n"), !isLong {
                return
            } else {
                advance()
            }
        }
    }

    /// Up to the end of the line on which the value ends.
    private mutating func skipValue() {
        if peek() == UInt8(ascii: "=") { position += 1 } else { blame() }
        var open: [UInt8] = []
        var expected = Expected.value
        while let byte = peek() {
            switch byte {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\r"): position += 1
            case UInt8(ascii: "#"): skipLine()
            case UInt8(ascii: "\n"):
                if open.isEmpty {
                    if expected != .more { blame() }
                    return
                }
                advance()
            default: step(byte, &open, &expected)
            }
        }
        if expected != .more || !open.isEmpty { blame() }
    }

    private enum Expected { case value, key, equals, more }

    /// One token inside a value.
    private mutating func step(_ byte: UInt8, _ open: inout [UInt8], _ expected: inout Expected) {
        let isQuote = byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'")
        switch (byte, expected) {
        case (_, .value) where isQuote:
            skipString()
            expected = .more
            return
        case (_, .key) where isQuote || Self.isKeyStart(byte):
            _ = readKey()
            expected = .equals
            return
        case (UInt8(ascii: "="), .equals): expected = .value
        case (UInt8(ascii: "["), .value): open.append(byte)
        case (UInt8(ascii: "{"), .value):
            open.append(byte)
            expected = .key
        case (UInt8(ascii: "]"), .value), (UInt8(ascii: "]"), .more):
            if open.popLast() != UInt8(ascii: "[") { blame() }
            expected = .more
        case (UInt8(ascii: "}"), .key), (UInt8(ascii: "}"), .more):
            if open.popLast() != UInt8(ascii: "{") { blame() }
            expected = .more
        case (UInt8(ascii: ","), .more) where !open.isEmpty:
            expected = open.last == UInt8(ascii: "{") ? .key : .value
        case (_, .value):
            let start = position
            while let next = peek(), !" \t\r\n,]}#".utf8.contains(next) { position += 1 }
            if !Self.isPlain(text(start..<position)) { blame() }
            expected = .more
            if position > start { return }
        default: blame()
        }
        position += 1
    }

    /// A truth value or a number. Dates and times are none: no setting has one, and the parser
    /// asserts on some.
    private static func isPlain(_ word: String) -> Bool {
        if word == "true" || word == "false" { return true }
        let digits = UInt8(ascii: "0")...UInt8(ascii: "9")
        var rest = Array(word.utf8)[...]
        if let first = rest.first, "+-".utf8.contains(first) { rest.removeFirst() }
        let parts = rest.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
        if parts.count <= 2 {
            let areDigits = parts.allSatisfy { part in
                part.first.map(digits.contains) == true && part.last.map(digits.contains) == true
                    && part.allSatisfy { digits.contains($0) || $0 == UInt8(ascii: "_") }
            }
            if areDigits { return true }
        }
        guard word.hasPrefix("0x") || word.hasPrefix("0o") || word.hasPrefix("0b") else {
            return false
        }
        let body = word.dropFirst(2)
        return !body.isEmpty && body.utf8.allSatisfy { "0123456789abcdefABCDEF".utf8.contains($0) }
    }

    static func isKeyStart(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        default: "_-\"'".utf8.contains(byte)
        }
    }

    private mutating func blame() {
        if unsoundLine == nil { unsoundLine = line }
    }
}
