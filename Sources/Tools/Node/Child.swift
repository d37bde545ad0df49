// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CAspenSystem
import Glibc

/// One supervised daemon: what it is started with, and how it is doing.
struct Child {
    let name: String
    let program: String
    /// Descriptors handed over, by the names the daemon looks for; kept open for its successors.
    let descriptors: [(name: String, descriptor: CInt)]
    let environment: [String]
    /// Descriptors that the daemon has asked to keep for its successors (FDSTORE of sd_notify(3)).
    private(set) var stored: [(name: String, descriptor: CInt)] = []

    var pid: pid_t = 0
    /// Read end of its standard error.
    var output: CInt = -1
    var partialLine: [UInt8] = []
    var isReady = false
    var startedAt: UInt64 = 0
    /// When to start it again, in monotonic milliseconds; nil while it runs.
    var restartAt: UInt64?
    var restartDelay: UInt64 = 0
    /// Starts, one after the other, that ended with damaged data before the daemon served.
    private(set) var damagedStarts = 0

    /// A daemon that lived this long starts again at once; one that dies sooner waits a little
    /// longer each time, so that a broken one does not burn a core.
    static let stableMilliseconds: UInt64 = 1000
    static let restartDelayMax: UInt64 = 1000
    /// Most descriptors kept for a daemon; more are not taken.
    static let storedMax = 4
    /// Longest log line kept together, in bytes.
    static let lineBytesMax = 16_384

    init(
        name: String, program: String, descriptors: [(name: String, descriptor: CInt)],
        environment: [String]
    ) {
        self.name = name
        self.program = program
        self.descriptors = descriptors
        self.environment = environment
    }

    mutating func start(now: UInt64) throws(AspenError) {
        var pipes: [CInt] = [-1, -1]
        guard pipe(&pipes) == 0 else {
            throw AspenError(.internal, "no pipe for the log of \(name)")
        }
        for end in pipes { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        _ = fcntl(pipes[0], F_SETFL, O_NONBLOCK)
        let descriptors = descriptors + stored
        let variables =
            environment + [
                "LISTEN_FDS=\(descriptors.count)",
                "LISTEN_FDNAMES=" + descriptors.map(\.name).joined(separator: ":"),
            ]
        let numbers = descriptors.map(\.descriptor)
        let started = withCStrings([program]) { arguments in
            withCStrings(variables) { variables in
                aspen_spawn(program, arguments, variables, numbers, CInt(numbers.count), pipes[1])
            }
        }
        close(pipes[1])
        guard started > 0 else {
            close(pipes[0])
            throw AspenError(.internal, "\(program) cannot be started (errno \(-started))")
        }
        pid = started
        output = pipes[0]
        startedAt = now
        restartAt = nil
        isReady = false
    }

    /// Does what the daemon says through sd_notify(3).
    mutating func notified(_ notification: Notification) {
        if notification.isReady { isReady = true }
        if notification.discards {
            for kept in stored where kept.name == notification.name { close(kept.descriptor) }
            stored.removeAll { $0.name == notification.name }
        }
        guard let descriptor = notification.descriptor else { return }
        if notification.stores, stored.count < Self.storedMax {
            stored.append((notification.name, descriptor))
        } else {
            close(descriptor)
        }
    }

    /// Notes that the process has ended and plans its next start.
    mutating func ended(now: UInt64, foundDamage: Bool = false) {
        pid = 0
        damagedStarts = foundDamage && !isReady ? damagedStarts + 1 : 0
        isReady = false
        if now - startedAt >= Self.stableMilliseconds {
            restartDelay = 0
        } else {
            restartDelay = min(Self.restartDelayMax, max(20, restartDelay * 2))
        }
        restartAt = now + restartDelay
    }

    /// Copies what the daemon has logged to standard error, line by line, behind its name.
    mutating func forwardOutput() {
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while output >= 0 {
            let count = read(output, &buffer, buffer.count)
            if count > 0 {
                partialLine += buffer.prefix(count)
                emitLines(all: partialLine.count > Self.lineBytesMax)
                continue
            }
            if count < 0, errno == EAGAIN || errno == EINTR { return }
            emitLines(all: true)
            close(output)
            output = -1
        }
    }

    private mutating func emitLines(all: Bool) {
        var text: [UInt8] = []
        while let end = partialLine.firstIndex(of: UInt8(ascii: "\n")) {
            text += Array("\(name) | ".utf8) + partialLine[...end]
            partialLine.removeSubrange(...end)
        }
        if all, !partialLine.isEmpty {
            text += Array("\(name) | ".utf8) + partialLine + [UInt8(ascii: "\n")]
            partialLine = []
        }
        guard !text.isEmpty else { return }
        _ = write(2, text, text.count)
    }
}
