// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

extension CommandContext {
    /// Who votes now, and who learns.
    func write(_ change: MembershipChange) {
        if isJSON {
            func numbers(_ nodes: [NodeID]) -> JSON { .array(nodes.map { .number($0.rawValue) }) }
            output.write(
                JSON.object([
                    ("success", .bool(true)), ("voters", numbers(change.voters)),
                    ("learners", numbers(change.learners)), ("log_id", .logID(change.logID)),
                ]).text + "\n")
        } else {
            func names(_ nodes: [NodeID]) -> String {
                nodes.isEmpty ? "none" : nodes.map(\.description).joined(separator: " ")
            }
            output.write("voters: \(names(change.voters)); learners: \(names(change.learners))\n")
        }
    }
}

struct ClusterPromote: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "promote", abstract: "Make a learner a voter.",
        usage: "aspen-cli cluster promote --learner-id N [--replace M] [--wait] [OPTIONS]",
        discussion: """
            The learner must have caught up; else nothing is done, and the exit status is 5. With \
            --replace the voter M leaves the cluster in the same change. --force promotes a learner \
            that is behind, and makes changes after which the cluster may have no quorum: if the \
            nodes that are missing do not come back, it then stops for good.

            EXAMPLES
              aspen-cli cluster promote --learner-id 4
              aspen-cli cluster promote --learner-id 4 --replace 2 --wait --timeout 10m
            """)

    @OptionGroup var global: GlobalOptions

    @Option(help: "The learner's number.")
    var learnerId: UInt64

    @Option(help: "The voter that it replaces.")
    var replace: UInt64?

    @Flag(help: "Wait until it has caught up, as long as --timeout allows.")
    var wait = false

    @Flag(help: "Even if it is behind, or the cluster may lose its quorum.")
    var force = false

    private static let pause = Duration.milliseconds(200)

    func prepare() throws {
        if learnerId == 0 || replace == 0 {
            throw CommandFailure.usage("node numbers begin with 1")
        }
        if learnerId == replace { throw CommandFailure.usage("a node cannot replace itself") }
        if force, wait { throw CommandFailure.usage("--force does not wait: leave --wait out") }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let (learner, replaced) = (NodeID(learnerId), replace.map { NodeID($0) })
        if wait {
            context.write(
                try await Self.whenCaughtUp(
                    learner, replacing: replaced, context, within: global.timeout.duration))
        } else {
            context.write(
                try await context.client.promoteLearner(
                    learner, replacing: replaced, force: force))
        }
        return .done
    }

    /// Asks again while the learner has not caught up.
    static func whenCaughtUp(
        _ learner: NodeID, replacing replaced: NodeID?, _ context: CommandContext,
        within limit: Duration
    ) async throws -> MembershipChange {
        let end = ContinuousClock.now + limit
        while true {
            do {
                return try await context.client.promoteLearner(learner, replacing: replaced)
            } catch {
                guard error.code == .preconditionFailed, ContinuousClock.now + pause < end else {
                    throw error
                }
            }
            try await Task.sleep(for: pause)
        }
    }
}

struct ClusterTransfer: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "transfer", abstract: "Hand leadership over to another voter.",
        usage: "aspen-cli cluster transfer [--to N] [OPTIONS]",
        discussion: """
            Without --to, to the voter that is furthest. Prints the new leader's number. Writes wait \
            a moment meanwhile; none is lost.

            EXAMPLES
              aspen-cli cluster transfer
              aspen-cli cluster transfer --to 2
            """)

    @OptionGroup var global: GlobalOptions

    @Option(help: "The number of the node that is to lead.")
    var to: UInt64?

    func prepare() throws {
        if to == 0 { throw CommandFailure.usage("node numbers begin with 1") }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let leader = try await context.client.transferLeadership(to: to.map { NodeID($0) })
        let node = leader.node?.rawValue ?? 0
        context.output.write(
            context.isJSON
                ? JSON.object([
                    ("leader_id", .number(node)), ("term", .number(leader.term.rawValue)),
                ])
                .text + "\n" : "\(node)\n")
        if let to, to != node {
            context.output.note("an election came in between: node \(node) leads, not node \(to)")
            return .failed
        }
        return .done
    }
}

struct ClusterLeave: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "leave", abstract: "Take the node asked out of the cluster.",
        usage: "aspen-cli cluster leave [OPTIONS]",
        discussion: """
            A leader hands over first. Afterwards the node can be stopped; to use it again, empty its \
            data directory. A departure after which no majority of the voters would be up is refused; \
            --force makes it all the same, and the cluster may then stop for good.

            EXAMPLES
              aspen-cli cluster leave
            """)

    @OptionGroup var global: GlobalOptions

    @Flag(help: "Even if the cluster may lose its quorum by it.")
    var force = false

    func run(_ context: CommandContext) async throws -> ExitStatus {
        context.write(try await context.client.leaveCluster(force: force))
        return .done
    }
}

struct ClusterRemove: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove", abstract: "Take a node out of the cluster, up or down.",
        usage: "aspen-cli cluster remove --node-id N [OPTIONS]",
        discussion: """
            For a machine that is gone, or one that was wiped and is to be added again. The rules are \
            those of `cluster leave`.

            EXAMPLES
              aspen-cli cluster remove --node-id 3
            """)

    @OptionGroup var global: GlobalOptions

    @Option(help: "The node's number.")
    var nodeId: UInt64

    @Flag(help: "Even if the cluster may lose its quorum by it.")
    var force = false

    func prepare() throws {
        if nodeId == 0 { throw CommandFailure.usage("node numbers begin with 1") }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        context.write(try await context.client.leaveCluster(NodeID(nodeId), force: force))
        return .done
    }
}

