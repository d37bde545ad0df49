// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenTypes

/// A transaction as `kv txn` reads it: a line each, words separated by blanks; a word with blanks or
/// other bytes in it stands in double quotes, with \", \\, \n, \t and \xHH.
///
///     if                       # every compare must hold; without any, `then` is carried out
///     value KEY = VALUE        # = != < >
///     version KEY > N          # 0: there is no such key
///     create KEY = REVISION
///     mod KEY < REVISION
///     exists KEY
///     missing KEY
///     then
///     put KEY VALUE [lease=N]
///     get KEY
///     delete KEY
///     delete-prefix PREFIX
///     delete-range FROM TO
///     else
///     …
struct TransactionText {
    private enum Section { case compares, success, failure }

    struct Mistake: Error {
        var line: Int
        var text: String
    }

    private(set) var compares: [Compare] = []
    private(set) var success: [Operation] = []
    private(set) var failure: [Operation] = []
    var isEmpty: Bool { compares.isEmpty && success.isEmpty && failure.isEmpty }

    init(_ bytes: [UInt8]) throws(Mistake) {
        var section = Section.compares
        var number = 0
        for line in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
            number += 1
            let words: [[UInt8]]
            do { words = try Self.words(Array(line)) } catch {
                throw Mistake(line: number, text: error.text)
            }
            guard let first = words.first else { continue }
            let verb = String(decoding: first, as: UTF8.self)
            switch (verb, words.count) {
            case ("if", 1): section = .compares
            case ("then", 1): section = .success
            case ("else", 1): section = .failure
            default:
                let rest = Array(words.dropFirst())
                do throws(Wrong) {
                    switch section {
                    case .compares: compares.append(try Self.compare(verb, rest))
                    case .success: success.append(try Self.operation(verb, rest))
                    case .failure: failure.append(try Self.operation(verb, rest))
                    }
                } catch {
                    throw Mistake(line: number, text: error.text)
                }
            }
        }
    }

    private struct Wrong: Error { var text: String }

    private static func compare(_ verb: String, _ words: [[UInt8]]) throws(Wrong) -> Compare {
        switch (verb, words.count) {
        case ("exists", 1): return Compare(words[0], .equal, .exists(true))
        case ("missing", 1): return Compare(words[0], .equal, .exists(false))
        case ("value", 3), ("version", 3), ("create", 3), ("mod", 3): break
        default:
            throw Wrong(
                text: "a compare is 'value|version|create|mod KEY RELATION X', 'exists KEY' or "
                    + "'missing KEY'; operations stand behind 'then' and 'else'")
        }
        let relation: Compare.Relation
        switch String(decoding: words[1], as: UTF8.self) {
        case "=": relation = .equal
        case "!=": relation = .notEqual
        case "<": relation = .less
        case ">": relation = .greater
        default: throw Wrong(text: "a relation is =, !=, < or >")
        }
        if verb == "value" { return Compare(words[0], relation, .value(words[2])) }
        guard let number = UInt64(String(decoding: words[2], as: UTF8.self)) else {
            throw Wrong(text: "\(verb) is compared with a number")
        }
        switch verb {
        case "version": return Compare(words[0], relation, .version(number))
        case "create": return Compare(words[0], relation, .createRevision(Revision(number)))
        default: return Compare(words[0], relation, .modRevision(Revision(number)))
        }
    }

    private static func operation(_ verb: String, _ words: [[UInt8]]) throws(Wrong) -> Operation {
        switch (verb, words.count) {
        case ("put", 2): return .put(key: words[0], value: words[1])
        case ("put", 3):
            let text = String(decoding: words[2], as: UTF8.self)
            guard text.hasPrefix("lease="), let lease = UInt64(text.dropFirst(6)) else {
                throw Wrong(text: "behind the value there may be lease=N")
            }
            return .put(key: words[0], value: words[1], lease: LeaseID(lease))
        case ("get", 1): return .get(key: words[0])
        case ("delete", 1): return .delete(key: words[0])
        case ("delete-prefix", 1): return .deleteRange(KeyRange(prefix: words[0]))
        case ("delete-range", 2): return .deleteRange(KeyRange(from: words[0], to: words[1]))
        default:
            throw Wrong(
                text: "an operation is 'put KEY VALUE [lease=N]', 'get KEY', 'delete KEY', "
                    + "'delete-prefix PREFIX' or 'delete-range FROM TO'")
        }
    }

    /// Up to a '#' that begins a word.
    private static func words(_ line: [UInt8]) throws(Wrong) -> [[UInt8]] {
        var words: [[UInt8]] = []
        var rest = line[...]
        while true {
            rest = rest.drop { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\t") || $0 == 13 }
            guard let first = rest.first, first != UInt8(ascii: "#") else { return words }
            if first == UInt8(ascii: "\"") {
                rest.removeFirst()
                words.append(try quoted(&rest))
            } else {
                let word = rest.prefix { $0 > 32 }
                words.append(Array(word))
                rest = rest.dropFirst(word.count)
            }
        }
    }

    private static func quoted(_ rest: inout ArraySlice<UInt8>) throws(Wrong) -> [UInt8] {
        var word: [UInt8] = []
        while let byte = rest.popFirst() {
            guard byte != UInt8(ascii: "\"") else { return word }
            guard byte == UInt8(ascii: "\\") else {
                word.append(byte)
                continue
            }
            switch rest.popFirst() {
            case UInt8(ascii: "n"): word.append(10)
            case UInt8(ascii: "t"): word.append(9)
            case UInt8(ascii: "\\"): word.append(UInt8(ascii: "\\"))
            case UInt8(ascii: "\""): word.append(UInt8(ascii: "\""))
            case UInt8(ascii: "x"):
                let digits = String(decoding: rest.prefix(2), as: UTF8.self)
                guard let bytes = Hex.decode(digits), bytes.count == 1 else {
                    throw Wrong(text: "\\x has two hexadecimal digits behind it")
                }
                word += bytes
                rest = rest.dropFirst(2)
            default: throw Wrong(text: "behind a \\ there may be \", \\, n, t or xHH")
            }
        }
        throw Wrong(text: "a quoted word does not end")
    }
}
