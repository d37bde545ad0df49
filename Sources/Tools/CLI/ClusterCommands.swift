// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct ClusterArea: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "cluster", abstract: "Look at the cluster and change its members.",
        subcommands: [
            ClusterStatusVerb.self, ClusterHealth.self, ClusterLeader.self, ClusterTicket.self,
            ClusterInitVerb.self, ClusterAddLearner.self, ClusterChangeMembership.self,
            ClusterSnapshot.self,
        ])
}

struct ClusterHealth: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "health", abstract: "Say whether the node asked can serve.",
        usage: "aspen-cli cluster health [OPTIONS]",
        discussion: """
            'degraded' serves, but a quorum is one failure away. 'unavailable' is exit status 6.

            EXAMPLES
              aspen-cli cluster health
              until aspen-cli cluster health >/dev/null 2>&1; do sleep 1; done
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let health = try await context.client.health()
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("status", .string(health.status.rawValue)),
                    ("detail", .string(health.detail)), ("node_id", .number(health.node.rawValue)),
                ]).text + "\n")
        } else {
            let detail = health.detail.isEmpty ? "" : ": \(Display.oneLine(health.detail))"
            context.output.write("\(health.status.rawValue)\(detail)\n")
        }
        return health.status == .unavailable ? .unavailable : .done
    }
}

struct ClusterLeader: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "leader", abstract: "Print the number of the leading node.",
        usage: "aspen-cli cluster leader [OPTIONS]",
        discussion: """
            No leader is exit status 6.

            EXAMPLES
              aspen-cli cluster leader
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let leader = try await context.client.leader()
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("leader_id", leader.node.map { .number($0.rawValue) } ?? .null),
                    ("term", .number(leader.term.rawValue)),
                ]).text + "\n")
        }
        guard let node = leader.node else {
            context.output.note(
                "no leader is known in term \(leader.term): an election is going on, or a majority "
                    + "of the voters cannot be reached; see `aspen-cli cluster status`")
            return .unavailable
        }
        if !context.isJSON { context.output.write("\(node)\n") }
        return .done
    }
}

struct ClusterTicket: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "ticket", abstract: "Print the cluster's ticket.",
        usage: "aspen-cli cluster ticket [OPTIONS]",
        discussion: """
            A ticket tells clients elsewhere how to reach the cluster. It holds no secret.

            EXAMPLES
              export ASPEN_TICKET=$(aspen-cli cluster ticket)
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let ticket = try await context.client.ticket()
        context.output.write(
            (context.isJSON ? JSON.object([("ticket", .string(ticket))]).text : ticket) + "\n")
        return .done
    }
}

struct ClusterInitVerb: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "init", abstract: "Make the node asked the first member of a new cluster.",
        usage: "aspen-cli cluster init [OPTIONS]",
        discussion: """
            EXAMPLES
              aspen-cli cluster init
              aspen-cli cluster add-learner --node-id 2
              aspen-cli cluster change-membership 1 2
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let answer = try await context.client.initCluster()
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("success", .bool(true)), ("cluster_id", .string(answer.clusterID)),
                    ("node_id", .number(answer.node.rawValue)),
                ]).text + "\n")
        } else {
            context.output.write(
                "cluster \(answer.clusterID) begins with node \(answer.node)\n")
        }
        return .done
    }
}

struct ClusterAddLearner: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "add-learner", abstract: "Add a node that receives the log but has no vote.",
        usage:
            "aspen-cli cluster add-learner --node-id N [--endpoint ID --addr ADDRESS:PORT ...] [OPTIONS]",
        discussion: """
            Without --endpoint the node is the one that the leader's --peers name with this number.

            EXAMPLES
              aspen-cli cluster add-learner --node-id 2
              aspen-cli cluster add-learner --node-id 2 --endpoint ENDPOINT --addr 192.0.2.2:7001
            """)

    @OptionGroup var global: GlobalOptions

    @Option(help: "The new node's number.")
    var nodeId: UInt64

    @Option(help: "Its endpoint id.")
    var endpoint: String?

    @Option(help: "Where it can be dialled, ADDRESS:PORT; may be repeated.")
    var addr: [String] = []

    func prepare() throws {
        if nodeId == 0 { throw CommandFailure.usage("node numbers begin with 1") }
        if endpoint == nil, !addr.isEmpty {
            throw CommandFailure.usage("--addr belongs to an --endpoint: name that too")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let logID = try await context.client.addLearner(
            NodeID(nodeId), endpointID: endpoint, addresses: addr)
        if context.isJSON {
            context.output.write(
                JSON.object([("success", .bool(true)), ("log_id", .logID(logID))]).text + "\n")
        } else {
            context.output.write("node \(nodeId) is a learner\n")
        }
        return .done
    }
}

struct ClusterChangeMembership: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "change-membership", abstract: "Make exactly these nodes the voters.",
        usage: "aspen-cli cluster change-membership N ... [OPTIONS]",
        discussion: """
            Each has to be a member already. Voters left out become learners.

            EXAMPLES
              aspen-cli cluster change-membership 1 2 3
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The numbers of the voters.")
    var nodes: [UInt64]

    func prepare() throws {
        if nodes.contains(0) { throw CommandFailure.usage("node numbers begin with 1") }
        if Set(nodes).count != nodes.count {
            throw CommandFailure.usage("a node is named twice")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let change = try await context.client.changeMembership(voters: nodes.map { NodeID($0) })
        if context.isJSON {
            func numbers(_ nodes: [NodeID]) -> JSON { .array(nodes.map { .number($0.rawValue) }) }
            context.output.write(
                JSON.object([
                    ("success", .bool(true)), ("voters", numbers(change.voters)),
                    ("learners", numbers(change.learners)), ("log_id", .logID(change.logID)),
                ]).text + "\n")
        } else {
            func names(_ nodes: [NodeID]) -> String {
                nodes.isEmpty ? "none" : nodes.map(\.description).joined(separator: " ")
            }
            context.output.write(
                "voters: \(names(change.voters)); learners: \(names(change.learners))\n")
        }
        return .done
    }
}

struct ClusterSnapshot: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "snapshot", abstract: "Make the node asked persist its state now.",
        usage: "aspen-cli cluster snapshot [OPTIONS]",
        discussion: """
            Its log can be trimmed up to the index printed. Nodes do this by themselves; it is never \
            needed in daily life.

            EXAMPLES
              aspen-cli cluster snapshot
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let index = try await context.client.triggerSnapshot()
        context.output.write(
            context.isJSON
                ? JSON.object([("success", .bool(true)), ("index", .number(index.rawValue))]).text
                    + "\n"
                : "state is durable up to index \(index)\n")
        return .done
    }
}
