// SPDX-License-Identifier: GPL-2.0-or-later

import CSystemd
import Glibc
import Logging
import Synchronization

/// Structured log records: to the journal when standard error is connected to it
/// (JOURNAL_STREAM, systemd.exec(5)), else as plain lines on standard error.
///
/// Metadata `peer=…` becomes the journal field `ASPEN_PEER=…`; `event=…` with the name of a
/// `JournalEvent` gives the record its MESSAGE_ID. Each record names this node (`node`).
package struct JournalLogHandler: LogHandler {
    /// The number of this node, once it is known; 0 before.
    private static let node = Atomic<UInt64>(0)

    /// From here on each record says that it is of this node.
    package static func setNode(_ number: UInt64) { node.store(number, ordering: .relaxed) }

    package var metadata: Logger.Metadata = [:]
    package var logLevel: Logger.Level
    private let label: String

    package init(label: String, level: Logger.Level) {
        self.label = label
        logLevel = level
    }

    /// Installs the handler for the whole process, with the level that `setting` names (trace,
    /// debug, info, notice, warning, error, critical); by default, and for other words, info.
    package static func bootstrap(level setting: String?) {
        let level = setting.flatMap { Logger.Level(rawValue: $0.lowercased()) } ?? .info
        LoggingSystem.bootstrap { JournalLogHandler(label: $0, level: level) }
    }

    package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    package func log(event: LogEvent) {
        var fields = metadata
        if let more = event.metadata { fields.merge(more) { _, new in new } }
        let sorted = fields.map { ($0.key, "\($0.value)") }.sorted { $0.0 < $1.0 }
        if Self.isJournalConnected {
            journal(event.level, "\(event.message)", sorted)
        } else {
            plain(event.level, "\(event.message)", sorted)
        }
    }

    private func plain(_ level: Logger.Level, _ message: String, _ fields: [(String, String)]) {
        var line = "\(level.rawValue): \(message)"
        for (name, value) in fields { line += " \(name)=\(value)" }
        line += "\n"
        // One write a line, so that lines of several processes on one terminal do not mix.
        _ = line.withCString { write(2, $0, strlen($0)) }
    }

    private func journal(_ level: Logger.Level, _ message: String, _ fields: [(String, String)]) {
        var records = [
            "MESSAGE=\(message)", "PRIORITY=\(Self.priority(level))",
            "SYSLOG_IDENTIFIER=\(label)",
        ]
        let node = Self.node.load(ordering: .relaxed)
        if node != 0, !fields.contains(where: { $0.0 == "node" }) {
            records.append("ASPEN_NODE=\(node)")
        }
        for (name, value) in fields {
            if name == "event", let event = JournalEvent(rawValue: value) {
                records.append("MESSAGE_ID=\(event.messageID)")
            }
            let field = name.uppercased().map { $0.isLetter || $0.isNumber ? String($0) : "_" }
            records.append("ASPEN_\(field.joined())=\(value)")
        }
        let bytes = records.map { Array($0.utf8) }
        var flat: [UInt8] = []
        for record in bytes { flat += record }
        flat.withUnsafeMutableBytes { base in
            var vectors: [iovec] = []
            var offset = 0
            for record in bytes {
                vectors.append(
                    iovec(
                        iov_base: base.baseAddress.map { $0 + offset }, iov_len: record.count))
                offset += record.count
            }
            _ = sd_journal_sendv(vectors, CInt(vectors.count))
        }
    }

    private static func priority(_ level: Logger.Level) -> Int {
        switch level {
        case .trace, .debug: 7
        case .info: 6
        case .notice: 5
        case .warning: 4
        case .error: 3
        case .critical: 2
        }
    }

    /// Standard error is the stream that JOURNAL_STREAM names (device:inode).
    private static let isJournalConnected: Bool = {
        guard let stream = Environment["JOURNAL_STREAM"] else { return false }
        var status = stat()
        guard fstat(2, &status) == 0 else { return false }
        return stream == "\(status.st_dev):\(status.st_ino)"
    }()
}
