// SPDX-License-Identifier: GPL-2.0-or-later

import AspenCLI
import AspenTypes
import Glibc
import Histogram

/// What a run gave, for people and for programs.
struct LoadReport {
    private let plan: LoadPlan
    private let latency: Histogram<UInt64>
    private let errors: [(String, Int)]
    private let texts: [String: String]
    private let wrong: Int
    private let written: Int
    private let samples: [(start: UInt64, latency: UInt64)]
    private let seconds: Double
    private let perSecond: [Int]
    private let puts: Int
    private let bytes: (sent: UInt64, received: UInt64)
    private let usage: Usage

    /// - Parameter usage: what this process took, its time only while it measured.
    init(_ plan: LoadPlan, _ results: [LaneResult], elapsed: Duration, usage: Usage) {
        self.plan = plan
        var latency = Histogram<UInt64>(numberOfSignificantValueDigits: .three)
        var errors: [String: Int] = [:]
        var texts: [String: String] = [:]
        for result in results {
            for value in result.latency.recordedValues() {
                latency.record(value.value, count: value.count)
            }
            errors.merge(result.errors, uniquingKeysWith: +)
            texts.merge(result.texts) { first, _ in first }
        }
        self.texts = texts
        self.latency = latency
        self.errors = errors.sorted { $0.key < $1.key }
        wrong = results.reduce(0) { $0 + $1.wrong }
        written = results.reduce(0) { $0 + $1.written }
        samples = results.flatMap(\.samples)
        seconds = elapsed / .seconds(1)
        perSecond = Self.perSecond(results.map(\.perSecond), seconds: seconds)
        puts = results.reduce(0) { $0 + $1.puts }
        bytes = results.reduce(into: (0, 0)) {
            $0.0 += $1.bytesSent
            $0.1 += $1.bytesReceived
        }
        self.usage = usage
    }

    private var count: UInt64 { latency.totalCount + UInt64(written) }
    private var rate: Double { seconds > 0 ? Double(count) / seconds : 0 }

    private func milliseconds(_ percentile: Double) -> Double {
        latency.totalCount == 0 ? 0 : Double(latency.valueAtPercentile(percentile)) / 1e6
    }

    /// Of all lanes; whole seconds only: a part of one would look like a collapse.
    static func perSecond(_ lanes: [[Int]], seconds: Double) -> [Int] {
        (0..<Int(seconds)).map { second in
            lanes.reduce(0) { $0 + ($1.indices.contains(second) ? $1[second] : 0) }
        }
    }

    private func perRequest(_ value: Double) -> Double { count > 0 ? value / Double(count) : 0 }

    /// This program's own, in microseconds.
    private var processorTimePerRequest: Double { perRequest(usage.processorSeconds * 1e6) }

    private var maximum: Double { latency.totalCount == 0 ? 0 : Double(latency.max) / 1e6 }

    /// Errors are data (a node may be killed on purpose); wrong answers never are, and neither is a
    /// run in which nothing succeeded.
    var status: ExitStatus {
        if wrong > 0 { return .failed }
        return count == 0 ? .unavailable : .done
    }

