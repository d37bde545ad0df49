// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CAspenSystem
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
    let past: PastFailure?

    /// Ends the process because it cannot go on: logs once, says so to the supervisor, exits. What
    /// was wrong is left to the next process, which answers with it for a while (`PastFailure`).
    package func fail(
        _ message: String, _ exit: DaemonExit, event: JournalEvent? = nil
    ) -> Never {
        let event = event ?? (exit == .configuration ? .configurationRefused : nil)
        logger.critical("\(message)", metadata: event.map { ["event": "\($0)"] } ?? [:])
        Notifier.status(message)
        PastFailure.leave(message, exit, after: past)
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
        _ name: String, refusals: [Refusal] = [],
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
        // Ends it in order, too: whoever supervises starts it again, with the settings of then.
        sigaddset(&signals, SIGHUP)
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        JournalLogHandler.bootstrap()
        let logger = Logger(label: name)
        let loop = MultiThreadedEventLoopGroup(numberOfThreads: 1).next()
        let arguments = Array(CommandLine.arguments.dropFirst())
        confine(logger)
        var inherited = ActivatedSockets()
        let past = PastFailure.take(from: &inherited)
        let context = DaemonContext(name: name, eventLoop: loop, logger: logger, past: past)
        startWatchdog(on: loop)
        if let past { past.sitOut(inherited, refusals, on: loop) { wait(&signals, at: $0) } }
        let sockets = inherited
        let running: RunningDaemon
        do {
            running = try loop.flatSubmit {
                var sockets = sockets
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

    /// What no daemon needs, whatever its unit file allows.
    private static func confine(_ logger: Logger) {
        let result = aspen_forbid_exec()
        if result != 0 { logger.debug("starting programs is not forbidden: errno \(-result)") }
        if Environment["SYSTEMD_EXEC_PID"] == String(getpid()) { aspen_forbid_dumps() }
    }

    /// Until `deadline`, or a signal that ends the process.
    private static func wait(_ signals: inout sigset_t, at deadline: NIODeadline) {
        while true {
            let left = (deadline - .now()).nanoseconds
            guard left > 0 else { return }
            var timeout = timespec(
                tv_sec: Int(left / 1_000_000_000), tv_nsec: Int(left % 1_000_000_000))
            if sigtimedwait(&signals, nil, &timeout) > 0 {
                Notifier.stopping()
                Glibc.exit(DaemonExit.ok.rawValue)
            }
        }
    }

    private static func startWatchdog(on loop: any EventLoop) {
        guard let interval = Notifier.watchdogInterval else { return }
        let (seconds, attoseconds) = interval.components
        let amount = TimeAmount.nanoseconds(seconds * 1_000_000_000 + attoseconds / 1_000_000_000)
        // From the loop itself: a loop that hangs stops the watchdog.
        loop.scheduleRepeatedTask(initialDelay: .zero, delay: amount) { _ in Notifier.alive() }
    }
}
