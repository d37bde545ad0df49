// SPDX-License-Identifier: GPL-2.0-or-later

import TOMLKit

/// One TOML text, read against the catalogue. Total: any bytes give values or errors.
package struct TOMLFile: Sendable {
    package struct Value: Sendable, Equatable {
        package var setting: Setting
        package var value: SettingValue
        package var line: Int
    }

    package private(set) var values: [Value] = []
    package private(set) var problems: [ConfigurationError] = []
    private let path: String
    private let lines: TOMLLines

    /// Largest file, in bytes.
    package static let bytesMax = 65_536
    /// Most dots outside quotes on a line: the parser follows each level of `a.b.c` by recursion.
    private static let lineDotsMax = 64

    /// - Parameter path: for errors only.
    package init(_ bytes: [UInt8], path: String) {
        self.path = path
        guard bytes.count <= Self.bytesMax else {
            lines = TOMLLines("")
            problem(.unreadable, line: 0, "the file is over \(Self.bytesMax) bytes")
            return
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            lines = TOMLLines("")
            problem(.syntax, line: Self.lineOfBadUTF8(bytes), "the text is not UTF-8")
            return
        }
        lines = TOMLLines(text)
        if let line = Self.lineTheParserCannotTake(text) {
            problem(
                .syntax, line: line,
                "this is no TOML: a control character, a NUL, a table without a name, or a key of "
                    + "very many parts")
            return
        }
        if let line = lines.unsoundLine {
            problem(
                .syntax, line: line,
                "this is no TOML: brackets that do not match, or a key or value that is missing")
            return
        }
        do {
            read(try TOMLTable(string: text))
        } catch let error as TOMLParseError {
            problem(
                .syntax, line: max(1, error.source.begin.line),
                "this is no TOML: \(Self.oneLine(error.description))")
        } catch {
            problem(.syntax, line: 1, "this is no TOML: \(error)")
        }
    }

    // MARK: - What the parser must not see

    /// It takes C strings, in which a NUL ends the text; it recurses into dotted keys; and it
    /// asserts that a key follows a header's '['. What it takes for white space beyond ASCII is
    /// refused, so that lines are what they seem here. All of this is no TOML, or no setting.
    private static func lineTheParserCannotTake(_ text: String) -> Int? {
        for (number, line) in text.utf8.split(
            separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false
        ).enumerated() where !isTakeable(line) { return number + 1 }
        return nil
    }

    private static func isTakeable(_ line: Substring.UTF8View) -> Bool {
        let text = String(decoding: line, as: UTF8.self)
        for scalar in text.unicodeScalars {
            if scalar.value < 0x20, scalar != "\t", scalar != "\r" { return false }
            if !scalar.isASCII, scalar.properties.isWhitespace || scalar.value == 0xfeff {
                return false
            }
        }
        // A return belongs to the end of the line.
        if line.dropLast().contains(UInt8(ascii: "\r")) { return false }
        if text.contains("\\u0000") || text.contains("\\U00000000") { return false }
        let blanks = " \t".utf8
        var rest = line.drop { blanks.contains($0) }
        if rest.first == UInt8(ascii: "[") {
            rest = rest.dropFirst()
            if rest.first == UInt8(ascii: "[") { rest = rest.dropFirst() }
            rest = rest.drop { blanks.contains($0) }
            guard let next = rest.first, TOMLLines.isKeyStart(next) else { return false }
        }
        return dots(in: line) <= lineDotsMax
    }

    /// Outside quotes and comments.
    private static func dots(in line: Substring.UTF8View) -> Int {
        var dots = 0
        var quote: UInt8?
        for byte in line {
            if let open = quote {
                if byte == open { quote = nil }
            } else if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'") {
                quote = byte
            } else if byte == UInt8(ascii: "#") {
                break
            } else if byte == UInt8(ascii: ".") {
                dots += 1
            }
        }
        return dots
    }

    private static func lineOfBadUTF8(_ bytes: [UInt8]) -> Int {
        let lines = bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        let bad = lines.firstIndex { String(validating: $0, as: UTF8.self) == nil }
        return (bad ?? 0) + 1
    }

    private static func oneLine(_ text: String) -> String {
        String(String.UnicodeScalarView(text.unicodeScalars.map { $0.value < 0x20 ? " " : $0 }))
    }

    // MARK: - Against the catalogue

    private mutating func read(_ root: TOMLTable) {
        for name in root.keys {
            guard SettingsCatalogue.tables.contains(name) else {
                unknown([name])
                continue
            }
            guard let table = root[name]?.table else {
                problem(
                    .wrongType, line: lines.line(of: [name]), setting: name,
                    "'\(name)' is a table: write [\(name)] on a line of its own")
                continue
            }
            for key in table.keys {
                guard let setting = SettingsCatalogue.setting(table: name, key: key),
                    let item = table[key]
                else {
                    unknown([name, key])
                    continue
                }
                read(setting, item)
            }
        }
        // The parser gives keys in the order of their letters, people read files from the top.
        values.sort { $0.line < $1.line }
        problems.sort { Self.line(of: $0) < Self.line(of: $1) }
    }

    private static func line(of problem: ConfigurationError) -> Int {
        if case .file(_, let line)? = problem.origin { return line }
        return 0
    }

    private mutating func read(_ setting: Setting, _ item: any TOMLValueConvertible) {
        let line = lines.line(of: [setting.table, setting.key])
        let origin = Origin.file(path: path, line: line)
        let value: SettingValue?
        switch setting.kind {
        case .integer: value = item.type == .int ? item.int.map { .integer($0) } : nil
        case .boolean: value = item.type == .bool ? item.bool.map { .boolean($0) } : nil
        case .word, .text: value = item.type == .string ? item.string.map { .text($0) } : nil
        case .list: value = Self.list(item).map { .list($0) }
        }
        guard let value else {
            return problem(
                .wrongType, line: line, setting: setting.path,
                "\(setting.path) must be \(setting.allowed), not \(Self.name(of: item.type))")
        }
        if let error = setting.complaint(about: value, origin) {
            problems.append(error)
        } else {
            values.append(Value(setting: setting, value: value, line: line))
        }
    }

    private static func list(_ item: any TOMLValueConvertible) -> [String]? {
        if item.type == .string { return item.string.map { [$0] } }
        guard item.type == .array, let array = item.array else { return nil }
        var texts: [String] = []
        for index in 0..<array.count {
            guard array[index].type == .string, let text = array[index].string else { return nil }
            texts.append(text)
        }
        return texts
    }

    private static func name(of type: TOMLType) -> String {
        switch type {
        case .table: "a table"
        case .array: "a list (of other things than texts)"
        case .string: "a text in quotes"
        case .int: "a whole number"
        case .double: "a number with a fraction"
        case .bool: "true or false"
        case .date, .time, .dateTime: "a date or time"
        }
    }

    private mutating func unknown(_ path: [String]) {
        let name = path.joined(separator: ".")
        var message = "there is no setting '\(Self.oneLine(name))'"
        if name.lowercased().contains("cookie") || name.lowercased().contains("secret") {
            message +=
                ": secrets stand in no TOML file. The cookie has a file of its own, "
                + "credentials/cookie, which `aspen-cli setup` writes"
        } else if let meant = Self.meant(path) {
            message += ": did you mean '\(meant)'?"
        } else if path.count == 1 {
            message += "; the tables are " + SettingsCatalogue.tables.joined(separator: ", ")
        } else {
            let keys = SettingsCatalogue.all.filter { $0.table == path[0] }.map(\.key)
            message += "; [\(path[0])] has " + keys.joined(separator: ", ")
        }
        problem(.unknownKey, line: lines.line(of: path), setting: name, message)
    }

    private static func meant(_ path: [String]) -> String? {
        let all = SettingsCatalogue.all
        if path.count == 1 {
            if let table = Suggestion.nearest(to: path[0], among: SettingsCatalogue.tables) {
                return "[\(table)]"
            }
            return Suggestion.nearest(to: path[0], among: all.map(\.name)).flatMap { name in
                all.first { $0.name == name }?.path
            }
        }
        let keys = all.filter { $0.table == path[0] }.map(\.key)
        if let key = Suggestion.nearest(to: path[1], among: keys) { return "\(path[0]).\(key)" }
        // The right key in the wrong table, or spelt like the flag.
        return all.first { Suggestion.distance(Array($0.key.utf8), Array(path[1].utf8)) <= 1 }?.path
            ?? all.first { Suggestion.distance(Array($0.name.utf8), Array(path[1].utf8)) <= 1 }?
            .path
    }

    private mutating func problem(
        _ kind: ConfigurationError.Kind, line: Int, setting: String? = nil, _ message: String
    ) {
        problems.append(
            ConfigurationError(kind, .file(path: path, line: line), path: setting, message))
    }
}
