// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes
import Glibc
import TokenCore

/// A token as people give it: the word itself, or `@` and the file that holds it. No error repeats
/// any of it.
package enum TokenArgument {
    /// - Parameter given: nil or empty: no token.
    /// - Throws: `CommandFailure` for what is no token, `AspenError` for one that is not this client's.
    package static func credential(_ given: String?) throws -> ClientCredential? {
        guard let given, !given.isEmpty else { return nil }
        let word = try read(given)
        do {
            return try ClientCredential(token: word)
        } catch {
            if error.code == .invalidArgument { throw CommandFailure.usage(error.message) }
            throw error
        }
    }

    static func read(_ text: String) throws -> String {
        guard text.hasPrefix("@") else { return trim(text) }
        let path = String(text.dropFirst())
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw CommandFailure.usage(
                "cannot read the token's file \(path): \(String(cString: strerror(errno)))")
        }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while bytes.count <= TokenLimits.bytesMax * 2 {
            let count = Glibc.read(descriptor, &buffer, buffer.count)
            guard count > 0 else { break }
            bytes += buffer.prefix(count)
        }
        return trim(String(decoding: bytes, as: UTF8.self))
    }

    static func chain(_ text: String) throws -> TokenChain {
        do {
            return try TokenChain(parsing: try read(text))
        } catch let error as AspenError {
            throw CommandFailure.usage(error.message)
        }
    }

    private static func trim(_ text: String) -> String {
        let isBlank = { (character: Character) in character.isWhitespace }
        let rest = text.drop(while: isBlank)
        return String(rest.reversed().drop(while: isBlank).reversed())
    }
}

/// "30s", "15m", "12h", "7d".
struct Lifetime: ExpressibleByArgument {
    /// Ten years.
    static let secondsMax: UInt64 = 315_360_000
    let seconds: UInt64

    init?(argument: String) {
        let digits = argument.prefix { $0.isASCII && $0.isNumber }
        guard let count = UInt64(digits) else { return nil }
        let factor: UInt64
        switch argument.dropFirst(digits.count) {
        case "s": factor = 1
        case "m": factor = 60
        case "h": factor = 3600
        case "d": factor = 86_400
        default: return nil
        }
        let (seconds, overflow) = count.multipliedReportingOverflow(by: factor)
        guard !overflow, (1...Self.secondsMax).contains(seconds) else { return nil }
        self.seconds = seconds
    }
}

/// "10m", from now; or "2026-12-24T08:00:00Z".
enum StartTime: ExpressibleByArgument {
    case later(seconds: UInt64)
    /// Seconds since 1970.
    case at(UInt64)

    init?(argument: String) {
        if let time = WallClock.seconds(argument) {
            self = .at(time)
        } else if let later = Lifetime(argument: argument) {
            self = .later(seconds: later.seconds)
        } else {
            return nil
        }
    }

    /// - Parameter now: seconds since 1970.
    func time(_ now: UInt64) -> UInt64 {
        switch self {
        case .later(let seconds): now + seconds
        case .at(let time): time
        }
    }
}
