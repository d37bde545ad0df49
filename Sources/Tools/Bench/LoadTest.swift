// SPDX-License-Identifier: GPL-2.0-or-later

import AspenCLI
import AspenClient
import AspenTypes
import AspenWire
import Histogram
import NIOCore
import NIOPosix

/// One run: connect, write the keys if they are to be read, warm up, measure.
struct LoadTest {
    /// Transactions in flight while keys are written.
    static let loadersMax = 8

    let plan: LoadPlan

    init(_ plan: LoadPlan) { self.plan = plan }

    func run() async throws -> LoadReport {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: plan.threads)
        let result: Result<LoadReport, any Error>
        do {
            let started = NIODeadline.now()
            if plan.isLoaded { try await load() }
            if plan.kind == .load {
                try? await group.shutdownGracefully()
                var filled = LaneResult()
                filled.written = plan.keys
                let elapsed = Duration.nanoseconds((NIODeadline.now() - started).nanoseconds)
                return LoadReport(plan, [filled], elapsed: elapsed, usage: .now())
            }
            let loops = Array(group.makeIterator())
            let lanes = try await connect(loops)
            result = .success(try await measure(lanes))
        } catch {
            result = .failure(error)
        }
        try? await group.shutdownGracefully()
        return try result.get()
    }

    /// Through the client that retries: missing keys would falsify the reads.
    private func load() async throws {
        guard let endpoint = plan.endpoints.first else { return }
        var options = AspenClient.Options()
        options.timeout = .seconds(30)
        if case .node(_, _, let credential) = endpoint { options.credential = credential }
        let client = try await AspenClient.connect(endpoint.target, options: options)
        let batch = Limits.transactionOperationsMax
        // A transaction fits into a message.
        let size = max(1, min(batch, 4_000_000 / (plan.keySize + plan.valueSize + 16)))
        let batches = stride(from: 0, to: plan.keys, by: size).map {
            $0..<min($0 + size, plan.keys)
        }
        try await withThrowingTaskGroup { group in
            for loader in 0..<Self.loadersMax {
                group.addTask {
                    var workload = Workload(plan, seed: plan.seed &+ 1000 &+ UInt64(loader))
                    for index in stride(from: loader, to: batches.count, by: Self.loadersMax) {
                        _ = try await client.transaction(
                            if: [], then: workload.loadOperations(batches[index]))
                    }
                }
            }
            try await group.waitForAll()
        }
        await client.close()
    }

    private func connect(_ loops: [any EventLoop]) async throws -> [NIOLoopBound<Lane>] {
        try await withThrowingTaskGroup { group in
            for (number, loop) in loops.enumerated() {
                group.addTask {
                    try await loop.flatSubmit {
                        let lane = Lane(plan, number: number, of: loops.count, loop: loop)
                        let bound = NIOLoopBound(lane, eventLoop: loop)
                        return lane.connect().map { bound }
                    }.get()
                }
            }
            var lanes: [NIOLoopBound<Lane>] = []
            for try await lane in group { lanes.append(lane) }
            return lanes
        }
    }

    private func measure(_ lanes: [NIOLoopBound<Lane>]) async throws -> LoadReport {
        Interruption.watch()
        for lane in lanes { lane.eventLoop.execute { lane.value.start() } }
        try await Task.sleep(for: plan.warmup)
        let before = Usage.now()
        let started = NIODeadline.now()
        let results = try await withThrowingTaskGroup { group in
            for lane in lanes {
                group.addTask {
                    try await lane.eventLoop.flatSubmit { lane.value.measure() }.get()
                }
            }
            var results: [LaneResult] = []
            for try await result in group { results.append(result) }
            return results
        }
        let elapsed = Duration.nanoseconds((NIODeadline.now() - started).nanoseconds)
        var usage = Usage.now()
        usage.processorSeconds -= before.processorSeconds
        for lane in lanes { lane.eventLoop.execute { lane.value.stop() } }
        return LoadReport(plan, results, elapsed: elapsed, usage: usage)
    }
}

extension Endpoint {
    fileprivate var target: AspenClient.Target {
        switch self {
        case .socket(let path): .socket(path)
        case .node(let id, let addresses, _):
            .ticket(
                Ticket(
                    cluster: ClusterID(0),
                    endpoints: [.init(endpoint: id, addresses: addresses)]))
        }
    }
}

/// What one event loop measured.
struct LaneResult: Sendable {
    /// Nanoseconds from sending to the answer, of right answers.
    var latency = Histogram<UInt64>(numberOfSignificantValueDigits: .three)
    var errors: [String: Int] = [:]
    /// The text of the first error of each code: a count alone helps nobody.
    var texts: [String: String] = [:]
    var wrong = 0
    /// Right answers (`notify`: events) in each second of the measuring.
    var perSecond: [Int] = []
    /// Bytes of frames to and from the cluster.
    var bytesSent: UInt64 = 0
    var bytesReceived: UInt64 = 0
    /// Puts of `notify`, whose latencies are those of the events.
    var puts = 0
    /// Keys written by `load`.
    var written = 0
    /// Of right answers, if asked for: when the request was due, and its latency, in nanoseconds of
    /// the monotonic clock.
    var samples: [(start: UInt64, latency: UInt64)] = []

    /// - Parameter nanoseconds: since the measuring began.
    mutating func countRight(latency elapsed: UInt64, at nanoseconds: Int64) {
        latency.record(elapsed)
        let second = Int(max(0, nanoseconds) / 1_000_000_000)
        if perSecond.count <= second {
            perSecond += repeatElement(0, count: second + 1 - perSecond.count)
        }
        perSecond[second] += 1
    }

    mutating func count(_ error: AspenError) {
        errors[error.code.name, default: 0] += 1
        if texts[error.code.name] == nil { texts[error.code.name] = error.message }
    }
}
