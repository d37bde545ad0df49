// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenBytes
import AspenClient
import AspenTypes
import AspenWire
import GossipClient

struct PeersArea: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "peers", abstract: "Look at the nodes that this node has found.",
        subcommands: [PeersList.self, PeersDNSRecord.self])
}

struct PeersList: NodeCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "Show every node that this node knows of.",
        usage: "aspen-cli peers list [OPTIONS]",
        discussion: """
            Asks aspend-gossip of this node, so it has to run here. STATE is 'connected' for a peer \
            that gossip has a link to; of others it is what the nodes say: alive, suspected, or \
            unknown. `why peer` says what is wrong with one. JSON has the full endpoint ids.

            EXAMPLES
              aspen-cli peers list
              aspen-cli peers list --json | jq -r '.peers[] | select(.reason != "").endpoint_id'
            """)

    @OptionGroup var global: GlobalOptions

    func run(_ context: NodeContext) async throws -> ExitStatus {
        let peers = try await context.peers()
        if context.isJSON {
            let json = JSON.object([("peers", .array(peers.map { .object($0.json) }))])
            context.output.write(json.text + "\n")
        } else if peers.isEmpty {
            context.output.note("no peers")
        } else {
            context.output.write(text(peers, Style(context.output)))
        }
        return .done
    }

    private func text(_ peers: [PeerLine], _ style: Style) -> String {
        var table = Table([
            .init(title: "NODE", alignment: .right), .init(title: "ENDPOINT"),
            .init(title: "FOUND BY"), .init(title: "ADDRESS"), .init(title: "STATE"),
            .init(title: "RTT", alignment: .right), .init(title: "LAST SEEN", alignment: .right),
            .init(title: "VERSION"),
        ])
        return table.render(peers.map(row)) { cell, row, column in
            column == 4 ? style.paint(cell, colour(peers[row])) : cell
        }
    }

    private func row(_ peer: PeerLine) -> [String] {
        [
            peer.node.map { "\($0)" } ?? "-", peer.shortEndpoint,
            peer.sources.isEmpty ? "-" : Display.oneLine(peer.sources.joined(separator: ",")),
            peer.addresses.first.map(Display.oneLine) ?? "-", Display.oneLine(peer.state),
            peer.roundTrip ?? "-", peer.lastSeen ?? "never",
            peer.version.isEmpty ? "-" : Display.oneLine(peer.version),
        ]
    }

    private func colour(_ peer: PeerLine) -> Style.Colour? {
        if peer.isConnected { return .green }
        if peer.standing == "suspected" { return .red }
        return peer.reason.isEmpty ? nil : .yellow
    }
}

// MARK: - This node

/// A command that asks a daemon of this node, and no cluster.
protocol NodeCommand: ParsableCommand {
    var global: GlobalOptions { get }
    func run(_ context: NodeContext) async throws -> ExitStatus
}

/// What a verb that asks this node works with.
struct NodeContext {
    let output: Output
    let isJSON: Bool
    private let directory: String
    private let timeout: Duration

    /// - Throws: `CommandFailure` when the options name a cluster, and no node.
    init(output: Output, _ global: GlobalOptions, environment: (String) -> String?) throws {
        self.output = output
        isJSON = global.isJSON
        timeout = global.timeout.duration
        directory = try global.socketDirectory(environment: environment)
    }

    /// Ascending by node, those without a number last; then by endpoint.
    func peers() async throws -> [PeerLine] {
        let peers = try await GossipClient.peers(
            socket: directory + GossipClient.socketName, on: AspenClient.sharedGroup,
            timeout: timeout)
        return peers.sorted { left, right in
            let (first, second) = (left.node?.rawValue ?? .max, right.node?.rawValue ?? .max)
            return (first, left.endpoint) < (second, right.endpoint)
        }
    }
}

extension GlobalOptions {
    /// Where the sockets of this node's daemons are, with a slash at the end unless it is the working
    /// directory.
    func socketDirectory(environment: (String) -> String?) throws -> String {
        guard ticket == nil else {
            throw CommandFailure.usage(
                "only a node itself knows which peers it has found, and --ticket names a cluster: "
                    + "run this on the node, without --ticket")
        }
        guard case .socket(let path) = try target(environment: environment) else {
            throw CommandFailure.usage(
                "only a node itself knows which peers it has found, and ASPEN_TICKET names a "
                    + "cluster: run this on the node, with --socket or without ASPEN_TICKET")
        }
        return path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
    }
}

// MARK: - How a peer is shown

extension PeerLine {
    var shortEndpoint: String { endpoint.description.prefix(10) + "…" }
    var state: String { isConnected ? "connected" : standing }
    /// Nil: unknown.
    var roundTrip: String? {
        roundTripMicroseconds == 0 ? nil : Display.time(microseconds: roundTripMicroseconds)
    }
    /// Nil: never.
    var lastSeen: String? { lastSeenMilliseconds.map(Display.ago(milliseconds:)) }

    var json: [(String, JSON)] {
        [
            ("node_id", node.map { .number($0.rawValue) } ?? .null),
            ("endpoint_id", .string(endpoint.description)),
            ("found_by", .array(sources.map { .string($0) })),
            ("addresses", .array(addresses.map { .string($0) })),
            ("connected", .bool(isConnected)), ("state", .string(state)),
            ("rtt_us", roundTripMicroseconds == 0 ? .null : .number(roundTripMicroseconds)),
            ("last_seen_ms", lastSeenMilliseconds.map { .number($0) } ?? .null),
            ("version", .string(version)), ("reason", .string(reason)),
        ]
    }
}

extension Display {
    /// "now" for less than a second; 3s ago, 4m ago, 2h ago, 5d ago.
    static func ago(milliseconds: UInt64) -> String {
        let seconds = milliseconds / 1000
        return switch seconds {
        case 0: "now"
        case ..<60: "\(seconds)s ago"
        case ..<3600: "\(seconds / 60)m ago"
        case ..<86_400: "\(seconds / 3600)h ago"
        default: "\(seconds / 86_400)d ago"
        }
    }
}
