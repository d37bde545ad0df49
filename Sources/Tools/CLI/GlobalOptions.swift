// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes
import AspenWire

package let programVersion = ProtocolVersion.program

/// What every verb takes.
struct GlobalOptions: ParsableArguments {
    static let names: Set<String> = [
        "--ticket", "--socket", "--token", "--timeout", "--output", "-o", "--json",
    ]

    @Option(help: "The cluster's ticket.")
    var ticket: String?

    @Option(help: "The local daemon's socket.")
    var socket: String?

    @Option(
        help: ArgumentHelp(
            "A capability token, or the file that holds it.", valueName: "token|@file"))
    var token: String?

    @Option(
        help: ArgumentHelp(
            "How long to try: 500ms, 10s, 1m, at most 24h; without a unit, milliseconds.",
            valueName: "time"))
    var timeout = TimeLimit.standard

    @Option(name: .shortAndLong, help: "Output format.")
    var output = OutputFormat.table

    @Flag(help: "The same as -o json.")
    var json = false

    var isJSON: Bool { json || output == .json }

    /// Flags before environment; a ticket before a socket; else the node that runs here.
    func target(environment: (String) -> String?) throws -> AspenClient.Target {
        if ticket != nil, socket != nil {
            throw CommandFailure.usage("--ticket and --socket name two places: give one of them")
        }
        if let ticket { return try Self.target(ofTicket: ticket) }
        if let socket { return .socket(socket) }
        if let ticket = environment("ASPEN_TICKET"), !ticket.isEmpty {
            return try Self.target(ofTicket: ticket)
        }
        if let socket = environment("ASPEN_SOCKET"), !socket.isEmpty { return .socket(socket) }
        return .socket(LocalSocket.find())
    }

    /// Flags before environment. Only a cluster reached by a ticket asks for a token: on a node the
    /// system says who the caller is.
    func credential(environment: (String) -> String?) throws -> ClientCredential? {
        try TokenArgument.credential(token ?? environment("ASPEN_TOKEN"))
    }

    private static func target(ofTicket text: String) throws -> AspenClient.Target {
        do {
            return try .ticket(parsing: text)
        } catch {
            throw CommandFailure.usage(error.message)
        }
    }
}

package enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
    case table
    case json
}

/// "500ms", "10s", "1m"; a bare number counts milliseconds.
package struct TimeLimit: ExpressibleByArgument, CustomStringConvertible {
    static let standard = TimeLimit(.seconds(10))
    /// One day.
    static let millisecondsMax: UInt64 = 86_400_000

    package let duration: Duration
    package var description: String { "\(duration.components.seconds)s" }
    package var defaultValueDescription: String { description }

    package init(_ duration: Duration) { self.duration = duration }

    package init?(argument: String) {
        let digits = argument.prefix { $0.isASCII && $0.isNumber }
        guard let count = UInt64(digits) else { return nil }
        let factor: UInt64
        switch argument.dropFirst(digits.count) {
        case "", "ms": factor = 1
        case "s": factor = 1000
        case "m": factor = 60_000
        case "h": factor = 3_600_000
        default: return nil
        }
        let (milliseconds, overflow) = count.multipliedReportingOverflow(by: factor)
        guard !overflow, (1...Self.millisecondsMax).contains(milliseconds) else { return nil }
        self.init(.milliseconds(milliseconds))
    }
}

/// How long a lease lives. A number alone could be seconds, as others have it, or milliseconds, as
/// `--timeout` has it: it takes a unit.
package struct LeaseTime: ExpressibleByArgument {
    package let duration: Duration

    package init?(argument: String) {
        guard let last = argument.last, last.isLetter, let time = TimeLimit(argument: argument)
        else { return nil }
        duration = time.duration
    }
}
