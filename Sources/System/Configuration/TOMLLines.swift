// SPDX-License-Identifier: GPL-2.0-or-later

/// Finds the line of each key in a text that is known to be TOML: the parser keeps no places for
/// those who use it. Total: a text that is no TOML gives some answer, too.
struct TOMLLines {
    /// `["node", "id"]` joined by a separator that no key has.
    private var lines: [[String]: Int] = [:]
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
        var depth = 0
        while let byte = peek() {
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "'"): skipString()
            case UInt8(ascii: "["), UInt8(ascii: "{"):
                depth += 1
                position += 1
            case UInt8(ascii: "]"), UInt8(ascii: "}"):
                depth -= 1
                position += 1
            case UInt8(ascii: "#"): skipLine()
            case UInt8(ascii: "\n"):
                if depth <= 0 { return }
                advance()
            default: position += 1
            }
        }
    }
}
