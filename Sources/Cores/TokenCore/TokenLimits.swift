// SPDX-License-Identifier: GPL-2.0-or-later

/// The limits of capability tokens; part of their format (see Tokens.md).
package enum TokenLimits {
    /// Links of a chain: hands that a token may have gone through.
    package static let linksMax = 8
    /// Capabilities of one link.
    package static let capabilitiesMax = 64
    /// Bytes of an encoded chain.
    package static let bytesMax = 65_536
    /// How far the clock of whoever judges may be behind that of whoever signed, in seconds. The end
    /// of a token is not stretched: with wrong clocks it lives shorter, never longer.
    package static let clockSkewMax: UInt64 = 30
    /// Roots that a cluster trusts.
    package static let rootsMax = 64
    /// Revocations that a cluster remembers.
    package static let revocationsMax = 10_000
}
