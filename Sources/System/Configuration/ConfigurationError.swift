// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// What is wrong with the configuration, and where.
package struct ConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
    package enum Kind: String, Sendable {
        /// The file or directory cannot be read, or is larger than allowed.
        case unreadable
        /// No UTF-8, or no TOML.
        case syntax
        case unknownKey = "unknown-key"
        case wrongType = "wrong-type"
        /// The type is right, the value is not.
        case outOfRange = "out-of-range"
        /// It must be set, and is not.
        case missing
        /// Each value is right, but they do not go together.
        case conflict
    }

    package var kind: Kind
    /// The file, variable or flag; nil when none is to blame.
    package var origin: Origin?
    /// The setting's path in the file, when it is about one.
    package var path: String?
    /// What is wrong, and what is allowed.
    package var message: String

    package init(_ kind: Kind, _ origin: Origin?, path: String? = nil, _ message: String) {
        self.kind = kind
        self.origin = origin
        self.path = path
        self.message = message
    }

    /// "/etc/aspen/aspen.toml:3: raft.heartbeat_interval_ms must be …"
    package var description: String {
        guard let origin else { return message }
        switch origin {
        // Line 0: the file as a whole.
        case .file(let path, let line):
            return (line > 0 ? "\(path):\(line)" : path) + ": \(message)"
        case .environment, .flag: return "\(origin): \(message)"
        case .standard: return message
        }
    }

    package var aspenError: AspenError { AspenError(.invalidArgument, description) }
}

/// Finds what was probably meant.
enum Suggestion {
    /// - Returns: the candidate nearest to `word`, when it is near at all.
    static func nearest(to word: String, among candidates: [String]) -> String? {
        let scored = candidates.map { ($0, distance(Array(word.utf8), Array($0.utf8))) }
        guard let best = scored.min(by: { $0.1 < $1.1 }) else { return nil }
        return best.1 <= max(2, word.utf8.count / 3) ? best.0 : nil
    }

    /// Levenshtein's, with case, '-' and '_' counting as nothing.
    static func distance(_ left: [UInt8], _ right: [UInt8]) -> Int {
        let (left, right) = (left.map(fold), right.map(fold))
        guard left.count <= 128, right.count <= 128 else { return .max }
        var row = Array(0...right.count)
        for (i, a) in left.enumerated() {
            var diagonal = row[0]
            row[0] = i + 1
            for (j, b) in right.enumerated() {
                let above = row[j + 1]
                row[j + 1] = min(above + 1, row[j] + 1, diagonal + (a == b ? 0 : 1))
                diagonal = above
            }
        }
        return row[right.count]
    }

    private static func fold(_ byte: UInt8) -> UInt8 {
        if byte == UInt8(ascii: "-") { return UInt8(ascii: "_") }
        return (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte) ? byte + 32 : byte
    }
}
