// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// The exit statuses of every client program; part of the contract with scripts.
package enum ExitStatus: Int32 {
    case done = 0
    case failed = 1
    /// A command line that makes no sense, or an argument that the cluster does not take.
    case usage = 2
    case notFound = 3
    case notAuthorised = 4
    case preconditionFailed = 5
    case unavailable = 6

    package init(_ error: AspenError) {
        self =
            switch error.code {
            case .invalidArgument: .usage
            case .notFound: .notFound
            case .unauthenticated, .permissionDenied: .notAuthorised
            case .preconditionFailed, .alreadyInitialized: .preconditionFailed
            case .unavailable, .deadlineExceeded, .unknownOutcome, .notInitialized: .unavailable
            case .resourceExhausted: error.retry == .never ? .failed : .unavailable
            case .sessionExpired, .compacted, .corrupt, .storage, .unsupportedVersion, .internal:
                .failed
            }
    }
}

/// Why a command ended without doing what it was asked.
package struct CommandFailure: Error {
    package var status: ExitStatus
    /// What happened, why, what to do next.
    package var text: String
    package var error: AspenError?

    package static func usage(_ text: String) -> CommandFailure {
        CommandFailure(status: .usage, text: text, error: nil)
    }

    package static func failed(_ text: String) -> CommandFailure {
        CommandFailure(status: .failed, text: text, error: nil)
    }

    init(status: ExitStatus, text: String, error: AspenError?) {
        self.status = status
        self.text = text
        self.error = error
    }

    package init(_ error: any Error) {
        switch error {
        case let failure as CommandFailure: self = failure
        case let error as AspenError:
            self.init(
                status: ExitStatus(error), text: "\(error.message) (\(error.code.name))",
                error: error)
        default: self.init(status: .failed, text: "\(error)", error: nil)
        }
    }
}
