// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenCLI
import AspenClient
import AspenTypes
import AspenWire
import Glibc

struct LoadOptions: ParsableArguments {
    @Option(help: "Clients, each with one request in flight.")
    var clients = 1

    @Option(help: "Connections that the clients share. (default: one a client, at most 500)")
    var connections: Int?

    @Option(help: "How long to measure. (default: 10s, unless --count is given)")
    var duration: TimeLimit?

    @Option(help: "How many requests to measure, instead of a time.")
    var count: Int?

    @Option(
        help: """
            Requests a second of all clients together: an open loop, in which a request that had to \
            wait for a client counts from when it was due. (default: as many as the clients get)
            """)
    var rate: Int?

    @Option(help: "A file for every request measured: nanoseconds of its start, of its latency.")
    var samples: String?

    @Option(help: "How long to run before measuring.")
    var warmup = TimeLimit(.seconds(1))

    @Option(help: "Bytes of a key.")
    var keySize = 32

    @Option(help: "Bytes of a value.")
    var valueSize = 256

    @Option(help: "Keys in the key space.")
    var keys = 10_000

    @Option(help: "How keys are chosen.")
    var distribution = KeyDistribution.uniform

    @Option(help: "When a request counts as lost.")
    var timeout = TimeLimit(.seconds(10))

    @Option(help: "A daemon's socket; may be repeated: connections are spread over all.")
    var socket: [String] = []

    @Option(help: "The cluster's ticket: connections are spread over its endpoints.")
    var ticket: String?

    @Option(
        help: ArgumentHelp(
            "With a ticket: a capability token, or the file that holds it.",
            valueName: "token|@file"))
    var token: String?

    @Option(help: "Event loops of this program; raise it when one core cannot make the load.")
    var threads = 1

    @Option(help: "Seed of the choice of keys and values: the same one, the same requests.")
    var seed: UInt64 = 1

    @Flag(help: "Also draw how latencies are distributed, and the rate over time.")
    var plot = false

    @Option(name: .shortAndLong, help: "Output format.")
    var output = OutputFormat.table

    @Flag(help: "The same as -o json.")
    var json = false

    var isJSON: Bool { json || output == .json }

    func plan(
        _ operation: LoadPlan.Kind, isStale: Bool = false, isLoaded: Bool = false
    ) throws -> LoadPlan {
        let connections = connections ?? min(clients, Limits.connectionsMax)
        guard (1...100_000).contains(clients), (1...10_000).contains(connections) else {
            throw CommandFailure.usage("--clients is 1 to 100000, --connections 1 to 10000")
        }
        guard (LoadPlan.keyBytesMin...Limits.keyBytesMax).contains(keySize),
            (0...Limits.valueBytesMax).contains(valueSize)
        else {
            throw CommandFailure.usage(
                "--key-size is \(LoadPlan.keyBytesMin) to \(Limits.keyBytesMax), --value-size 0 to "
                    + "\(Limits.valueBytesMax)")
        }
        guard (1...100_000_000).contains(keys), (1...64).contains(threads), count ?? 1 > 0 else {
            throw CommandFailure.usage(
                "--keys is 1 to 100000000, --threads 1 to 64, --count 1 or more")
        }
        guard (1...1_000_000).contains(rate ?? 1) else {
            throw CommandFailure.usage("--rate is 1 to 1000000")
        }
        guard !plot || !isJSON else {
            throw CommandFailure.usage(
                "--plot draws beside a table; JSON has the figures themselves")
        }
        if count != nil, duration != nil {
            throw CommandFailure.usage("--count and --duration both end the run: give one")
        }
        return LoadPlan(
            kind: operation, endpoints: try endpoints(), clients: clients,
            connections: min(connections, clients), threads: min(threads, connections),
            warmup: warmup.duration,
            end: count.map { .count($0) }
                ?? .time(duration?.duration ?? .seconds(10)),
            keySize: keySize, valueSize: valueSize, keys: keys, timeout: timeout.duration,
            seed: seed, isStale: isStale, isLoaded: isLoaded, distribution: distribution,
            rate: rate,
            samples: samples, isPlotted: plot)
    }

    private func endpoints() throws -> [Endpoint] {
        func environment(_ name: String) -> String? {
            getenv(name).map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 }
        }
        if ticket != nil, !socket.isEmpty {
            throw CommandFailure.usage("--ticket and --socket name two places: give one of them")
        }
        if socket.isEmpty, let text = ticket ?? environment("ASPEN_TICKET") {
            let credential = try TokenArgument.credential(token ?? environment("ASPEN_TOKEN"))
            return try AspenClient.Target.ticket(parsing: text).endpoints(credential)
        }
        let paths =
            socket.isEmpty ? [environment("ASPEN_SOCKET") ?? LocalSocket.find()] : socket
        return AspenClient.Target.sockets(paths).endpoints
    }
}

/// What to do, checked.
struct LoadPlan: Sendable {
    /// "bench/" and the number of a key.
    static let keyBytesMin = 16

    enum Kind: Sendable, Equatable {
        case put
        case get
        case mixed(readPercent: UInt64)
        case scan(limit: UInt32)
        case txn
        case lease
        /// Puts, measured from their sending to the event of each of so many watches.
        case notify(watchers: Int)
        /// Nothing but the writing of all keys, in transactions.
        case load

        var name: String {
            switch self {
            case .put: "put"
            case .get: "get"
            case .mixed: "mixed"
            case .scan: "scan"
            case .txn: "txn"
            case .lease: "lease"
            case .notify: "notify"
            case .load: "load"
            }
        }
    }

    enum End: Sendable {
        case count(Int)
        case time(Duration)
    }

    var kind: Kind
    var endpoints: [Endpoint]
    var clients: Int
    var connections: Int
    var threads: Int
    var warmup: Duration
    var end: End
    var keySize: Int
    var valueSize: Int
    var keys: Int
    var timeout: Duration
    var seed: UInt64
    var isStale: Bool
    var isLoaded: Bool
    var distribution: KeyDistribution
    /// Requests a second; nil: a closed loop.
    var rate: Int?
    /// Path of a file that gets a line for each request.
    var samples: String?
    var isPlotted: Bool

    /// How many watches there are besides; they are shared out among the connections.
    var watchers: Int {
        if case .notify(let watchers) = kind { watchers } else { 0 }
    }
}
