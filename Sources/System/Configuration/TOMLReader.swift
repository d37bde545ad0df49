// SPDX-License-Identifier: GPL-2.0-or-later

/// Reads TOML 1.0 (https://toml.io/en/v1.0.0), strictly, keeping the line of everything. Total: any
/// bytes give a table or an error; depth is bounded, and time is linear in the size.
///
/// Two things that TOML has are refused, since no setting needs them: arrays of tables (`[[x]]`)
/// and the character NUL, which ends the texts of the system's calls.
struct TOMLReader {
    /// Most tables and arrays inside each other: a value is read, and freed, by recursion.
    static let depthMax = 32

    let bytes: [UInt8]
    var position = 0
    private(set) var line = 1

    /// - Parameter bytes: UTF-8. The caller bounds their number.
    static func read(_ bytes: [UInt8]) throws(TOMLError) -> TOMLTable {
        var reader = TOMLReader(bytes)
        return try reader.document()
    }

    private init(_ bytes: [UInt8]) { self.bytes = bytes }

    private mutating func document() throws(TOMLError) -> TOMLTable {
        let root = TOMLTable(.header)
        var table = root
        var depth = 0
        while true {
            try skipBlanks(andLines: true)
            guard let byte = peek() else { return root }
            let start = line
            if byte == UInt8(ascii: "[") {
                let path = try header()
                depth = path.count
                table = try root.open(path, line: start)
            } else {
                try assignment(in: table, depth: depth)
            }
            try endLine()
        }
    }

    private mutating func header() throws(TOMLError) -> [String] {
        position += 1
        let isArray = take("[")
        let path = try key(depth: 0)
        guard take("]"), !isArray || take("]") else {
            throw unexpected("']' must follow the table's name")
        }
        guard !isArray else {
            let name = path.joined(separator: ".")
            throw TOMLError(
                kind: .unsupported, line: line,
                message: "no setting is a list of tables: write [\(name)], not [[\(name)]]")
        }
        return path
    }

    /// `key = value`, the table itself being `depth` tables deep.
    private mutating func assignment(in table: TOMLTable, depth: Int) throws(TOMLError) {
        let start = line
        let path = try key(depth: depth)
        guard take("=") else { throw unexpected("'=' must follow a key") }
        try skipBlanks()
        try table.set(path, try value(depth: depth + path.count), line: start)
    }

    /// A key with the blanks around it.
    private mutating func key(depth: Int) throws(TOMLError) -> [String] {
        var path: [String] = []
        repeat {
            try skipBlanks()
            guard depth + path.count < Self.depthMax else { throw tooDeep() }
            path.append(try keyPart())
            try skipBlanks()
        } while take(".")
        return path
    }