struct ClusterMembers: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "members", abstract: "List the members: who votes, and how far each is.",
        usage: "aspen-cli cluster members [OPTIONS]",
        discussion: """
            EXAMPLES
              aspen-cli cluster members
              aspen-cli cluster members --json | jq '.members[] | select(.voter | not).node_id'
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let nodes = try await context.client.clusterStatus().nodes
        guard !context.isJSON else {
            let members = nodes.map { node in
                JSON.object([
                    ("node_id", .number(node.node.rawValue)), ("voter", .bool(node.isVoter)),
                    ("reachable", .bool(node.isReachable)), ("lag", .number(node.lag)),
                    ("endpoint_id", .string(node.endpointID)),
                    ("addresses", .array(node.addresses.map { .string($0) })),
                ])
            }
            context.output.write(JSON.object([("members", .array(members))]).text + "\n")
            return .done
        }
        var table = Table([
            .init(title: "NODE", alignment: .right), .init(title: "VOTER"), .init(title: "STATE"),
            .init(title: "LAG", alignment: .right), .init(title: "ADDRESSES"),
        ])
        let rows = nodes.map { node in
            [
                "\(node.node)", node.isVoter ? "yes" : "no",
                node.isReachable ? "up" : "unreachable",
                node.isReachable ? "\(node.lag)" : "-",
                node.addresses.isEmpty
                    ? "-" : Display.oneLine(node.addresses.joined(separator: " ")),
            ]
        }
        context.output.write(table.render(rows))
        return .done
    }
}

struct ClusterMetrics: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "metrics", abstract: "Show the figures of the node asked.",
        usage: "aspen-cli cluster metrics [OPTIONS]",
        discussion: """
            EXAMPLES
              aspen-cli cluster metrics
              aspen-cli cluster metrics --json | jq .term
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let raft = try await context.client.raftMetrics()
        let metrics = try await context.client.metrics()
        context.output.write(context.isJSON ? json(raft, metrics) : text(raft, metrics))
        return .done
    }

    private func json(_ raft: RaftMetrics, _ metrics: [Metric]) -> String {
        JSON.object([
            ("role", .string(raft.role)), ("term", .number(raft.term.rawValue)),
            ("leader_id", raft.leader.map { .number($0.rawValue) } ?? .null),
            ("last_log_term", .number(raft.lastLogTerm.rawValue)),
            ("last_log_index", .number(raft.lastLogIndex.rawValue)),
            ("commit", .number(raft.commit.rawValue)), ("applied", .number(raft.applied.rawValue)),
            ("snapshot_index", .number(raft.snapshotIndex.rawValue)),
            (
                "progress",
                .array(
                    raft.progress.map { peer in
                        .object([
                            ("node_id", .number(peer.node.rawValue)),
                            ("matched", .number(peer.matched.rawValue)),
                            ("voter", .bool(peer.isVoter)), ("linked", .bool(peer.isLinked)),
                            ("lag", .number(peer.lag)),
                        ])
                    })
            ),
            ("metrics", .object(metrics.map { ($0.name, .decimal($0.value)) })),
        ]).text + "\n"
    }

    private func text(_ raft: RaftMetrics, _ metrics: [Metric]) -> String {
        var table = Table([.init(title: "METRIC"), .init(title: "VALUE", alignment: .right)])
        return "\(raft.role) in term \(raft.term), last entry \(raft.lastLogIndex) of term "
            + "\(raft.lastLogTerm), first entry \(raft.snapshotIndex.next), "
            + "committed \(raft.commit), applied \(raft.applied)\n\n"
            + table.render(metrics.map { [Display.oneLine($0.name), Prometheus.number($0.value)] })
    }
}

struct ClusterPrometheus: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "prometheus", abstract: "Print the node's figures in Prometheus' text format.",
        usage: "aspen-cli cluster prometheus [OPTIONS]",
        discussion: """
            EXAMPLES
              aspen-cli cluster prometheus > /var/lib/prometheus/node-exporter/aspen.prom
            """)

    @OptionGroup var global: GlobalOptions

    func prepare() throws {
        guard !global.isJSON else {
            throw CommandFailure.usage(
                "Prometheus' text format is the only one here: `aspen-cli cluster metrics -o json` "
                    + "prints the same figures as JSON")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        context.output.write(Prometheus.text(try await context.client.metrics()))
        return .done
    }
}

/// The text exposition format, version 0.0.4.
enum Prometheus {
    static func text(_ metrics: [Metric]) -> String {
        var text = ""
        var family = ""
        for metric in metrics {
            let name = self.family(of: metric)
            if name != family {
                family = name
                text += "# HELP \(name) \(Display.oneLine(metric.help))\n# TYPE \(name) "
                text += "\(metric.kind)\n"
            }
            text += "\(Display.oneLine(metric.name)) \(number(metric.value))\n"
        }
        return text
    }

    private static func family(of metric: Metric) -> String {
        let name = metric.name.prefix { $0 != "{" }
        guard ["histogram", "summary"].contains(metric.kind) else { return String(name) }
        for ending in ["_bucket", "_sum", "_count"] where name.hasSuffix(ending) {
            return String(name.dropLast(ending.count))
        }
        return String(name)
    }

    static func number(_ value: Double) -> String {
        if value.magnitude < 1e15, value == value.rounded() { return "\(Int64(value))" }
        return "\(value)"
    }
}
