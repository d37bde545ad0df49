// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import NIOCore

/// Why the process before this one ended.
///
/// A daemon that meets a bad configuration, a full disk or a lost key ends, and systemd starts it
/// again: ten times a second it would fail again, and callers would meet a socket where nobody
/// answers. So it leaves word, in a pipe that systemd keeps (FDSTORE of sd_notify(3)); the next
/// process says in its status and to every caller what is wrong, waits, and then tries. Once what was
/// wrong is mended it needs nobody's help, and no unit ever is `failed`. One that refused to start
/// (see `RefusingService`) ends by itself to be started with secrets read anew, and leaves how often
/// it has done so: its successor tries at once, and waits longer if it has to refuse again.
struct PastFailure: Sendable {
    static let name = "failure"
    /// A daemon that served this long has nothing to do with an earlier failure.
    private static let forgottenAfter = TimeAmount.seconds(60)
    private static let delayMax = 15
    private static let textBytesMax = 2000

    let exit: Int32
    /// How often in a row, this one included.
    let count: Int
    /// Empty after a refusal: whoever comes next finds out for itself.
    let text: String

    var isRefusal: Bool { text.isEmpty }

    /// 1, 2, 4, 8, 15, 15, … s.
    var delaySeconds: Int { Self.delaySeconds(count) }

    /// What a process that refuses to start waits before it ends: 2, 4, 8, 15, 15, … s.
    static func refusalSeconds(after past: PastFailure?) -> Int {
        delaySeconds((past?.count ?? 0) + 2)
    }

    private static func delaySeconds(_ count: Int) -> Int { min(delayMax, 1 << min(count - 1, 4)) }

    static func take(from sockets: inout ActivatedSockets) -> PastFailure? {
        _ = began
        guard let descriptor = sockets.take(name).first else { return nil }
        defer { close(descriptor) }
        Notifier.discard(name: name)
        var bytes = [UInt8](repeating: 0, count: textBytesMax + 200)
        let length = read(descriptor, &bytes, bytes.count)
        guard length > 0 else { return nil }
        return PastFailure(String(decoding: bytes.prefix(length), as: UTF8.self))
    }

    /// "exit count\ntext"
    init?(_ record: String) {
        let lines = record.split(separator: "\n", maxSplits: 1)
        let numbers = lines.first?.split(separator: " ").compactMap { Int($0) } ?? []
        guard numbers.count == 2 else { return nil }
        (exit, count) = (Int32(clamping: numbers[0]), max(1, numbers[1]))
        text = lines.count == 2 ? String(lines[1]) : ""
    }

    private static let began = NIODeadline.now()

    /// Only under a supervisor that keeps descriptors; elsewhere nothing happens.
    static func leave(_ text: String, _ exit: DaemonExit, after past: PastFailure?) {
        var pipes: [CInt] = [-1, -1]
        guard Environment["FDSTORE"] != nil || Environment["SYSTEMD_EXEC_PID"] == String(getpid()),
            pipe(&pipes) == 0
        else { return }
        let isInARow = NIODeadline.now() - began < forgottenAfter
        let count = isInARow ? (past?.count ?? 0) + 1 : 1
        let record = "\(exit.rawValue) \(count)\n" + String(text.prefix(textBytesMax / 4))
        _ = record.withCString { write(pipes[1], $0, strlen($0)) }
        Notifier.keep(pipes[0], name: name)
    }
}
