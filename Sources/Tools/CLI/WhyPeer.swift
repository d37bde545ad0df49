// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenBytes
import AspenTypes
import AspenWire

struct WhyPeer: NodeCommand {
    static let configuration = CommandConfiguration(
        commandName: "peer", abstract: "Say why a node is, or is not, connected to this one.",
        usage: "aspen-cli why peer (N | ENDPOINT) [OPTIONS]",
        discussion: """
            Asks aspend-gossip of this node, so it has to run here. A peer that this node does not \
            know is exit status 3.

            EXAMPLES
              aspen-cli why peer 3
              aspen-cli why peer adqobyha4d
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(
        help: ArgumentHelp(
            "The node's number, its endpoint id, or what `peers list` shows of that.",
            valueName: "node"))
    var name: PeerName

    func run(_ context: NodeContext) async throws -> ExitStatus {
        // Two nodes that were given one number are both shown: that is what is wrong with them.
        let peers = try await context.peers().filter(name.means)
        guard !peers.isEmpty else {
            throw AspenError(
                .notFound,
                "this node has found no \(name): `aspen-cli peers list` shows those that it has; "
                    + "is it running, on a link that mDNS reaches? If not on one, name it with "
                    + "--peers")
        }
        if context.isJSON {
            let answers = peers.map { peer in
                JSON.object([("answer", .string(peer.explanation))] + peer.json)
            }
            context.output.write(JSON.object([("peers", .array(answers))]).text + "\n")
        } else {
            for peer in peers {
                context.output.write(Display.oneLine(peer.explanation) + "\n")
            }
        }
        return .done
    }
}

/// How a person names a peer.
enum PeerName: ExpressibleByArgument, CustomStringConvertible {
    case node(NodeID)
    /// The beginning of an endpoint id, or all of it; lower case.
    case endpoint(String)

    /// As many characters as tables show.
    private static let charactersMin = 10

    /// - Returns: nil for 0 and for what can be neither a number nor an endpoint id.
    init?(argument: String) {
        if let number = UInt64(argument) {
            guard number > 0 else { return nil }
            self = .node(NodeID(number))
            return
        }
        let word = (argument.hasSuffix("…") ? String(argument.dropLast()) : argument).lowercased()
        let isBase32 = word.utf8.allSatisfy { byte in
            (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                || (UInt8(ascii: "2")...UInt8(ascii: "7")).contains(byte)
        }
        let charactersMax = (EndpointID.byteCount * 8 + 4) / 5
        guard isBase32, (Self.charactersMin...charactersMax).contains(word.utf8.count) else {
            return nil
        }
        self = .endpoint(word)
    }

    func means(_ peer: PeerLine) -> Bool {
        switch self {
        case .node(let node): peer.node == node
        case .endpoint(let beginning): peer.endpoint.description.hasPrefix(beginning)
        }
    }

    var description: String {
        switch self {
        case .node(let node): "node \(node)"
        case .endpoint(let word): "endpoint \(word)"
        }
    }
}

extension PeerLine {
    /// One sentence: whether it is connected, else why not and what to do.
    var explanation: String {
        let subject =
            (node.map { "node \($0)" } ?? "a node without a number") + " (\(shortEndpoint))"
        let heard = lastSeen.map { $0 == "now" ? "heard of just now" : "heard of \($0)" }
        let facts = [roundTrip.map { "round trip \($0)" }, heard].compactMap(\.self)
        let known = facts.isEmpty ? "" : " (" + facts.joined(separator: ", ") + ")"
        if isConnected {
            return "\(subject) is connected\(addresses.first.map { " at \($0)" } ?? "")\(known)"
        }
        if !reason.isEmpty {
            let advice = Self.advice(on: reason).map { ": \($0)" } ?? ""
            return "\(subject) is not connected, since \(reason)\(advice)"
        }
        return switch standing {
        case "alive":
            "\(subject) is alive\(known), and gossip with it goes over other nodes: nothing is wrong"
        case "suspected":
            "\(subject) is not connected, and nodes suspect that it is gone\(known): is it running "
                + "(`systemctl status aspend-net aspend-gossip` there)?"
        default:
            "\(subject) is not connected, and has not announced itself yet: ask again in some "
                + "seconds; if that does not change, is aspend-gossip running there?"
        }
    }

    /// What to do about a reason, by words that the daemon uses for it; nil for one that this program
    /// does not know.
    static func advice(on reason: String) -> String? {
        for (words, advice) in advices where reason.contains(words) { return advice }
        return nil
    }

    private static let advices = [
        (
            "never been seen",
            "is it running, on a link that mDNS reaches? If not on one, name it with --peers and "
                + "its address"
        ),
        (
            "no address",
            "is it on a link that mDNS reaches? If not, name it with --peers and its address"
        ),
        (
            "cookie is another",
            "set the same cookie on both nodes (`aspen-cli config check` says where it is read from)"
        ),
        (
            "another key answers",
            "another node has its address, or it has a new key: `aspen-cli cluster endpoint` there "
                + "prints what to put into --peers"
        ),
        (
            "nothing answers",
            "is it running (`systemctl status aspend-net` there), and does each firewall between "
                + "let UDP through to that port?"
        ),
        ("runs version", "install the same version of Aspen on both nodes"),
        (
            "clock",
            "compare `timedatectl` on both nodes, and have both set by a time server"
        ),
        (
            "no link with it for a minute",
            "is it one of yours, and of this version? `journalctl -u aspend-gossip` on both says more. "
                + "One that is not has your cookie: replace that"
        ),
        (
            "silent for long",
            "is it running (`systemctl status aspend-net aspend-gossip` there)? If it is gone for "
                + "good, nothing needs to be done"
        ),
    ]
}
