// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes
import Glibc

struct WhyArea: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "why", abstract: "Explain what happened, from what the nodes have recorded.",
        subcommands: [WhyLeader.self, WhySlow.self, WhyMember.self, WhyPeer.self])
}

struct WhyLeader: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "leader", abstract: "Say why the present leader leads.",
        usage: "aspen-cli why leader [OPTIONS]",
        discussion: """
            EXAMPLES
              aspen-cli why leader
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        context.write(try await context.client.why(.leader))
        return .done
    }
}

struct WhySlow: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "slow", abstract: "Say where the time of writes goes.",
        usage: "aspen-cli why slow [OPTIONS]",
        discussion: """
            A leader follows one batch of writes at a time through its stages: queue (for the batch \
            before it), hand-over (to the log's thread), log write, fdatasync, network and quorum (from \
            its own sync until a majority has it), apply, answer. Printed are those of the last one to \
            two minutes, then the worst commit of each minute that took more than 100 ms.

            EXAMPLES
              aspen-cli why slow
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        context.write(try await context.client.why(.slow), hasStages: true)
        return .done
    }
}

struct WhyMember: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "member", abstract: "Say why a node is, or is not, a voter in good standing.",
        usage: "aspen-cli why member N [OPTIONS]",
        discussion: """
            EXAMPLES
              aspen-cli why member 3
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The node's number.")
    var node: UInt64

    func prepare() throws {
        if node == 0 { throw CommandFailure.usage("node numbers begin with 1") }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        context.write(try await context.client.why(.member(NodeID(node))))
        return .done
    }
}

extension CommandContext {
    func write(_ explanation: Explanation, hasStages: Bool = false) {
        guard !isJSON else {
            let events = explanation.events.map { event in
                JSON.object([
                    ("wall_time_ms", .number(event.wallMilliseconds)),
                    ("node_id", .number(event.node.rawValue)), ("kind", .string(event.kind)),
                    ("text", .string(event.text)),
                ])
            }
            var fields: [(String, JSON)] = [
                ("answer", .string(explanation.answer)), ("events", .array(events)),
            ]
            if hasStages { fields.append(("stages", .array(explanation.stages.map(Self.json)))) }
            output.write(JSON.object(fields).text + "\n")
            return
        }
        output.write(Display.oneLine(explanation.answer) + "\n")
        if !explanation.stages.isEmpty { output.write(Self.table(explanation.stages)) }
        for event in explanation.events {
            output.write(
                "  \(Self.time(event.wallMilliseconds))  node \(event.node)  "
                    + "\(Display.oneLine(event.kind)): \(Display.oneLine(event.text))\n")
        }
    }

    private static func json(_ times: Explanation.StageTimes) -> JSON {
        .object([
            ("node_id", .number(times.node.rawValue)), ("stage", .string(times.stage)),
            ("count", .number(times.count)), ("sum_ns", .number(nanoseconds(times.sum))),
            ("p50_ns", .number(nanoseconds(times.median))),
            ("p99_ns", .number(nanoseconds(times.p99))),
            ("max_ns", .number(nanoseconds(times.longest))),
        ])
    }

    private static func table(_ stages: [Explanation.StageTimes]) -> String {
        var table = Table([
            .init(title: "LEADER", alignment: .right), .init(title: "STAGE"),
            .init(title: "MEDIAN", alignment: .right), .init(title: "P99", alignment: .right),
            .init(title: "LONGEST", alignment: .right), .init(title: "SHARE", alignment: .right),
        ])
        let sums = Dictionary(stages.map { ($0.node, nanoseconds($0.sum)) }, uniquingKeysWith: &+)
        return table.render(
            stages.map { times in
                let all = max(1, sums[times.node] ?? 1)
                let share = (nanoseconds(times.sum) * 100 + all / 2) / all
                return [
                    "\(times.node)", Display.oneLine(times.stage), time(times.median),
                    time(times.p99), time(times.longest), "\(share) %",
                ]
            })
    }

    private static func time(_ duration: Duration) -> String {
        Display.time(microseconds: nanoseconds(duration) / 1000)
    }

    private static func nanoseconds(_ duration: Duration) -> UInt64 {
        UInt64(max(0, duration / .nanoseconds(1)))
    }

    /// UTC, as 2026-11-24T01:02:03.456Z.
    private static func time(_ milliseconds: UInt64) -> String {
        var seconds = time_t(clamping: milliseconds / 1000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        var buffer = [CChar](repeating: 0, count: 32)
        guard strftime(&buffer, buffer.count, "%Y-%m-%dT%H:%M:%S", &parts) > 0 else { return "?" }
        let text = String(
            decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return text + "." + String(String(milliseconds % 1000 + 1000).dropFirst()) + "Z"
    }
}
