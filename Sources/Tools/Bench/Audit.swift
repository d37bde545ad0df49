// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenCLI
import AspenClient
import AspenTypes

/// `aspen-bench audit`: load whose every answer is remembered, and checked when it is over.
///
/// Each client alternates four operations through the node it was given: a new key (must be there at
/// the end), its own register (a read must never show less than it had acknowledged, nor anything it
/// never wrote), an increment of a shared counter by compare-and-set (the final count must lie
/// between the acknowledged increments and those plus the unknown ones), and a read of another
/// client's register (must never go back). Somebody else breaks the cluster meanwhile.
struct Audit: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "audit",
        abstract: "Write while somebody breaks the cluster, then check every acknowledged write.")

    @Option(help: "Sockets of the nodes; clients are spread over them.") var socket: [String] = []
    @Option(help: "Concurrent clients.") var clients = 20
    @Option(help: "Seconds of load; SIGINT or SIGTERM ends it early.") var duration = 60
    @Flag(help: "Clients go to another node when theirs has left the cluster.")
    var roam = false
    @Option(help: "Sockets of nodes that need not answer at the end.") var leaver: [String] = []
    @Option(help: "Begins the keys' names.") var prefix = "audit/"

    private func sockets(of number: Int) -> [String] {
        let first = number % socket.count
        return roam ? Array(socket[first...] + socket[..<first]) : [socket[first]]
    }

    /// - Returns: the exit status: 0 when nothing acknowledged is missing or wrong, else 1.
    func audit() async throws -> Int32 {
        guard !socket.isEmpty, clients > 0 else {
            throw CommandFailure.usage("name at least one --socket, and one client")
        }
        Interruption.watch()
        let start = ContinuousClock.now
        let end = start + .seconds(duration)
        let reports = await withTaskGroup(of: AuditReport.self) { group in
            for number in 0..<clients {
                group.addTask {
                    let client = AuditClient(
                        number: number, of: clients, prefix: prefix,
                        sockets: sockets(of: number))
                    return await client.run(until: end)
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        let ended = min(end, .now)
        var total = reports.reduce(into: AuditReport()) { $0.merge($1) }
        for path in socket where !leaver.contains(path) {
            await AuditCheck(prefix: prefix, socket: path).run(reports, into: &total)
        }
        let gap = total.longestGap(from: start, to: ended)
        print(
            """
            {"acknowledged":\(total.acknowledged),"unknown":\(total.unknown),\
            "refused":\(total.refused),"reads":\(total.reads),\
            "longest_gap_ms":\(gap.milliseconds),"longest_gap_ends_at_ms":\(gap.end),\
            "violations":\(total.violations.count)}
            """)
        for violation in total.violations.prefix(20) { print("VIOLATION \(violation)") }
        return total.violations.isEmpty ? 0 : 1
    }
}

/// What one client did and saw.
struct AuditReport: Sendable {
    /// Keys acknowledged, and their values.
    var keys: [String: String] = [:]
    var register: (number: Int, acknowledged: Int, attempted: Int) = (0, 0, 0)
    var increments = (acknowledged: 0, unknown: 0)
    var acknowledged = 0
    var unknown = 0
    var refused = 0
    var reads = 0
    var violations: [String] = []
    var acknowledgedAt: [ContinuousClock.Instant] = []

    mutating func merge(_ other: AuditReport) {
        increments.acknowledged += other.increments.acknowledged
        increments.unknown += other.increments.unknown
        acknowledged += other.acknowledged
        unknown += other.unknown
        refused += other.refused
        reads += other.reads
        violations += other.violations
        acknowledgedAt += other.acknowledgedAt
    }

    /// The longest time in which no client anywhere got a write through, and when it ended; both in
    /// milliseconds, the latter since `start`.
    func longestGap(
        from start: ContinuousClock.Instant, to end: ContinuousClock.Instant
    ) -> (milliseconds: Int64, end: Int64) {
        func milliseconds(_ duration: Duration) -> Int64 {
            let (seconds, attoseconds) = duration.components
            return seconds * 1000 + attoseconds / 1_000_000_000_000_000
        }
        var last = start
        var longest = (duration: Duration.zero, end: start)
        for instant in acknowledgedAt.sorted() + [end] {
            if instant - last > longest.duration { longest = (instant - last, instant) }
            last = instant
        }
        return (milliseconds(longest.duration), milliseconds(longest.end - start))
    }
}

private struct AuditClient {
    let number: Int
    let of: Int
    let prefix: String
    let sockets: [String]

    func run(until end: ContinuousClock.Instant) async -> AuditReport {
        var report = AuditReport()
        report.register.number = number
        var options = AspenClient.Options()
        options.timeout = .seconds(10)
        var connected: AspenClient?
        while connected == nil, ContinuousClock.now < end, !Interruption.isSet {
            connected = try? await AspenClient.connect(.sockets(sockets), options: options)
        }
        guard let client = connected else {
            report.violations.append("client \(number) never reached \(sockets)")
            return report
        }
        var seen: [Int: Int] = [:]
        var turn = 0
        while ContinuousClock.now < end, !Interruption.isSet {
            turn += 1
            switch turn % 4 {
            case 0: await writeNewKey(client, turn, &report)
            case 1: await writeRegister(client, &report)
            case 2: await increment(client, &report)
            default: await readRegister(client, (number + turn / 4) % of, &seen, &report)
            }
        }
        await client.close()
        return report
    }

    private func note(_ error: AspenError, _ report: inout AuditReport) {
        switch error.retry {
        case .safe: report.refused += 1
        case .never, .withSession: report.unknown += 1
        }
    }

    private func acknowledge(_ report: inout AuditReport) {
        report.acknowledged += 1
        report.acknowledgedAt.append(.now)
    }

    private func writeNewKey(
        _ client: AspenClient, _ turn: Int, _ report: inout AuditReport
    ) async {
        let key = "\(prefix)key/\(number)/\(turn)"
        do {
            try await client.set(key, to: "value \(turn)")
            report.keys[key] = "value \(turn)"
            acknowledge(&report)
        } catch { note(error, &report) }
    }

    private func writeRegister(_ client: AspenClient, _ report: inout AuditReport) async {
        let next = report.register.attempted + 1
        report.register.attempted = next
        do {
            try await client.set("\(prefix)register/\(number)", to: String(next))
            report.register.acknowledged = next
            acknowledge(&report)
        } catch { note(error, &report) }
    }

    private func increment(_ client: AspenClient, _ report: inout AuditReport) async {
        let key = Array("\(prefix)counter".utf8)
        do {
            let now = try await client.get(key)
            report.reads += 1
            let count = now.entry.flatMap { Int(String(decoding: $0.value, as: UTF8.self)) } ?? 0
            let revision = now.entry?.modRevision ?? .zero
            do {
                let done = try await client.transaction(
                    if: [Compare(key, .equal, .modRevision(revision))],
                    then: [.put(key: key, value: Array(String(count + 1).utf8))])
                guard done.succeeded else { return }
                report.increments.acknowledged += 1
                acknowledge(&report)
            } catch {
                if error.retry != .safe { report.increments.unknown += 1 }
                note(error, &report)
            }
        } catch { report.refused += 1 }
    }

    private func readRegister(
        _ client: AspenClient, _ other: Int, _ seen: inout [Int: Int],
        _ report: inout AuditReport
    ) async {
        guard let answer = try? await client.get("\(prefix)register/\(other)") else {
            report.refused += 1
            return
        }
        report.reads += 1
        let value = answer.entry.flatMap { Int(String(decoding: $0.value, as: UTF8.self)) } ?? 0
        if let before = seen[other], value < before {
            report.violations.append("register \(other) went from \(before) back to \(value)")
        }
        seen[other] = value
        guard other == number else { return }
        if value < report.register.acknowledged || value > report.register.attempted {
            report.violations.append(
                "register \(number) is \(value), acknowledged was "
                    + "\(report.register.acknowledged), attempted \(report.register.attempted)")
        }
    }
}

/// Reads everything back through one node.
private struct AuditCheck {
    let prefix: String
    let socket: String

    func run(_ reports: [AuditReport], into total: inout AuditReport) async {
        do {
            let client = try await AspenClient.connect(.socket(socket))
            var found: [String: String] = [:]
            for try await page in client.scan(prefix: Array(prefix.utf8)) {
                for entry in page.entries {
                    found[String(decoding: entry.key, as: UTF8.self)] = String(
                        decoding: entry.value, as: UTF8.self)
                }
            }
            await client.close()
            compare(found, reports, &total)
        } catch {
            total.violations.append("\(socket) does not answer after the load: \(error)")
        }
    }

    private func compare(
        _ found: [String: String], _ reports: [AuditReport], _ total: inout AuditReport
    ) {
        for report in reports {
            for (key, value) in report.keys where found[key] != value {
                total.violations.append("\(socket): \(key) is \(found[key] ?? "missing")")
            }
            let key = "\(prefix)register/\(report.register.number)"
            let value = found[key].flatMap { Int($0) } ?? 0
            if value < report.register.acknowledged || value > report.register.attempted {
                total.violations.append(
                    "\(socket): \(key) is \(value), acknowledged "
                        + "\(report.register.acknowledged)")
            }
        }
        let count = found["\(prefix)counter"].flatMap { Int($0) } ?? 0
        let low = total.increments.acknowledged
        let high = low + total.increments.unknown
        if count < low || count > high {
            total.violations.append("\(socket): the counter is \(count), not in \(low)…\(high)")
        }
    }
}
