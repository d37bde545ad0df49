// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// Keys that a capability is about: one key, or all that begin with some bytes.
package struct KeyPattern: Hashable, Sendable {
    package let bytes: [UInt8]
    package let isPrefix: Bool

    /// One key, of 1 to `Limits.keyBytesMax` bytes; nil otherwise.
    package static func exactly(_ key: [UInt8]) -> KeyPattern? {
        guard !key.isEmpty, key.count <= Limits.keyBytesMax else { return nil }
        return KeyPattern(bytes: key, isPrefix: false)
    }

    /// Every key that begins with `prefix`, of at most `Limits.keyBytesMax` bytes; nil otherwise.
    package static func all(beginningWith prefix: [UInt8]) -> KeyPattern? {
        guard prefix.count <= Limits.keyBytesMax else { return nil }
        return KeyPattern(bytes: prefix, isPrefix: true)
    }

    private init(bytes: [UInt8], isPrefix: Bool) {
        self.bytes = bytes
        self.isPrefix = isPrefix
    }

    package func matches(_ key: [UInt8]) -> Bool {
        isPrefix ? key.starts(with: bytes) : key == bytes
    }

    /// The first key behind all that match; nil when there is none.
    var end: [UInt8]? {
        guard isPrefix else { return bytes + [0] }
        var end = bytes
        while let last = end.last {
            if last < 255 {
                end[end.count - 1] = last + 1
                return end
            }
            end.removeLast()
        }
        return nil
    }
}

/// One thing that the holder of a token may do.
package enum Capability: Hashable, Sendable {
    /// Status, health, members, metrics, the ticket.
    case clusterRead
    /// Everything that an administrator may do to the cluster, `clusterRead` included.
    case clusterAdmin
    case readKeys(KeyPattern)
    case writeKeys(KeyPattern)
}

// MARK: - Text

extension Capability: CustomStringConvertible {
    private static let readWords = "kv:read:"
    private static let writeWords = "kv:write:"
    /// Services to come; their words are taken.
    package static let reservedWords = ["blob", "forge", "sql", "jobs", "dns", "git"]

    /// `cluster:read`, `cluster:admin`, `kv:read:KEY`, `kv:write:PREFIX*`. In keys, bytes other than
    /// printable ASCII, and `%` and `*` themselves, are written as `%` and two hexadecimal digits.
    package var description: String {
        switch self {
        case .clusterRead: "cluster:read"
        case .clusterAdmin: "cluster:admin"
        case .readKeys(let pattern): Self.readWords + pattern.description
        case .writeKeys(let pattern): Self.writeWords + pattern.description
        }
    }

    /// - Throws: `invalidArgument`, with a text for people.
    package init(parsing text: String) throws(AspenError) {
        switch text {
        case "cluster:read": self = .clusterRead
        case "cluster:admin": self = .clusterAdmin
        default:
            if text.hasPrefix(Self.readWords) {
                self = .readKeys(
                    try KeyPattern(parsing: text.utf8.dropFirst(Self.readWords.utf8.count)))
            } else if text.hasPrefix(Self.writeWords) {
                self = .writeKeys(
                    try KeyPattern(parsing: text.utf8.dropFirst(Self.writeWords.utf8.count)))
            } else {
                throw Self.unknown(text)
            }
        }
    }

    private static func unknown(_ text: String) -> AspenError {
        let word = String(text.prefix { $0 != ":" })
        if reservedWords.contains(word) {
            return AspenError(
                .invalidArgument,
                "capabilities for '\(word)' are reserved: this version has none yet")
        }
        return AspenError(
            .invalidArgument,
            "'\(text)' is no capability: there are kv:read:KEY, kv:read:PREFIX*, kv:write:KEY, "
                + "kv:write:PREFIX*, cluster:read and cluster:admin")
    }
}

extension KeyPattern: CustomStringConvertible {
    package var description: String { Self.escape(bytes) + (isPrefix ? "*" : "") }

    package static func escape(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789ABCDEF".utf8)
        var text: [UInt8] = []
        for byte in bytes {
            if byte > 0x20, byte < 0x7f, byte != UInt8(ascii: "%"), byte != UInt8(ascii: "*") {
                text.append(byte)
            } else {
                text += [UInt8(ascii: "%"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
            }
        }
        return String(decoding: text, as: UTF8.self)
    }

    fileprivate init(parsing text: Substring.UTF8View) throws(AspenError) {
        var bytes: [UInt8] = []
        var rest = text
        var isPrefix = false
        while let byte = rest.popFirst() {
            if byte == UInt8(ascii: "*") {
                guard rest.isEmpty else {
                    throw AspenError(
                        .invalidArgument,
                        "'*' stands for all keys that begin so, and therefore at the end only; "
                            + "write %2A for the character itself")
                }
                isPrefix = true
            } else if byte == UInt8(ascii: "%") {
                guard let high = rest.popFirst().flatMap(Self.digit),
                    let low = rest.popFirst().flatMap(Self.digit)
                else {
                    throw AspenError(
                        .invalidArgument,
                        "'%' is followed by two hexadecimal digits; write %25 for itself")
                }
                bytes.append(high << 4 | low)
            } else {
                bytes.append(byte)
            }
        }
        guard let pattern = isPrefix ? Self.all(beginningWith: bytes) : Self.exactly(bytes) else {
            throw AspenError(
                .invalidArgument,
                "a capability names a key of 1 to \(Limits.keyBytesMax) bytes, or a prefix and '*'")
        }
        self = pattern
    }

    private static func digit(_ character: UInt8) -> UInt8? {
        switch character {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): character - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): character - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}

// MARK: - Bytes

extension Capability {
    /// Kinds 16 to 31 are reserved for services to come.
    private enum Kind: UInt8 {
        case clusterRead = 1
        case clusterAdmin = 2
        case readKeys = 3
        case writeKeys = 4
    }

    /// Capabilities of a link stand in the order of these bytes.
    var encoded: [UInt8] {
        var writer = ByteWriter()
        func keys(_ kind: Kind, _ pattern: KeyPattern) {
            writer.byte(kind.rawValue)
            writer.flag(pattern.isPrefix)
            writer.blob(pattern.bytes)
        }
        switch self {
        case .clusterRead: writer.byte(Kind.clusterRead.rawValue)
        case .clusterAdmin: writer.byte(Kind.clusterAdmin.rawValue)
        case .readKeys(let pattern): keys(.readKeys, pattern)
        case .writeKeys(let pattern): keys(.writeKeys, pattern)
        }
        return writer.bytes
    }

    init(from reader: inout ByteReader) throws(DecodeError) {
        switch Kind(rawValue: try reader.byte("capability")) {
        case .clusterRead: self = .clusterRead
        case .clusterAdmin: self = .clusterAdmin
        case .readKeys: self = .readKeys(try KeyPattern(from: &reader))
        case .writeKeys: self = .writeKeys(try KeyPattern(from: &reader))
        case nil: throw .unknown(field: "capability")
        }
    }
}

extension KeyPattern {
    fileprivate init(from reader: inout ByteReader) throws(DecodeError) {
        let isPrefix = try reader.flag("isPrefix")
        let bytes = try reader.blob("key", max: Limits.keyBytesMax)
        guard let pattern = isPrefix ? Self.all(beginningWith: bytes) : Self.exactly(bytes) else {
            throw .outOfRange(field: "key")
        }
        self = pattern
    }
}
