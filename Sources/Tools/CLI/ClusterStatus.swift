// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct ClusterStatusVerb: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show all members.",
        usage: "aspen-cli cluster status [OPTIONS]",
        discussion: """
            LAG is how many entries a node is behind the leader. JSON has the full endpoint ids.

            EXAMPLES
              aspen-cli cluster status
              aspen-cli cluster status --json | jq -r '.nodes[] | select(.is_leader).node_id'
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let status = try await context.client.clusterStatus()
        if context.isJSON {
            context.output.write(json(status).text + "\n")
        } else {
            context.output.write(text(status, Style(context.output)))
        }
        return .done
    }

    private func json(_ status: ClusterStatus) -> JSON {
        .object([
            ("cluster_id", .string(status.clusterID)),
            ("term", .number(status.term.rawValue)),
            ("leader_id", status.leader.map { .number($0.rawValue) } ?? .null),
            ("revision", .number(status.revision.rawValue)),
            ("nodes", .array(status.nodes.map { json($0, leader: status.leader) })),
        ])
    }

    private func json(_ node: NodeStatus, leader: NodeID?) -> JSON {
        .object([
            ("node_id", .number(node.node.rawValue)), ("role", .string(node.role)),
            ("is_leader", .bool(node.node == leader)), ("is_voter", .bool(node.isVoter)),
            ("reachable", .bool(node.isReachable)), ("term", .number(node.term.rawValue)),
            ("applied", .number(node.applied.rawValue)), ("lag", .number(node.lag)),
            ("endpoint_id", .string(node.endpointID)),
            ("addresses", .array(node.addresses.map { .string($0) })),
            ("version", .string(node.version)), ("data_bytes", .number(node.dataBytes)),
        ])
    }

    private func text(_ status: ClusterStatus, _ style: Style) -> String {
        let leader = status.leader.map { "node \($0)" } ?? "none"
        var table = Table([
            .init(title: "NODE", alignment: .right), .init(title: "ROLE"),
            .init(title: "TERM", alignment: .right), .init(title: "APPLIED", alignment: .right),
            .init(title: "LAG", alignment: .right), .init(title: "ENDPOINT"),
            .init(title: "VERSION"), .init(title: "DATA", alignment: .right),
        ])
        let rows = table.render(status.nodes.map(row)) { cell, row, column in
            column == 1 ? style.paint(cell, colour(status.nodes[row])) : cell
        }
        return "cluster \(status.clusterID), term \(status.term), leader \(leader), "
            + "revision \(status.revision)\n\n" + rows
    }

    /// What an unreachable node would say of itself is not known.
    private func row(_ node: NodeStatus) -> [String] {
        let isKnown = node.isReachable
        let endpoint =
            (node.endpointID.isEmpty ? [] : [node.endpointID.prefix(10) + "…"])
            + node.addresses.prefix(1)
        return [
            "\(node.node)", node.role, isKnown ? "\(node.term)" : "-",
            isKnown ? "\(node.applied)" : "-", isKnown ? "\(node.lag)" : "-",
            endpoint.isEmpty ? "-" : Display.oneLine(endpoint.joined(separator: "@")),
            node.version.isEmpty ? "-" : Display.oneLine(node.version),
            isKnown ? Display.size(node.dataBytes) : "-",
        ]
    }

    private func colour(_ node: NodeStatus) -> Style.Colour? {
        if !node.isReachable { return .red }
        return switch node.role {
        case "leader": .green
        case "candidate": .yellow
        default: nil
        }
    }
}
