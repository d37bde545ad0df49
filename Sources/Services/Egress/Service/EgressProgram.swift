// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import CAspenSystem
import Glibc
import Logging
import ServiceKit

/// `aspend-egress`: the one program of a node that opens sockets to the world, a process for each
/// request. It hands the connected socket to who may ask for it, and never sees what goes over it.
///
/// systemd accepts each connection of egress.sock and starts a process with it (`Accept=yes`).
/// `aspen-node` hands over the listening socket: then this process accepts, and forks for each
/// connection, so that a request is a process of its own there, too. (To have `aspen-node` accept and
/// start programs would give its supervisor a table of children that come and go at a stranger's
/// pace, and a limit to keep; here that is one loop without any state.)
package enum EgressProgram {
    package static let known: Set<String> = ["dns-servers"]

    package static let manual = DaemonManual(
        name: "aspend-egress",
        abstract: "connects to this machine's name servers for the other daemons", known: known)

    package static func run() -> Never {
        let arguments = Array(CommandLine.arguments.dropFirst())
        if let answer = manual.answer(to: arguments) {
            print(answer, terminator: "")
            exit(DaemonExit.ok.rawValue)
        }
        signal(SIGPIPE, SIG_IGN)
        JournalLogHandler.bootstrap(level: ServiceSettings.logLevel(arguments: arguments))
        let logger = Logger(label: manual.name)
        _ = aspen_forbid_exec()
        if Supervision.isBySystemd { aspen_forbid_dumps() }
        var sockets = ActivatedSockets()
        let configured = Result { () throws(AspenError) in try settings(arguments) }
        let answering = EgressAnswering(access: .ofSystem(), logger: logger) {
            () throws(AspenError) in
            let servers = try configured.get()
            return servers.isEmpty ? NameServers.ofMachine() : servers
        }
        // As systemd calls the socket of one connection (sd_listen_fds(3)).
        if let connection = sockets.take("connection").first {
            finish(connection, answering)
        }
        guard let listener = sockets.take("egress.sock").first else {
            fail(
                AspenError(
                    .invalidArgument,
                    "no socket 'egress.sock' was handed over: aspend-egress is started by systemd or by "
                        + "aspen-node, not by hand"), logger)
        }
        if case .failure(let error) = configured { fail(error, logger) }
        Notifier.ready()
        let connection = aspen_accept_in_children(listener, CInt(EgressLimits.processesMax))
        guard connection >= 0 else {
            let reason = String(cString: strerror(-connection))
            fail(AspenError(.internal, "no connection can be accepted: \(reason)"), logger)
        }
        finish(connection, answering)
    }

    /// - Returns: the servers that are set; empty: those of the machine are to be asked.
    private static func settings(_ arguments: [String]) throws(AspenError) -> [NameServer] {
        let settings = try ServiceSettings(arguments: arguments, known: known)
        return try NameServers.ofSetting(settings.strings("dns-servers"))
    }

    private static func finish(_ connection: CInt, _ answering: EgressAnswering) -> Never {
        // Should anything wait against all rules: the signal ends the process.
        alarm(UInt32(EgressLimits.timeout.components.seconds) + 1)
        answering.answer(connection)
        exit(DaemonExit.ok.rawValue)
    }

    private static func fail(_ error: AspenError, _ logger: Logger) -> Never {
        logger.critical("\(error.message)")
        exit(DaemonExit(error).rawValue)
    }
}
