// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import DNSWire

/// Limits of looking up names; beyond each of them the caller gets an answer, and nothing grows.
package enum ResolverLimits {
    /// Answers kept, and records in each.
    package static let cachedMax = 512
    package static let recordsMax = 64
    /// Questions that are being asked at a time.
    package static let questionsMax = 64
    /// Callers who wait.
    package static let lookUpsMax = 256
    /// Servers used.
    package static let serversMax = 4
    /// Longest time for which an answer is kept, and for which it is remembered that there is none.
    package static let keptMax = Duration.seconds(86_400)
    package static let absentMax = Duration.seconds(900)
    /// Aliases followed.
    package static let aliasesMax = 8
    /// How often a question is sent, over all servers.
    package static let attemptsMax = 5
    /// Times to wait for an answer: this, twice as long, … up to the other.
    package static let waitMin = Duration.seconds(1)
    package static let waitMax = Duration.seconds(4)
    /// Time for an exchange over TCP, connecting included.
    package static let streamTimeout = Duration.seconds(5)
}

package struct ResolverServer: Hashable, Sendable {
    package var address: IPAddress
    package var port: UInt16

    package init(_ address: IPAddress, port: UInt16 = 53) {
        self.address = address
        self.port = port
    }
}

/// Given by the caller; unique while the look-up runs.
package struct LookUpID: Hashable, Comparable, Sendable {
    package let rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// One socket, for one question to one server: over UDP its own, with a port that the kernel draws, so
/// that whoever wants to forge an answer has to guess that, too.
package struct ExchangeID: Hashable, Sendable {
    package let rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

package enum ResolverInput: Equatable, Sendable {
    /// The machine's `deadline` has come.
    case timeout
    /// Whom to ask, the best first.
    case servers([ResolverServer])
    case lookUp(LookUpID, DNSName, type: UInt16)
    /// Its caller does not wait any more; there will be no answer.
    case cancel(LookUpID)
    /// A datagram, or a whole message of the stream without its length.
    case received(ExchangeID, [UInt8], from: ResolverServer)
    /// The socket could not be opened or used, or the stream ended without an answer.
    case failed(ExchangeID)
}

package enum LookUpResult: Equatable, Sendable {
    case records([DNSRecord])
    /// There is no such name, or nothing of that type.
    case absent
    case failed(Failure)

    package enum Failure: Equatable, Sendable {
        case noServer
        case noAnswer
        /// Every server has refused or could not tell.
        case refused
        /// A limit of ours.
        case tooMany
    }
}

package enum ResolverEffect: Equatable, Sendable {
    /// Opens a socket and sends. Over a stream the shell writes the length before it.
    case ask(ExchangeID, [UInt8], ResolverServer, overStream: Bool)
    /// Nothing more is expected of it.
    case close(ExchangeID)
    case answer(LookUpID, LookUpResult)
}
