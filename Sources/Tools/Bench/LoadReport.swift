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

    init(_ plan: LoadPlan, _ results: [LaneResult], elapsed: Duration) {
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
    }

    private var count: UInt64 { latency.totalCount + UInt64(written) }
    private var rate: Double { seconds > 0 ? Double(count) / seconds : 0 }

    private func milliseconds(_ percentile: Double) -> Double {
        latency.totalCount == 0 ? 0 : Double(latency.valueAtPercentile(percentile)) / 1e6
    }

    private var maximum: Double { latency.totalCount == 0 ? 0 : Double(latency.max) / 1e6 }

    /// Errors are data (a node may be killed on purpose); wrong answers never are, and neither is a
    /// run in which nothing succeeded.
    var status: ExitStatus {
        if wrong > 0 { return .failed }
        return count == 0 ? .unavailable : .done
    }

    var text: String {
        func plural(_ count: Int, _ name: String) -> String {
            "\(count) \(name)\(count == 1 ? "" : "s")"
        }
        func time(_ milliseconds: Double) -> String { "\(JSON.decimal(milliseconds)) ms" }
        var text =
            "\(plan.kind.name): \(plural(plan.clients, "client")), "
            + "\(plural(plan.connections, "connection")), "
            + "\(plural(plan.endpoints.count, "endpoint")), "
            + "keys of \(plan.keySize) B, values of \(plan.valueSize) B, \(plan.keys) keys"
            + (plan.isStale ? ", stale reads" : "") + "\n"
        text +=
            "rate     \(UInt64(rate.rounded()))/s  (\(count) requests in "
            + "\(JSON.decimal(seconds)) s)\n"
        // Loading takes no times.
        if plan.kind != .load {
            text +=
                "latency  p50 \(time(milliseconds(50)))  p95 \(time(milliseconds(95)))  "
                + "p99 \(time(milliseconds(99)))  max \(time(maximum))\n"
        }
        let list = errors.map { "\($0.1) \($0.0)" }.joined(separator: ", ")
        text += "errors   \(list.isEmpty ? "none" : list)\n"
        for (code, _) in errors { text += "         \(code): \(texts[code] ?? "")\n" }
        if wrong > 0 { text += "WRONG    \(wrong) answers\n" }
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
            ("stale", .bool(plan.isStale)), ("seconds", .decimal(seconds)),
            ("count", .number(count)), ("rate_per_second", .decimal(rate)),
            (
                "latency_ms",
                plan.kind == .load
                    ? .null
                    : .object([
                        ("p50", .decimal(milliseconds(50))), ("p95", .decimal(milliseconds(95))),
                        ("p99", .decimal(milliseconds(99))), ("max", .decimal(maximum)),
                    ])
            ),
            ("errors", .object(errors.map { ($0.0, .number(UInt64($0.1))) })),
            ("wrong", .number(UInt64(wrong))),
        ])
    }
}
