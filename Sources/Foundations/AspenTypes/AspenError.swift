// SPDX-License-Identifier: GPL-2.0-or-later

/// What went wrong, as a word that programs can switch on. The raw values are part of the protocol.
public enum AspenErrorCode: UInt16, Sendable, CaseIterable {
    /// The request is malformed or breaks a rule that no retry can satisfy.
    case invalidArgument = 1
    /// The key, member or session asked for does not exist.
    case notFound = 2
    /// The caller has not proved who it is.
    case unauthenticated = 3
    /// The caller is known, but may not do this.
    case permissionDenied = 4
    /// A compare failed, a lock was not acquired, a membership rule forbids the change.
    case preconditionFailed = 5
    /// No leader, no quorum, or the daemon is not there; the request was not carried out.
    case unavailable = 6
    /// Time ran out; whether the request was carried out is unknown.
    case deadlineExceeded = 7
    /// A named limit is reached (see `Limits`).
    case resourceExhausted = 8
    /// The session has expired; its requests will never be executed again.
    case sessionExpired = 9
    /// The revision asked for has been compacted away.
    case compacted = 10
    /// The node belongs to no cluster yet: run `aspen-cli cluster init`.
    case notInitialized = 11
    /// The cluster already exists.
    case alreadyInitialized = 12
    /// Stored bytes do not match their checksum.
    case corrupt = 13
    /// The disk refused: full, read-only or broken.
    case storage = 14
    /// The peer speaks a version this program does not know.
    case unsupportedVersion = 15
    /// The request may or may not have been carried out (connection lost after sending).
    case unknownOutcome = 16
    /// A bug on our side.
    case `internal` = 17

    /// Upper snake case, as it stands in documents, logs and JSON.
    public var name: String {
        switch self {
        case .invalidArgument: "INVALID_ARGUMENT"
        case .notFound: "NOT_FOUND"
        case .unauthenticated: "UNAUTHENTICATED"
        case .permissionDenied: "PERMISSION_DENIED"
        case .preconditionFailed: "PRECONDITION_FAILED"
        case .unavailable: "UNAVAILABLE"
        case .deadlineExceeded: "DEADLINE_EXCEEDED"
        case .resourceExhausted: "RESOURCE_EXHAUSTED"
        case .sessionExpired: "SESSION_EXPIRED"
        case .compacted: "COMPACTED"
        case .notInitialized: "NOT_INITIALIZED"
        case .alreadyInitialized: "ALREADY_INITIALIZED"
        case .corrupt: "CORRUPT"
        case .storage: "STORAGE"
        case .unsupportedVersion: "UNSUPPORTED_VERSION"
        case .unknownOutcome: "UNKNOWN_OUTCOME"
        case .internal: "INTERNAL"
        }
    }
}

/// The one error that clients see: a code for programs, a message for people (what happened, why,
/// what to do next), and whether the same request may simply be sent again.
public struct AspenError: Error, Sendable, Equatable, CustomStringConvertible {
    public enum Retry: UInt8, Sendable {
        /// Sending it again cannot help.
        case never = 0
        /// It was not carried out; sending it again is safe.
        case safe = 1
        /// It may have been carried out; send it again only under the same session and number.
        case withSession = 2
    }

    public var code: AspenErrorCode
    public var message: String
    public var retry: Retry
    /// Of `compacted`: the oldest revision that can still be read, or watched from.
    public var oldestRevision: Revision?

    public init(_ code: AspenErrorCode, _ message: String, retry: Retry = .never) {
        self.code = code
        self.message = message
        self.retry = retry
    }

    /// `compacted`, with the oldest revision that there is.
    public static func compacted(_ message: String, oldest: Revision?) -> AspenError {
        var error = AspenError(.compacted, message)
        error.oldestRevision = oldest
        return error
    }

    public var description: String { "\(code.name): \(message)" }
}
