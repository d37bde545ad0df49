// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore

/// Carries out the commands of a trace file. Each command is a line; what it makes the nodes do is
/// the expected output below it. See Tests/Traces/README.md for the language.
final class TraceRunner {
    private let world = World(seed: 1)
    private var output: [String] = []
    private var isQuiet = false
    private var violationsShown = 0

    struct SyntaxError: Error, CustomStringConvertible {
        let description: String
    }

    init() { watch() }

    private func watch() {
        world.onEffect = { [weak self] node, effect in
            guard let self, !self.isQuiet else { return }
            self.output.append(TraceFormat.line(node, effect))
        }
    }

    /// - Returns: what happened, one line each.
    func run(_ command: String) throws -> [String] {
        output = []
        var words = Words(command)
        isQuiet = words.skip("quietly")
        try carryOut(&words, command)
        isQuiet = false
        for violation in world.violations.dropFirst(violationsShown) {
            output.append("VIOLATION: \(violation)")
        }
        violationsShown = world.violations.count
        return output
    }

    private func carryOut(_ words: inout Words, _ command: String) throws {
        let verb = words.next() ?? ""
        switch verb {
        case "cluster", "nodes", "init", "bug", "limit": try build(verb, &words)
        case "timeout", "advance", "wait": try passTime(verb, &words)
        case "deliver", "drop", "duplicate", "stabilize", "in-flight": try move(verb, &words)
        case "propose", "read", "change", "transfer": try ask(verb, &words)
        case "sync", "crash", "restart", "wipe", "damage", "roll-back", "discard", "snapshot":
            try disturb(verb, &words)
        case "service-gone", "link-lost", "link-restored", "own-net-lost", "own-net-restored":
            try signal(verb, &words)
        case "status", "log", "peers": try show(verb, &words)
        default: throw SyntaxError(description: "unknown command: \(command)")
        }
        if let rest = words.next() { throw SyntaxError(description: "left over: \(rest)") }
    }

    // MARK: Set-up

    private func build(_ verb: String, _ words: inout Words) throws {
        switch verb {
        case "cluster":
            let voters = try words.nodes(until: "learners")
            let learners = words.skip("learners") ? try words.nodes() : []
            world.found(voters: voters, learners: learners)
        case "nodes": for id in try words.nodes() { world.start(id) }
        case "init":
            let id = try words.node()
            let voters = try words.nodes()
            world.step(
                id,
                .initialize(
                    world.membership(voters: voters.isEmpty ? [id] : voters),
                    wallTime: ClusterTime(milliseconds: 1000),
                    id: ProposalID(node: id, incarnation: 1, number: 1_000_000)))
        case "bug":
            guard let bug = words.next().flatMap({ PlantedBug(rawValue: $0) }) else {
                throw SyntaxError(description: "which bug?")
            }
            world.plantedBugs.insert(bug)
        default:
            let (name, value) = (words.next() ?? "", Int(try words.number()))
            let before = world.adjust
            switch name {
            case "append-bytes":
                world.adjust = {
                    before(&$0); $0.appendBytesMax = value
                }
            case "appends-in-flight":
                world.adjust = {
                    before(&$0); $0.appendsInFlightMax = value
                }
            case "cache-bytes":
                world.adjust = {
                    before(&$0); $0.cacheBytesMax = value
                }
            default: throw SyntaxError(description: "unknown limit: \(name)")
            }
        }
    }

    // MARK: Time and network

    private func passTime(_ verb: String, _ words: inout Words) throws {
        switch verb {
        case "timeout": world.fireTimer(try words.node())
        case "wait": world.now = world.now + .milliseconds(Int64(try words.number()))
        default:
            let duration = Duration.milliseconds(Int64(try words.number()))
            world.pass(duration, isOpen: try openLinks(&words))
        }
    }

    private func openLinks(_ words: inout Words) throws -> (Message) -> Bool {
        guard words.skip("among") else { return { _ in true } }
        let group = try words.nodes()
        return { group.contains($0.from) && group.contains($0.to) }
    }

    private func move(_ verb: String, _ words: inout Words) throws {
        if verb == "stabilize" {
            world.settle(isOpen: try openLinks(&words))
            return
        }
        let matches = try words.link()
        if verb == "in-flight" {
            for message in world.inFlight where matches(message) {
                output.append("\(message.from) -> \(message.to) \(TraceFormat.text(message))")
            }
            return
        }
        var chosen = world.inFlight.filter(matches)
        if words.skip("backwards") { chosen.reverse() }
        if verb != "duplicate" { world.inFlight.removeAll(where: matches) }
        if verb != "drop" { for message in chosen { world.deliver(message) } }
    }

    // MARK: Clients and administrators

    private func ask(_ verb: String, _ words: inout Words) throws {
        let id = try words.node()
        switch verb {
        case "propose": world.propose(id, all: words.rest())
        case "read": world.step(id, .read(ReadID(try words.number())))
        case "transfer": world.step(id, .transferLeadership(to: try words.node()))
        default:
            guard words.skip("to") else { throw SyntaxError(description: "change N to …") }
            let voters = try words.nodes(until: "learners")
            let learners = words.skip("learners") ? try words.nodes(until: "unknown") : []
            let unknown = words.skip("unknown") ? try words.nodes() : []
            let members = (voters + learners).filter { !unknown.contains($0) }.map(world.present)
            world.step(
                id,
                .changeMembership(
                    voters: voters, learners: learners, members: members,
                    id: ProposalID(node: id, incarnation: 1, number: 2_000_000)))
        }
    }

