// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// What a set of capabilities allows.
package struct CapabilitySet: Equatable, Sendable {
    package let capabilities: [Capability]
    private let readable: [KeyPattern]
    private let writable: [KeyPattern]
    private let isAdmin: Bool
    private let isReader: Bool

    package init(_ capabilities: [Capability]) {
        self.capabilities = capabilities
        readable = capabilities.compactMap {
            if case .readKeys(let keys) = $0 { keys } else { nil }
        }
        writable = capabilities.compactMap {
            if case .writeKeys(let keys) = $0 { keys } else { nil }
        }
        isAdmin = capabilities.contains(.clusterAdmin)
        isReader = isAdmin || capabilities.contains(.clusterRead)
    }

    package enum Access: Sendable { case read, write }

    private func patterns(_ access: Access) -> [KeyPattern] {
        switch access {
        case .read: readable
        case .write: writable
        }
    }

    package func allows(_ access: Access, key: [UInt8]) -> Bool {
        patterns(access).contains { $0.matches(key) }
    }

    /// Whether every key from `from` (before `to`; nil: to the end) may be accessed. Several
    /// capabilities may cover the range together. Of an empty range, `from` counts.
    package func allows(_ access: Access, from: [UInt8], to: [UInt8]?) -> Bool {
        let patterns = patterns(access)
        var reached = from
        // Each turn goes beyond at least one more pattern.
        for _ in 0...patterns.count {
            var furthest: [UInt8]?
            for pattern in patterns where !reached.lexicographicallyPrecedes(pattern.bytes) {
                guard let end = pattern.end else { return true }
                if reached.lexicographicallyPrecedes(end),
                    furthest.map({ $0.lexicographicallyPrecedes(end) }) ?? true
                {
                    furthest = end
                }
            }
            guard let furthest else { return false }
            if let to, !furthest.lexicographicallyPrecedes(to) { return true }
            reached = furthest
        }
        return false
    }

    /// Whether there is any key that may be accessed so.
    package func allowsAny(_ access: Access) -> Bool { !patterns(access).isEmpty }

    /// Whether this capability is among those given, or follows from them.
    package func includes(_ capability: Capability) -> Bool {
        switch capability {
        case .clusterRead: isReader
        case .clusterAdmin: isAdmin
        case .readKeys(let pattern): includes(.read, pattern)
        case .writeKeys(let pattern): includes(.write, pattern)
        }
    }

    private func includes(_ access: Access, _ pattern: KeyPattern) -> Bool {
        pattern.isPrefix
            ? allows(access, from: pattern.bytes, to: pattern.end)
            : allows(access, key: pattern.bytes)
    }
}

/// What a chain that holds gives its holder.
package struct Grant: Equatable, Sendable {
    package let root: EndpointID
    package let client: EndpointID
    package let rights: CapabilitySet
    /// Seconds since 1970; from then on nothing is granted.
    package let expires: UInt64
    /// Of every link; one of them revoked ends the grant.
    package let ids: [TokenID]
}

/// Why a chain is refused.
package enum TokenRefusal: Error, Equatable, Sendable {
    case untrustedRoot(EndpointID)
    /// The signature of this link, counted from 1, is not its issuer's.
    case badSignature(link: Int)
    /// This link gives what the one before it did not.
    case widened(link: Int, Capability)
    /// This link is valid when the one before it is not.
    case outlivesParent(link: Int)
    /// The token was made for another key.
    case wrongAudience(EndpointID)
    /// Seconds since 1970.
    case notYetValid(notBefore: UInt64)
    case expired(UInt64)
    case revoked(TokenID)

    /// In the words of error texts, of at most 200 bytes; holds nothing secret.
    package var message: String {
        switch self {
        case .untrustedRoot(let root):
            "the token's root \(root) is not trusted by this cluster"
        case .badSignature(let link): "the token's link \(link) is not signed by who should have"
        case .widened(let link, _): "the token's link \(link) grants more than the one before it"
        case .outlivesParent(let link):
            "the token's link \(link) is valid outside the time of the one before it"
        case .wrongAudience(let audience):
            "the token was made for another client key, \(audience)"
        case .notYetValid(let time): "the token is not valid before \(WallClock.text(time))"
        case .expired(let time): "the token has expired at \(WallClock.text(time))"
        case .revoked(let id): "the token is revoked (\(id))"
        }
    }
}

/// Seconds since 1970 for people.
package enum WallClock {
    /// "2026-11-24 01:02:03 UTC"; days by Hinnant's civil_from_days.
    package static func text(_ seconds: UInt64) -> String {
        // Year 9999: no token means a later time.
        let seconds = min(seconds, 253_402_300_799)
        let second = seconds % 86_400
        let shifted = seconds / 86_400 + 719_468
        let era = shifted / 146_097
        let day = shifted % 146_097
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365
        let ofYear = day - (365 * year + year / 4 - year / 100)
        let month = (5 * ofYear + 2) / 153
        let civilMonth = month < 10 ? month + 3 : month - 9
        let civilYear = year + era * 400 + (civilMonth <= 2 ? 1 : 0)
        let civilDay = ofYear - (153 * month + 2) / 5 + 1
        func two(_ value: UInt64) -> String { value < 10 ? "0\(value)" : "\(value)" }
        return "\(civilYear)-\(two(civilMonth))-\(two(civilDay)) "
            + "\(two(second / 3600)):\(two(second / 60 % 60)):\(two(second % 60)) UTC"
    }

    /// The seconds of "2026-11-24T01:02:03Z" (RFC 3339, in UTC, whole seconds); nil for anything else.
    package static func seconds(_ text: String) -> UInt64? {
        let form = Array("0000-00-00T00:00:00Z".utf8)
        let bytes = Array(text.utf8)
        guard bytes.count == form.count else { return nil }
        var digits: [UInt64] = []
        for (byte, wanted) in zip(bytes, form) {
            if wanted == UInt8(ascii: "0") {
                guard (48...57).contains(byte) else { return nil }
                digits.append(UInt64(byte - 48))
            } else if byte != wanted {
                return nil
            }
        }
        func number(_ range: Range<Int>) -> UInt64 { digits[range].reduce(0) { $0 * 10 + $1 } }
        let (year, month, day) = (number(0..<4), number(4..<6), number(6..<8))
        let (hour, minute, second) = (number(8..<10), number(10..<12), number(12..<14))
        guard year >= 1970, (1...12).contains(month), (1...31).contains(day), hour < 24,
            minute < 60,
            second < 60
        else { return nil }
        // Hinnant's days_from_civil, of years that begin with March.
        let shifted = month <= 2 ? year - 1 : year
        let ofYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + ofYear - 719_468
        let seconds = days * 86_400 + hour * 3600 + minute * 60 + second
        // The 31st of a month that has 30 days would come back as another day.
        let day10 = String(decoding: bytes.prefix(10), as: UTF8.self)
        return Self.text(seconds).hasPrefix(day10) ? seconds : nil
    }
}
