// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CAspenSystem
import Configuration
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
    package typealias Start =
        @Sendable (DaemonContext, inout ActivatedSockets, [String]) throws
        -> EventLoopFuture<RunningDaemon>

    /// Runs until a signal. `start` runs on the event loop and succeeds once the daemon serves;
    /// readiness is then notified. The status line (`Notifier.status`) is the daemon's own affair. If
    /// it throws or fails, the process ends with a message; but under systemd, when it throws what only
    /// a person can mend, the process stays and says it to whoever connects (see `RefusingService`).
    package static func run(
        _ manual: DaemonManual, refusals: [SocketRefusal] = [], start: @escaping Start
    ) -> Never {
        let arguments = Array(CommandLine.arguments.dropFirst())
        if let answer = manual.answer(to: arguments) {
            print(answer, terminator: "")
            Glibc.exit(DaemonExit.ok.rawValue)
        }
        let name = manual.name
        aspen_return_large_blocks()
        signal(SIGPIPE, SIG_IGN)
        let signals = blockSignals()
        JournalLogHandler.bootstrap(level: ServiceSettings.logLevel(arguments: arguments))
        let logger = Logger(label: name)
        let loop = MultiThreadedEventLoopGroup(numberOfThreads: 1).next()
        confine(logger)
        var handed = ActivatedSockets()
        let past = PastFailure.take(from: &handed)
        if [SIGTERM, SIGINT].contains(StartPace.keep(&handed, signals, logger)) {
            Glibc.exit(DaemonExit.ok.rawValue)
        }
        let inherited = handed
        let context = DaemonContext(name: name, eventLoop: loop, logger: logger, past: past)
        startWatchdog(on: loop)
        if let past, !past.isRefusal { sitOut(past, context, inherited, refusals, signals) }
        let running: RunningDaemon
        do {
            running = try loop.flatSubmit {
                var sockets = inherited
                do {
                    return try start(context, &sockets, arguments)
                } catch  where Supervision.isBySystemd && RefusingService.isFor(error) {
                    return loop.makeFailedFuture(MendableError(cause: error))
                } catch {
                    return loop.makeFailedFuture(error)
                }
            }.wait()
        } catch let error as MendableError {
            refuse(error.aspenError, context, inherited, refusals, arguments, signals)
        } catch let error as AspenError {
            context.fail(error.message, DaemonExit(error))
        } catch {
            context.fail("\(error)", .software)
        }
        // Without a status: the loop may have said a newer one than any that this thread knows.
        Notifier.ready()
        while wait(for: signals) == SIGHUP {
            logger.notice("settings are read at start: restart the daemon to change them")
        }
        logger.info("stopping")
        stop(context) { running.drain() }
    }

    /// Blocked before the first thread exists, so that every thread inherits the mask and a signal
    /// is taken by sigwait alone.
    private static func blockSignals() -> sigset_t {
        var signals = sigset_t()
        sigemptyset(&signals)
        for signal in [SIGTERM, SIGINT, SIGHUP] { sigaddset(&signals, signal) }
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        return signals
    }

    private static func wait(for signals: sigset_t) -> CInt {
        var signals = signals
        var received: CInt = 0
        sigwait(&signals, &received)
        return received
    }

    private static func stop(
        _ context: DaemonContext, drain: @escaping @Sendable () -> EventLoopFuture<Void>
    ) -> Never {
        Notifier.stopping()
        context.eventLoop.scheduleTask(in: .seconds(5)) {
            context.logger.warning("could not drain within 5 s")
            Glibc.exit(DaemonExit.ok.rawValue)
        }
        try? context.eventLoop.flatSubmit { drain() }.wait()
        Glibc.exit(DaemonExit.ok.rawValue)
    }

    // MARK: - What cannot start

    /// How often the configuration's files are looked at for changes.
    private static let lookInterval = timespec(tv_sec: 1, tv_nsec: 0)

    /// Serves the reason until something has changed, then ends: systemd starts a new process, with
    /// secrets read anew, and keeps the sockets meanwhile. After some seconds, ever more of them, that
    /// is done whatever the files say: what is wrong may be elsewhere, as a full disk, or a secret that
    /// systemd hands over at a start.
    private static func refuse(
        _ reason: AspenError, _ context: DaemonContext, _ inherited: ActivatedSockets,
        _ refusals: [SocketRefusal], _ arguments: [String], _ signals: sigset_t
    ) -> Never {
        context.logger.critical(
            "cannot start: \(reason.message)", metadata: ["event": "\(event(reason))"])
        let service = RefusingService(
            reason: reason, loop: context.eventLoop, logger: context.logger)
        do {
            try context.eventLoop.flatSubmit {
                var sockets = inherited
                return service.start(&sockets, refusals)
            }.wait()
        } catch {
            context.fail(reason.message, DaemonExit(reason))
        }
        Notifier.ready(status: "\(statusWord(reason)): \(reason.message)")
        let known = ServiceSettings.files(arguments: arguments).fingerprint
        var signals = signals
        for _ in 0..<PastFailure.refusalSeconds(after: context.past) {
            var interval = lookInterval
            let signal = sigtimedwait(&signals, nil, &interval)
            if signal > 0 {
                context.logger.info(signal == SIGHUP ? "starting anew" : "stopping")
                stop(context) { service.drain() }
            }
            if ServiceSettings.files(arguments: arguments).fingerprint != known {
                context.logger.notice("the configuration has changed: starting anew")
                stop(context) { service.drain() }
            }
        }
        PastFailure.leave("", DaemonExit(reason), after: context.past)
        stop(context) { service.drain() }
    }

    private static func statusWord(_ reason: AspenError) -> String {
        switch reason.code {
        case .storage, .corrupt, .unsupportedVersion: "storage error"
        default: "configuration error"
        }
    }

    /// What a person can mend; anything else ends the process.
    private struct MendableError: Error {
        let aspenError: AspenError

        init(cause: any Error) {
            aspenError = cause as? AspenError ?? AspenError(.internal, "\(cause)")
        }
    }

    private static func event(_ reason: AspenError) -> JournalEvent {
        switch reason.code {
        case .storage: .ofDisk(reason.message)
        case .corrupt: .damageFound
        default: .configurationRefused
        }
    }

    /// The process before this one ended by a failure that may be there still: its reason is served
    /// for a while before it is tried again, or until a signal.
    private static func sitOut(
        _ past: PastFailure, _ context: DaemonContext, _ inherited: ActivatedSockets,
        _ refusals: [SocketRefusal], _ signals: sigset_t
    ) {
        let service = RefusingService(
            reason: AspenError(.unavailable, past.text, retry: .safe), loop: context.eventLoop,
            logger: context.logger)
        let copies = refusals.flatMap { refusal in
            inherited.duplicates(of: refusal.socket).map { (refusal.socket, $0) }
        }
        try? context.eventLoop.flatSubmit {
            var sockets = ActivatedSockets(copies)
            return service.start(&sockets, refusals)
        }.wait()
        Notifier.ready(
            status: "cannot serve: \(past.text) (tries again in \(past.delaySeconds) s)")
        var signals = signals
        var delay = timespec(tv_sec: past.delaySeconds, tv_nsec: 0)
        let signal = sigtimedwait(&signals, nil, &delay)
        if signal > 0, signal != SIGHUP { stop(context) { service.drain() } }
        try? context.eventLoop.flatSubmit { service.drain() }.wait()
        Notifier.status("trying again")
    }

    /// What no daemon needs, whatever its unit file allows.
    private static func confine(_ logger: Logger) {
        let result = aspen_forbid_exec()
        if result != 0 { logger.debug("starting programs is not forbidden: errno \(-result)") }
        aspen_forbid_core_files()
        aspen_crash_plainly()
        if Environment["SYSTEMD_EXEC_PID"] == String(getpid()) { aspen_forbid_dumps() }
    }

    private static func startWatchdog(on loop: any EventLoop) {
        guard let interval = Notifier.watchdogInterval else { return }
        let (seconds, attoseconds) = interval.components
        let amount = TimeAmount.nanoseconds(seconds * 1_000_000_000 + attoseconds / 1_000_000_000)
        // From the loop itself: a loop that hangs stops the watchdog.
        loop.scheduleRepeatedTask(initialDelay: .zero, delay: amount) { _ in Notifier.alive() }
    }
}
