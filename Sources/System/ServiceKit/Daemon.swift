// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import Logging
import NIOCore
import NIOPosix

/// Why a daemon ends, as sysexits(3) number it, so that `systemctl status` says something.
package enum DaemonExit: CInt, Sendable {
    case ok = 0
    case usage = 64
    case dataError = 65
    case unavailable = 69
    case software = 70
    case osError = 71
    case ioError = 74
    case noPermission = 77
    case configuration = 78

    package init(_ error: AspenError) {
        switch error.code {
        case .invalidArgument: self = .configuration
        case .corrupt: self = .dataError
        case .storage: self = .ioError
        case .permissionDenied, .unauthenticated: self = .noPermission
        case .unavailable: self = .unavailable
        default: self = .software
        }
    }
}

/// What a daemon's start function is given.
package struct DaemonContext: Sendable {
    package let name: String
    package let eventLoop: any EventLoop
    package let logger: Logger

    /// Ends the process because it cannot go on: logs once, says so to the supervisor, exits.
    package func fail(_ message: String, _ exit: DaemonExit) -> Never {
        logger.critical("\(message)")
        Notifier.status(message)
        Glibc.exit(exit.rawValue)
    }
}

/// A daemon that has been started.
package struct RunningDaemon: Sendable {
    /// Called on the event loop after SIGTERM or SIGINT: close listeners, answer what is in flight,
    /// then succeed. The process exits when it has, or after 5 s.
    package let drain: @Sendable () -> EventLoopFuture<Void>

    package init(drain: @escaping @Sendable () -> EventLoopFuture<Void>) { self.drain = drain }
}

/// The frame around every daemon: signals, logging, one event loop, readiness, watchdog, drain.
package enum Daemon {
    /// Runs until a signal. `start` runs on the event loop and succeeds once the daemon serves;
    /// readiness is then notified. If it throws or fails, the process ends with a message.
    package static func run(
        _ name: String,
        start:
            @escaping @Sendable (DaemonContext, inout ActivatedSockets, [String]) throws
            -> EventLoopFuture<RunningDaemon>
    ) -> Never {
        signal(SIGPIPE, SIG_IGN)
        // Blocked before the first thread exists, so that every thread inherits the mask and the
        // signal is taken by sigwait below.
        var signals = sigset_t()
        sigemptyset(&signals)
        sigaddset(&signals, SIGTERM)
        sigaddset(&signals, SIGINT)
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        let arguments = Array(CommandLine.arguments.dropFirst())
        JournalLogHandler.bootstrap(level: ServiceSettings.logLevel(arguments: arguments))
        let logger = Logger(label: name)
        let loop = MultiThreadedEventLoopGroup(numberOfThreads: 1).next()
        let context = DaemonContext(name: name, eventLoop: loop, logger: logger)
        let inherited = ActivatedSockets()
        let running: RunningDaemon
        do {
            running = try loop.flatSubmit {
                var sockets = inherited
                do {
                    return try start(context, &sockets, arguments)
                } catch {
                    return loop.makeFailedFuture(error)
                }
            }.wait()
        } catch let error as AspenError {
            context.fail(error.message, DaemonExit(error))
        } catch {
            context.fail("\(error)", .software)
        }
        Notifier.ready(status: "serving")
        startWatchdog(on: loop)
        var received: CInt = 0
        sigwait(&signals, &received)
        logger.info("stopping")
        Notifier.stopping()
        loop.scheduleTask(in: .seconds(5)) {
            logger.warning("could not drain within 5 s")
            Glibc.exit(DaemonExit.ok.rawValue)
        }
        try? loop.flatSubmit { running.drain() }.wait()
        Glibc.exit(DaemonExit.ok.rawValue)
    }

    private static func startWatchdog(on loop: any EventLoop) {
        guard let interval = Notifier.watchdogInterval else { return }
        let (seconds, attoseconds) = interval.components
        let amount = TimeAmount.nanoseconds(seconds * 1_000_000_000 + attoseconds / 1_000_000_000)
        // From the loop itself: a loop that hangs stops the watchdog.
        loop.scheduleRepeatedTask(initialDelay: .zero, delay: amount) { _ in Notifier.alive() }
    }
}