    var text: String {
        func plural(_ count: Int, _ name: String, _ names: String? = nil) -> String {
            "\(count) \(count == 1 ? name : names ?? name + "s")"
        }
        func time(_ milliseconds: Double) -> String { "\(JSON.decimal(milliseconds)) ms" }
        var text =
            "\(plan.kind.name): \(plural(plan.clients, "client")), "
            + "\(plural(plan.connections, "connection")), "
            + "\(plural(plan.endpoints.count, "endpoint")), "
            + "keys of \(plan.keySize) B, values of \(plan.valueSize) B, \(plan.keys) keys"
            + (plan.distribution == .uniform ? "" : " (\(plan.distribution.rawValue))")
            + (plan.isStale ? ", stale reads" : "")
            + (plan.watchers > 0 ? ", \(plural(plan.watchers, "watch", "watches"))" : "")
            + (plan.rate.map { ", due at \($0)/s" } ?? "") + "\n"
        text +=
            "rate     \(UInt64(rate.rounded()))/s  (\(count) "
            + (plan.watchers > 0 ? "events of \(puts) puts" : "requests")
            + " in \(JSON.decimal(seconds)) s)\n"
        // Loading takes no times.
        if plan.kind != .load {
            text +=
                "latency  p50 \(time(milliseconds(50)))  p90 \(time(milliseconds(90)))  "
                + "p95 \(time(milliseconds(95)))  p99 \(time(milliseconds(99)))  "
                + "p99.9 \(time(milliseconds(99.9)))  max \(time(maximum))\n"
            if !perSecond.isEmpty {
                text += "seconds  \(perSecond.map(String.init).joined(separator: " "))\n"
            }
            text +=
                "client   \(JSON.decimal(processorTimePerRequest)) µs CPU, "
                + "\(JSON.decimal(perRequest(Double(bytes.sent)))) B sent, "
                + "\(JSON.decimal(perRequest(Double(bytes.received)))) B received a request, "
                + "\(usage.residentBytesMax / 1_000_000) MB resident\n"
        }
        let list = errors.map { "\($0.1) \($0.0)" }.joined(separator: ", ")
        text += "errors   \(list.isEmpty ? "none" : list)\n"
        for (code, _) in errors { text += "         \(code): \(texts[code] ?? "")\n" }
        if wrong > 0 { text += "WRONG    \(wrong) answers\n" }
        if plan.isPlotted, plan.kind != .load {
            let values = latency.recordedValues().map { (Double($0.value) / 1e6, $0.count) }
            text += "\nlatencies\n" + Plot.distribution(values)
            if !perSecond.isEmpty { text += "\nrate\n" + Plot.overTime(perSecond) }
        }
        return text
    }

    /// A line for each request: when it was due, and its latency.
    func writeSamples(to path: String) throws(AspenError) {
        guard let file = fopen(path, "w") else {
            throw AspenError(.storage, "\(path): \(String(cString: strerror(errno)))")
        }
        var text = ""
        var isWhole = true
        for (number, sample) in samples.enumerated() {
            text += "\(sample.start) \(sample.latency)\n"
            guard number % 1024 == 1023 || number == samples.count - 1 else { continue }
            isWhole = fputs(text, file) >= 0 && isWhole
            text = ""
        }
        guard fclose(file) == 0, isWhole else {
            throw AspenError(.storage, "\(path): \(String(cString: strerror(errno)))")
        }
    }

    var json: JSON {
        .object([
            ("operation", .string(plan.kind.name)), ("clients", .number(UInt64(plan.clients))),
            ("connections", .number(UInt64(plan.connections))),
            ("endpoints", .number(UInt64(plan.endpoints.count))),
            ("key_bytes", .number(UInt64(plan.keySize))),
            ("value_bytes", .number(UInt64(plan.valueSize))), ("keys", .number(UInt64(plan.keys))),
            ("distribution", .string(plan.distribution.rawValue)), ("seed", .number(plan.seed)),
            ("stale", .bool(plan.isStale)), ("seconds", .decimal(seconds)),
            ("watchers", .number(UInt64(plan.watchers))), ("puts", .number(UInt64(puts))),
            ("rate_wanted", plan.rate.map { .number(UInt64($0)) } ?? .null),
            ("count", .number(count)), ("rate_per_second", .decimal(rate)),
            (
                "latency_ms",
                plan.kind == .load
                    ? .null
                    : .object([
                        ("p50", .decimal(milliseconds(50))), ("p90", .decimal(milliseconds(90))),
                        ("p95", .decimal(milliseconds(95))), ("p99", .decimal(milliseconds(99))),
                        ("p99_9", .decimal(milliseconds(99.9))), ("max", .decimal(maximum)),
                    ])
            ),
            ("per_second", .array(perSecond.map { .number(UInt64($0)) })),
            (
                "client",
                .object([
                    ("cpu_us_per_request", .decimal(processorTimePerRequest)),
                    ("bytes_sent_per_request", .decimal(perRequest(Double(bytes.sent)))),
                    ("bytes_received_per_request", .decimal(perRequest(Double(bytes.received)))),
                    ("resident_bytes_max", .number(usage.residentBytesMax)),
                ])
            ),
            ("errors", .object(errors.map { ($0.0, .number(UInt64($0.1))) })),
            ("wrong", .number(UInt64(wrong))),
        ])
    }
}
