// SPDX-License-Identifier: GPL-2.0-or-later

/// Why a text is refused, and where.
struct TOMLError: Error, Equatable {
    enum Kind: Equatable {
        /// It is no TOML 1.0, or goes beyond a limit of `TOMLReader`.
        case syntax
        /// It is TOML that no setting can be written in.
        case unsupported
    }

    var kind = Kind.syntax
    /// From 1.
    var line: Int
    var message: String
}

/// A value. Numbers with a fraction and dates are checked and then forgotten: no setting has one.
enum TOMLValue {
    case text(String)
    case integer(Int)
    case boolean(Bool)
    case float
    case date
    case array([TOMLItem])
    case table(TOMLTable)
}

struct TOMLItem {
    var value: TOMLValue
    /// Of its key, or of the value itself in an array; for a table the line that first named it.
    var line: Int
}

/// The keys of a table, in the order of the text. It keeps the rules of TOML 1.0 on what may be
/// defined where, and once only.
final class TOMLTable {
    enum Definition {
        /// By the header of a table inside it; its own header may follow.
        case implicit
        case header
        /// By a dotted key: further dotted keys may add to it, no header.
        case dotted
        /// `{ … }`: nothing may be added to it.
        case inline
    }

    private(set) var definition: Definition
    private(set) var keys: [String] = []
    /// By the bytes of the key: Swift holds texts for equal that TOML keeps apart.
    private var items: [[UInt8]: TOMLItem] = [:]

    init(_ definition: Definition) { self.definition = definition }

    subscript(key: String) -> TOMLItem? { items[Array(key.utf8)] }

    private func insert(_ item: TOMLItem, at key: String) {
        keys.append(key)
        items[Array(key.utf8)] = item
    }

    private func makeTable(_ key: String, _ definition: Definition, _ line: Int) -> TOMLTable {
        let table = TOMLTable(definition)
        insert(TOMLItem(value: .table(table), line: line), at: key)
        return table
    }

    /// The table that `[path]` on that line opens; `self` is the root.
    func open(_ path: [String], line: Int) throws(TOMLError) -> TOMLTable {
        var table = self
        for key in path.dropLast() {
            guard let item = table[key] else {
                table = table.makeTable(key, .implicit, line)
                continue
            }
            guard case .table(let inner) = item.value, inner.definition != .inline else {
                throw Self.conflict(path, line, "'\(key)' is a value", item.line)
            }
            table = inner
        }
        guard let last = path.last else { return table }
        guard let item = table[last] else { return table.makeTable(last, .header, line) }
        guard case .table(let inner) = item.value, inner.definition == .implicit else {
            throw Self.conflict(path, line, "it is defined already", item.line)
        }
        inner.definition = .header
        return inner
    }

    /// Sets `path = value`; `self` is the table that is open.
    func set(_ path: [String], _ value: TOMLValue, line: Int) throws(TOMLError) {
        var table = self
        for key in path.dropLast() {
            guard let item = table[key] else {
                table = table.makeTable(key, .dotted, line)
                continue
            }
            guard case .table(let inner) = item.value else {
                throw Self.conflict(path, line, "'\(key)' is a value", item.line)
            }
            guard inner.definition == .dotted || inner.definition == .implicit else {
                throw Self.conflict(path, line, "the table '\(key)' is complete", item.line)
            }
            inner.definition = .dotted
            table = inner
        }
        guard let last = path.last else { return }
        if let item = table[last] {
            throw Self.conflict(path, line, "it is set already", item.line)
        }
        table.insert(TOMLItem(value: value, line: line), at: last)
    }

    private static func conflict(
        _ path: [String], _ line: Int, _ what: String, _ first: Int
    ) -> TOMLError {
        let name = path.joined(separator: ".")
        return TOMLError(
            line: line, message: "'\(name)' cannot be set here: \(what), on line \(first)")
    }
}