    // MARK: Disks, daemons, links

    private func disturb(_ verb: String, _ words: inout Words) throws {
        let id = try words.node()
        switch verb {
        case "sync":
            let count = words.peek() == nil ? nil : Int(try words.number())
            world.sync(id, count: count)
        case "crash":
            let kept = words.skip("keeping") ? Int(try words.number()) : 0
            world.crash(id, syncedWrites: kept)
        case "restart": world.start(id)
        case "wipe": world.wipe(id)
        case "damage":
            // damage N after I: what follows I is unreadable, and may have been acknowledged.
            // damage N at I: only I is, and what follows it can still be read.
            let disk = world.node(id).disk
            if words.skip("at") {
                let index = LogIndex(try words.number())
                disk.damage(index...index)
            } else {
                guard words.skip("after") else {
                    throw SyntaxError(description: "damage N after I")
                }
                disk.damage(after: LogIndex(try words.number()))
            }
            world.forgetApplied(id, after: disk.lastIndex)
        case "roll-back":
            guard words.skip("to") else { throw SyntaxError(description: "roll-back N to I") }
            world.node(id).disk.cut(after: LogIndex(try words.number()))
            world.forgetApplied(id, after: world.node(id).disk.lastIndex)
        case "discard": world.discard(id, upTo: LogIndex(try words.number()))
        default: world.passSnapshot(from: id, to: try words.node())
        }
    }

    private func signal(_ verb: String, _ words: inout Words) throws {
        let id = try words.node()
        switch verb {
        case "service-gone": world.step(id, .serviceGone(try words.node()))
        case "link-lost": world.step(id, .linkLost(try words.node()))
        case "link-restored": world.step(id, .linkRestored(try words.node()))
        case "own-net-lost": world.step(id, .ownNetLost)
        default: world.step(id, .ownNetRestored)
        }
    }

    // MARK: Looking

    private func show(_ verb: String, _ words: inout Words) throws {
        switch verb {
        case "status":
            for node in world.nodes { output.append(status(of: node)) }
        case "log":
            let node = world.node(try words.node())
            output.append(TraceFormat.list(node.disk.entries))
        default:
            let node = world.node(try words.node())
            for peer in node.core?.peerStatus(now: world.now) ?? [] {
                output.append(
                    "\(peer.node): \(peer.state.rawValue) match \(peer.match) next \(peer.next)"
                        + (peer.isVoter ? "" : " no voter")
                        + (peer.isRegressed ? " regressed" : "")
                        + (peer.isRepairing ? " repairing" : ""))
            }
        }
    }

    private func status(of node: World.Node) -> String {
        guard let core = node.core else { return "\(node.id): down" }
        let standing = core.standing
        return "\(node.id): \(standing.role.rawValue) term \(standing.term) leader "
            + (standing.leader.map(\.description) ?? "none")
            + " log \(core.firstIndex)...\(core.lastIndex) commit \(core.commitIndex)"
            + " applied \(node.appliedIndex)"
            + (core.membership.map { " \(TraceFormat.text($0))" } ?? "")
            + (core.isTailTrusted ? "" : " untrusted")
            + (core.lostMembership.map { " lost \(TraceFormat.text($0))" } ?? "")
    }
}

/// The words of a command.
struct Words {
    private var words: [Substring]

    init(_ line: String) { words = line.split(separator: " ") }

    func peek() -> String? { words.first.map(String.init) }

    mutating func next() -> String? {
        words.isEmpty ? nil : String(words.removeFirst())
    }

    mutating func rest() -> [String] {
        defer { words = [] }
        return words.map(String.init)
    }

    mutating func skip(_ word: String) -> Bool {
        guard words.first == word[...] else { return false }
        words.removeFirst()
        return true
    }

    mutating func number() throws -> UInt64 {
        guard let word = next(),
            let value = UInt64(word.hasSuffix("ms") ? word.dropLast(2) : word[...])
        else { throw TraceRunner.SyntaxError(description: "a number is missing") }
        return value
    }

    mutating func node() throws -> NodeID { NodeID(try number()) }

    mutating func nodes(until stop: String = "") throws -> [NodeID] {
        var nodes: [NodeID] = []
        while let word = peek(), word != stop { nodes.append(try node()) }
        return nodes
    }

    /// "1->2", "->2", "1->" or nothing: which messages are meant.
    mutating func link() throws -> (Message) -> Bool {
        guard let word = next() else { return { _ in true } }
        guard let arrow = word.firstRange(of: "->") else {
            throw TraceRunner.SyntaxError(description: "from->to")
        }
        let from = UInt64(word[..<arrow.lowerBound]).map { NodeID($0) }
        let to = UInt64(word[arrow.upperBound...]).map { NodeID($0) }
        return { (from == nil || from == $0.from) && (to == nil || to == $0.to) }
    }
}