    private mutating func keyPart() throws(TOMLError) -> String {
        if let byte = peek(), byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'") {
            return try shortText()
        }
        let word = word { $0 == UInt8(ascii: "_") || $0 == UInt8(ascii: "-") }
        guard !word.isEmpty else { throw unexpected("a key is missing") }
        return String(decoding: word, as: UTF8.self)
    }

    // MARK: - Values

    /// - Parameter depth: of the value; that of a table in the root is 1.
    private mutating func value(depth: Int) throws(TOMLError) -> TOMLValue {
        switch peek() {
        case UInt8(ascii: "\""), UInt8(ascii: "'"): return .text(try text())
        case UInt8(ascii: "["):
            guard depth < Self.depthMax else { throw tooDeep() }
            return .array(try array(depth: depth))
        case UInt8(ascii: "{"):
            guard depth < Self.depthMax else { throw tooDeep() }
            return .table(try inlineTable(depth: depth))
        default: break
        }
        let start = position
        var word = word { "+-_.:".utf8.contains($0) }
        guard !word.isEmpty else { throw unexpected("a value is missing") }
        // A blank may part a date and a time.
        if TOMLWord.isDate(word), peek() == UInt8(ascii: " "), let next = peek(1),
            TOMLWord.isDigit(next)
        {
            position += 1
            _ = self.word { "+-_.:".utf8.contains($0) }
            word = bytes[start..<position]
        }
        switch TOMLWord.value(word) {
        case .success(let value): return value
        case .failure(let refusal):
            let name = String(decoding: word.prefix(64), as: UTF8.self)
            throw TOMLError(line: line, message: "'\(name)' \(refusal.message)")
        }
    }

    private mutating func array(depth: Int) throws(TOMLError) -> [TOMLItem] {
        let start = line
        var items: [TOMLItem] = []
        position += 1
        while true {
            try skipBlanks(andLines: true)
            if take("]") { return items }
            guard peek() != nil else { throw endless("list", start) }
            let line = line
            items.append(TOMLItem(value: try value(depth: depth + 1), line: line))
            try skipBlanks(andLines: true)
            if take("]") { return items }
            guard peek() != nil else { throw endless("list", start) }
            guard take(",") else {
                throw unexpected("',' or ']' must follow a value in the list of line \(start)")
            }
        }
    }

    /// On one line, without a comma at the end.
    private mutating func inlineTable(depth: Int) throws(TOMLError) -> TOMLTable {
        let table = TOMLTable(.inline)
        position += 1
        try skipBlanks()
        if take("}") { return table }
        while true {
            try assignment(in: table, depth: depth)
            try skipBlanks()
            if take("}") { return table }
            guard take(",") else {
                throw unexpected("',' or '}' must follow a value between braces, on the same line")
            }
        }
    }

    // MARK: - Bytes

    func peek(_ ahead: Int = 0) -> UInt8? {
        position + ahead < bytes.count ? bytes[position + ahead] : nil
    }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard peek() == UInt8(ascii: character) else { return false }
        position += 1
        return true
    }

    /// Letters and digits of ASCII, and what else belongs to it.
    private mutating func word(_ belongs: (UInt8) -> Bool) -> ArraySlice<UInt8> {
        let start = position
        while let byte = peek(), TOMLWord.isLetterOrDigit(byte) || belongs(byte) { position += 1 }
        return bytes[start..<position]
    }

    /// - Returns: whether a line ended here.
    mutating func takeLineEnd() -> Bool {
        switch (peek(), peek(1)) {
        case (UInt8(ascii: "\n"), _): position += 1
        case (UInt8(ascii: "\r"), UInt8(ascii: "\n")): position += 2
        default: return false
        }
        line += 1
        return true
    }

    /// - Parameter andLines: over comments and the ends of lines, too.
    mutating func skipBlanks(andLines: Bool = false) throws(TOMLError) {
        while let byte = peek() {
            if byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") {
                position += 1
            } else if andLines, byte == UInt8(ascii: "#") {
                try skipComment()
            } else if !andLines || !takeLineEnd() {
                return
            }
        }
    }

    private mutating func skipComment() throws(TOMLError) {
        while let byte = peek() {
            if byte == UInt8(ascii: "\n") { return }
            if byte == UInt8(ascii: "\r"), peek(1) == UInt8(ascii: "\n") { return }
            guard Self.isAllowed(byte) else {
                throw unexpected("a comment has no control characters")
            }
            position += 1
        }
    }

    private mutating func endLine() throws(TOMLError) {
        try skipBlanks()
        if peek() == UInt8(ascii: "#") { try skipComment() }
        guard peek() == nil || takeLineEnd() else { throw unexpected("the line must end here") }
    }

    /// In comments and texts.
    static func isAllowed(_ byte: UInt8) -> Bool {
        (byte >= 0x20 || byte == UInt8(ascii: "\t")) && byte != 0x7f
    }

    // MARK: - Errors

    /// `rule`, and what stands here instead.
    func unexpected(_ rule: String) -> TOMLError {
        let found: String
        switch peek() {
        case nil: found = "the end of the file"
        case 0: found = "a NUL"
        case UInt8(ascii: "\n"): found = "the end of the line"
        case UInt8(ascii: "\r") where peek(1) == UInt8(ascii: "\n"): found = "the end of the line"
        case let byte? where byte > 0x20 && byte < 0x7f:
            found = "'\(Unicode.Scalar(byte))'"
        default:
            let text = String(decoding: bytes[position...].prefix(4), as: UTF8.self)
            let number = text.unicodeScalars.first?.value ?? 0
            let digits = String(number, radix: 16, uppercase: true)
            found = "U+" + String(repeating: "0", count: max(0, 4 - digits.count)) + digits
        }
        return TOMLError(line: line, message: "\(rule); here is \(found)")
    }

    /// - Parameter start: the line on which it begins, which is where to look.
    func endless(_ what: String, _ start: Int) -> TOMLError {
        TOMLError(line: start, message: "the \(what) that begins here does not end")
    }

    private func tooDeep() -> TOMLError {
        TOMLError(
            line: line,
            message: "more than \(Self.depthMax) tables and lists stand inside each other")
    }
}
