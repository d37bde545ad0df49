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
        commandName: "slow", abstract: "Say what made commits slow.",
        usage: "aspen-cli why slow [OPTIONS]",
        discussion: """
            The worst commit of each minute that took more than 100 ms, by stages: queue, log write \
            and sync, network and quorum, apply.

            EXAMPLES
              aspen-cli why slow
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        context.write(try await context.client.why(.slow))
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
    func write(_ explanation: Explanation) {
        guard !isJSON else {
            let events = explanation.events.map { event in
                JSON.object([
                    ("wall_time_ms", .number(event.wallMilliseconds)),
                    ("node_id", .number(event.node.rawValue)), ("kind", .string(event.kind)),
                    ("text", .string(event.text)),
                ])
            }
            output.write(
                JSON.object([("answer", .string(explanation.answer)), ("events", .array(events))])
                    .text + "\n")
            return
        }
        output.write(Display.oneLine(explanation.answer) + "\n")
        for event in explanation.events {
            output.write(
                "  \(Self.time(event.wallMilliseconds))  node \(event.node)  "
                    + "\(Display.oneLine(event.kind)): \(Display.oneLine(event.text))\n")
        }
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
