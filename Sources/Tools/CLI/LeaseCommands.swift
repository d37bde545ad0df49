// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct LeaseArea: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "lease", abstract: "Let keys go when nobody keeps them alive.",
        subcommands: [
            LeaseGrant.self, LeaseRevoke.self, LeaseKeepAlive.self, LeaseTTL.self, LeaseList.self,
        ])
}

extension LeaseInfo {
    fileprivate var json: [(String, JSON)] {
        [
            ("lease", .number(lease.rawValue)),
            ("granted_ttl_ms", .number(grantedTTL.milliseconds)),
            ("remaining_ttl_ms", .number(remainingTTL.milliseconds)),
            ("attached_keys", .number(UInt64(attachedKeys))),
        ]
    }
}

extension Duration {
    fileprivate var milliseconds: UInt64 {
        let (seconds, attoseconds) = components
        return UInt64(clamping: seconds * 1000 + attoseconds / 1_000_000_000_000_000)
    }
}

struct LeaseGrant: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "grant", abstract: "Make a lease.",
        usage: "aspen-cli lease grant --ttl TIME [--id N] [OPTIONS]",
        discussion: """
            Prints its number. Keys written with it go when nobody has kept it alive for TIME (1 s to \
            24 h): all at once, on every node.

            EXAMPLES
              aspen-cli lease grant --ttl 30s
              aspen-cli kv set worker/1 "$(hostname)" --lease "$(aspen-cli lease grant --ttl 30s)"
            """)

    @OptionGroup var global: GlobalOptions

    @Option(
        help: "How long it lives without a sign of life: 1s to 24h, with its unit (ms, s, m, h).")
    var ttl: LeaseTime

    @Option(help: "Its number; without this the cluster chooses.")
    var id: UInt64 = 0

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let lease = try await context.client.grantLease(ttl: ttl.duration, lease: LeaseID(id))
        context.output.write(
            context.isJSON
                ? JSON.object([
                    ("lease", .number(lease.lease.rawValue)),
                    ("ttl_ms", .number(lease.grantedTTL.milliseconds)),
                ]).text + "\n" : "\(lease.lease)\n")
        return .done
    }
}

struct LeaseRevoke: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "revoke", abstract: "End a lease; its keys go.",
        usage: "aspen-cli lease revoke N [OPTIONS]")

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The lease's number.")
    var lease: UInt64

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let answer = try await context.client.revokeLease(LeaseID(lease))
        context.output.write(
            context.isJSON
                ? JSON.object([
                    ("success", .bool(true)), ("deleted", .number(UInt64(answer.deletedCount))),
                    ("revision", .number(answer.revision.rawValue)),
                    ("log_id", .logID(answer.logID)),
                ]).text + "\n" : "OK, \(answer.deletedCount) keys deleted\n")
        return .done
    }
}

struct LeaseKeepAlive: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "keepalive", abstract: "Keep a lease alive until interrupted.",
        usage: "aspen-cli lease keepalive N [--once] [OPTIONS]",
        discussion: """
            Exit status is 3 when the lease has ended.

            EXAMPLES
              aspen-cli lease keepalive 1234
              aspen-cli lease keepalive 1234 --once
            """)

    @OptionGroup var global: GlobalOptions

    @Flag(help: "Give one sign of life, and end.")
    var once = false

    @Argument(help: "The lease's number.")
    var lease: UInt64

    func run(_ context: CommandContext) async throws -> ExitStatus {
        while true {
            let ttl = try await context.client.keepLeaseAlive(LeaseID(lease))
            context.output.write(
                context.isJSON
                    ? JSON.object([
                        ("lease", .number(lease)), ("ttl_ms", .number(ttl.milliseconds)),
                    ]).text + "\n" : "lease \(lease) lives for \(ttl.text)\n")
            try context.output.flush()
            if once { return .done }
            try await Task.sleep(for: ttl / 3)
        }
    }
}

struct LeaseTTL: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "ttl", abstract: "How long a lease lives, and its keys.",
        usage: "aspen-cli lease ttl N [--keys] [OPTIONS]",
        discussion: "A lease that has ended is exit status 3.")

    @OptionGroup var global: GlobalOptions

    @Flag(help: "List the keys attached to it.")
    var keys = false

    @Argument(help: "The lease's number.")
    var lease: UInt64

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let (info, attached) = try await context.client.leaseTimeToLive(
            LeaseID(lease), withKeys: keys)
        if context.isJSON {
            var members = info.json
            if keys { members.append(("keys", .array(attached.map { .bytes($0) }))) }
            context.output.write(JSON.object(members).text + "\n")
        } else {
            context.output.write(
                "lease \(lease): \(info.remainingTTL.text) of \(info.grantedTTL.text) left, "
                    + "\(info.attachedKeys) keys\n")
            for key in attached { context.output.write(KeyOptions.plainText(key) + "\n") }
        }
        return .done
    }
}

struct LeaseList: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List all leases.", usage: "aspen-cli lease list [OPTIONS]")

    @OptionGroup var global: GlobalOptions

    func run(_ context: CommandContext) async throws -> ExitStatus {
        var table = Table([
            .init(title: "LEASE", alignment: .right), .init(title: "LEFT", alignment: .right),
            .init(title: "OF", alignment: .right), .init(title: "KEYS", alignment: .right),
        ])
        var after = LeaseID.none
        var isFirst = true
        while true {
            let page = try await context.client.leases(after: after)
            if context.isJSON {
                for lease in page.leases {
                    context.output.write(isFirst ? #"{"leases":["# : ",")
                    isFirst = false
                    context.output.write(JSON.object(lease.json).text)
                }
            } else if !page.leases.isEmpty {
                isFirst = false
                context.output.write(
                    table.render(
                        page.leases.map {
                            [
                                "\($0.lease)", $0.remainingTTL.text, $0.grantedTTL.text,
                                "\($0.attachedKeys)",
                            ]
                        }))
            }
            guard page.more, let last = page.leases.last else { break }
            after = last.lease
        }
        if context.isJSON { context.output.write((isFirst ? #"{"leases":["# : "") + "]}\n") }
        if isFirst, !context.isJSON { context.output.note("no leases") }
        return .done
    }
}
