// SPDX-License-Identifier: GPL-2.0-or-later

/// Whether a cluster cookie may be used at all.
package enum CookieRules {
    package enum Verdict: Sendable, Equatable {
        case good
        /// Usable, but it may be guessed by somebody who tries for long.
        case short
        case missing
        /// Everybody knows it.
        case published
        case large
    }

    /// Shorter ones are warned about.
    package static let recommendedBytesMin = 16
    /// As `Secret.bytesMax`.
    package static let bytesMax = 4096

    /// Cookies that are published: as defaults, or in documentation.
    private static let published: Set<String> = [
        "aspen-cookie-UNSAFE-CHANGE-ME", "aspen-cookie", "aspen", "cookie", "changeme",
        "change-me", "default", "secret", "password",
    ]

    /// - Parameter bytes: without the line end of the file it was in.
    package static func judge(_ bytes: some Collection<UInt8>) -> Verdict {
        if bytes.isEmpty { return .missing }
        if bytes.count > bytesMax { return .large }
        if published.contains(String(decoding: bytes, as: UTF8.self)) { return .published }
        return bytes.count < recommendedBytesMin ? .short : .good
    }

    /// One line end is no part of the secret.
    package static func trimmed(_ bytes: [UInt8]) -> [UInt8] {
        bytes.last == UInt8(ascii: "\n") ? Array(bytes.dropLast()) : bytes
    }
}
