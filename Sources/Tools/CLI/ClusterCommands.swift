// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct ClusterArea: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "cluster", abstract: "Look at the cluster and change its members.",
        subcommands: [
            ClusterStatusVerb.self, ClusterHealth.self, ClusterLeader.self, ClusterTicket.self,
            ClusterEndpoint.self, ClusterInitVerb.self, ClusterAddLearner.self,
            ClusterPromote.self, ClusterChangeMembership.self, ClusterTransfer.self,
            ClusterLeave.self, ClusterRemove.self, ClusterMembers.self, ClusterMetrics.self,
            ClusterPrometheus.self, ClusterBackup.self, ClusterRestore.self, ClusterRecover.self,
            ClusterSnapshot.self, ClusterTrustRoot.self,
        ])
}

struct ClusterHealth: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "health", abstract: "Say whether the node asked can serve.",
        usage: "aspen-cli cluster health [OPTIONS]",
        discussion: """
            'healthy' is exit status 0. 'degraded' serves, but a quorum is one failure away: status 0, \
            or 1 with --strict. 'unavailable' is 6.

            EXAMPLES
              aspen-cli cluster health
              until aspen-cli cluster health >/dev/null 2>&1; do sleep 1; done
            """)

    @OptionGroup var global: GlobalOptions

    @Flag(help: "Exit status 1 when degraded.")
    var strict = false

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
        return switch health.status {
        case .healthy: .done
        case .degraded: strict ? .failed : .done
        case .unavailable: .unavailable
        }
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
            // A node outside of any cluster knows of no term; it says what to do when asked for members.
            if leader.term == .zero { _ = try await context.client.clusterStatus() }
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

struct ClusterEndpoint: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "endpoint", abstract: "Print who the node asked is and where it is reached.",
        usage: "aspen-cli cluster endpoint [OPTIONS]",
        discussion: """
            One word, NODE@ENDPOINT@ADDRESS:PORT, as `cluster add-learner` and node.peers take it. \
            The node need not be a member of a cluster.

            EXAMPLES
              aspen-cli cluster endpoint
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let node = try await context.identifiedNode()
        let endpoint = node.endpointID
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("node_id", .number(node.node.rawValue)), ("endpoint_id", .string(endpoint)),
                    ("addresses", .array(node.addresses.map { .string($0) })),
                ]).text + "\n")
        } else {
            let parts = ["\(node.node)", endpoint] + node.addresses
            context.output.write(parts.joined(separator: "@") + "\n")
        }
        return .done
    }
}

extension CommandContext {
    private static let triesMax = 30
    private static let pause = Duration.milliseconds(100)

    /// The node asked, once it knows who it is, and where: just started, it may not have asked its net yet,
    /// nor that its gossip where the interfaces are. One that nobody tells has no address.
    func identifiedNode() async throws -> NodeStatus {
        for attempt in 1...Self.triesMax {
            let node = try await client.nodeInfo().status
            if !node.endpointID.isEmpty, !node.addresses.isEmpty || attempt == Self.triesMax {
                return node
            }
            try await Task.sleep(for: Self.pause)
        }
        throw AspenError(
            .unavailable,
            "this node has no connection to its aspend-net yet: see `systemctl status aspend-net`, and "
                + "ask again", retry: .safe)
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
        usage: """
            aspen-cli cluster add-learner NODE@ENDPOINT@ADDRESS:PORT [OPTIONS]
                   aspen-cli cluster add-learner --node-id N [--endpoint ID --addr ADDRESS:PORT ...] [OPTIONS]
            """,
        discussion: """
            `cluster endpoint` on the new node prints the one word that names it. Without it and \
            without --endpoint, the node is the one that the leader's --peers name with this number, or \
            that was found and calls itself so (`aspen-cli peers list`).

            EXAMPLES
              aspen-cli cluster add-learner 2@ENDPOINT@192.0.2.2:7700
              aspen-cli cluster add-learner --node-id 2
              aspen-cli cluster add-learner --node-id 2 --endpoint ENDPOINT --addr 192.0.2.2:7700
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The new node, as `cluster endpoint` prints it there.")
    var peer: String?

    @Option(help: "The new node's number.")
    var nodeId: UInt64?

    @Option(help: "Its endpoint id.")
    var endpoint: String?

    @Option(help: "Where it can be dialled, ADDRESS:PORT; may be repeated.")
    var addr: [String] = []

    @Flag(help: "Wait until it has caught up, as long as --timeout allows, then make it a voter.")
    var autoPromote = false

    func prepare() throws { _ = try learner() }

    private func learner() throws -> (node: NodeID, endpoint: String?, addresses: [String]) {
        if let peer {
            guard nodeId == nil, endpoint == nil, addr.isEmpty else {
                throw CommandFailure.usage("name the node by one word, or by options: not by both")
            }
            let parts = peer.split(separator: "@").map(String.init)
            guard parts.count >= 2, let number = parts.first.flatMap(UInt64.init), number > 0
            else {
                throw CommandFailure.usage(
                    "'\(peer)' is not NODE@ENDPOINT@ADDRESS:PORT, as `aspen-cli cluster endpoint` "
                        + "prints it on the new node")
            }
            return (NodeID(number), parts[1], Array(parts.dropFirst(2)))
        }
        guard let nodeId else {
            throw CommandFailure.usage(
                "name the node: by the word that `aspen-cli cluster endpoint` prints there, or with "
                    + "--node-id")
        }
        if nodeId == 0 { throw CommandFailure.usage("node numbers begin with 1") }
        if endpoint == nil, !addr.isEmpty {
            throw CommandFailure.usage("--addr belongs to an --endpoint: name that too")
        }
        return (NodeID(nodeId), endpoint, addr)
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let learner = try learner()
        let logID = try await context.client.addLearner(
            learner.node, endpointID: learner.endpoint, addresses: learner.addresses)
        if autoPromote {
            let change = try await ClusterPromote.whenCaughtUp(
                learner.node, replacing: nil, context, within: global.timeout.duration)
            context.write(change)
            return .done
        }
        if context.isJSON {
            context.output.write(
                JSON.object([("success", .bool(true)), ("log_id", .logID(logID))]).text + "\n")
        } else {
            context.output.write("node \(learner.node) is a learner\n")
        }
        return .done
    }
}

struct ClusterChangeMembership: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "change-membership", abstract: "Make exactly these nodes the voters.",
        usage: "aspen-cli cluster change-membership N ... [OPTIONS]",
        discussion: """
            Each has to be a member already. Voters left out leave the cluster. A change after which \
            no majority of the voters would be up and caught up is refused; --force makes it all the \
            same, and if those that are missing do not come back, the cluster stops for good.

            EXAMPLES
              aspen-cli cluster change-membership 1 2 3
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The numbers of the voters.")
    var nodes: [UInt64]

    @Flag(help: "Even if the cluster may lose its quorum by it.")
    var force = false

    func prepare() throws {
        if nodes.contains(0) { throw CommandFailure.usage("node numbers begin with 1") }
        if Set(nodes).count != nodes.count {
            throw CommandFailure.usage("a node is named twice")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let change = try await context.client.changeMembership(
            voters: nodes.map { NodeID($0) }, force: force)
        context.write(change)
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
