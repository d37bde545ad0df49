// SPDX-License-Identifier: GPL-2.0-or-later

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

    /// Largest file, in bytes.
    package static let bytesMax = 65_536

    /// - Parameter path: for errors only.
    package init(_ bytes: [UInt8], path: String) {
        self.path = path
        guard bytes.count <= Self.bytesMax else {
            problem(.unreadable, line: 0, "the file is over \(Self.bytesMax) bytes")
            return
        }
        guard String(validating: bytes, as: UTF8.self) != nil else {
            problem(.syntax, line: Self.lineOfBadUTF8(bytes), "the text is not UTF-8")
            return
        }
        do throws(TOMLError) {
            read(try TOMLReader.read(bytes))
        } catch {
            let message = Self.oneLine(error.message)
            switch error.kind {
            case .syntax: problem(.syntax, line: error.line, "this is no TOML: \(message)")
            case .unsupported: problem(.wrongType, line: error.line, message)
            }
        }
    }

    private static func lineOfBadUTF8(_ bytes: [UInt8]) -> Int {
        let lines = bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        let bad = lines.firstIndex { String(validating: $0, as: UTF8.self) == nil }
        return (bad ?? 0) + 1
    }

    /// For a terminal and a log of lines.
    private static func oneLine(_ text: String) -> String {
        String(
            String.UnicodeScalarView(
                text.unicodeScalars.map {
                    switch $0.properties.generalCategory {
                    case .control, .format, .lineSeparator, .paragraphSeparator: " "
                    default: $0
                    }
                }))
    }

    // MARK: - Against the catalogue

    private mutating func read(_ root: TOMLTable) {
        for name in root.keys {
            guard let item = root[name] else { continue }
            guard SettingsCatalogue.tables.contains(name) else {
                unknown([name], line: item.line)
                continue
            }
            guard case .table(let table) = item.value else {
                problem(
                    .wrongType, line: item.line, setting: name,
                    "'\(name)' is a table: write [\(name)] on a line of its own")
                continue
            }
            for key in table.keys {
                guard let item = table[key] else { continue }
                if let setting = SettingsCatalogue.setting(table: name, key: key) {
                    read(setting, item)
                } else {
                    unknown([name, key], line: item.line)
                }
            }
        }
        // A table may be named in several places; people read files from the top.
        values.sort { $0.line < $1.line }
        problems.sort { Self.line(of: $0) < Self.line(of: $1) }
    }

    private static func line(of problem: ConfigurationError) -> Int {
        if case .file(_, let line)? = problem.origin { return line }
        return 0
    }

    private mutating func read(_ setting: Setting, _ item: TOMLItem) {
        let value: SettingValue?
        switch (setting.kind, item.value) {
        case (.integer, .integer(let number)): value = .integer(number)
        case (.boolean, .boolean(let truth)), (.notYet, .boolean(let truth)):
            value = .boolean(truth)
        case (.word, .text(let text)), (.text, .text(let text)): value = .text(text)
        case (.list, .text(let text)): value = .list([text])
        case (.list, .array(let items)): value = Self.list(items).map { .list($0) }
        default: value = nil
        }
        guard let value else {
            return problem(
                .wrongType, line: item.line, setting: setting.path,
                "\(setting.path) must be \(setting.allowed), not \(Self.name(of: item.value))")
        }
        if let error = setting.complaint(
            about: value, .file(path: path, line: item.line))
        {
            problems.append(error)
        } else {
            values.append(Value(setting: setting, value: value, line: item.line))
        }
    }

    private static func list(_ items: [TOMLItem]) -> [String]? {
        var texts: [String] = []
        for item in items {
            guard case .text(let text) = item.value else { return nil }
            texts.append(text)
        }
        return texts
    }

    private static func name(of value: TOMLValue) -> String {
        switch value {
        case .table: "a table"
        case .array: "a list (of other things than texts)"
        case .text: "a text in quotes"
        case .integer: "a whole number"
        case .boolean: "true or false"
        case .float: "a number with a fraction, which no setting is"
        case .date: "a date or time, which no setting is"
        }
    }

    private mutating func unknown(_ path: [String], line: Int) {
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
        problem(.unknownKey, line: line, setting: name, message)
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
