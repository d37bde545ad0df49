// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import RaftStorage
import SimFaults
import SimKit

/// One run of one seed, judged.
package struct Trial: Sendable {
    package var seed: UInt64
    package var violation: Violation?
    package var hash: TraceHash
    package var steps: UInt64
    package var operations: Int
    package var statistics: World.Statistics
    package var leasesExpired = 0
    package var eventsTold = 0
    /// How long after its deadline a lease ended, in cluster time.
    package var leaseLatenessMax = Duration.zero

    /// Runs once.
    package static func run(
        _ scenario: Scenario, strictness: Oracle.Strictness = .rules,
        sink: ((String) -> Void)? = nil
    ) -> Trial {
        judged(scenario, strictness, sink).trial
    }

    private static func judged(
        _ scenario: Scenario, _ strictness: Oracle.Strictness, _ sink: ((String) -> Void)? = nil
    ) -> (trial: Trial, oracle: Oracle) {
        let oracle = Oracle(
            nodes: scenario.nodes, strictness: strictness,
            sessionTimeout: scenario.sessionTimeout, bounds: scenario.bounds)
        let world = World(scenario, observer: oracle, sink: sink)
        var violation: Violation?
        do throws(Violation) {
            do throws(Violation) { try world.run() } catch {
                // Clients may have seen it too; what broke first is what is told.
                world.finishHistory()
                throw error
            }
            world.finishHistory()
            try judge(world, oracle)
        } catch {
            violation = error
        }
        let trial = Trial(
            seed: scenario.seed, violation: violation, hash: world.traceHash, steps: world.step,
            operations: world.history.count, statistics: world.statistics,
            leasesExpired: oracle.book.expired, eventsTold: oracle.eventsTold,
            leaseLatenessMax: oracle.book.latenessMax)
        return (trial, oracle)
    }

    /// Runs twice; a second run that differs is a violation of its own. What was judged to be right is
    /// not judged again.
    /// - Parameter other: the second run, if it is to differ: so that a test sees that it is noticed.
    package static func runTwice(
        _ scenario: Scenario, strictness: Oracle.Strictness = .rules, thenAs other: Scenario? = nil
    ) -> Trial {
        var (first, oracle) = judged(scenario, strictness)
        let second: (hash: TraceHash, steps: UInt64)
        if first.violation == nil {
            second = repeated(other ?? scenario, oracle)
        } else {
            let trial = run(scenario, strictness: strictness)
            second = (trial.hash, trial.steps)
        }
        if first.hash != second.hash || first.steps != second.steps {
            let before = first.violation.map { "; the first broke \($0)" } ?? ""
            first.violation = Violation(
                .safety, "determinism",
                "one seed gave two runs: \(first.hash.hex) after \(first.steps) events, "
                    + "\(second.hash.hex) after \(second.steps)\(before)")
        }
        return first
    }

    /// The same run again, for its trace alone. A promise that the world itself finds broken now was
    /// kept before: the trace ends earlier.
    private static func repeated(
        _ scenario: Scenario, _ oracle: Oracle
    ) -> (hash: TraceHash, steps: UInt64) {
        let world = World(scenario, observer: Echo(oracle.saidOfWatchers))
        try? world.run()
        return (world.traceHash, world.step)
    }

    // MARK: - At the end

    private static func judge(_ world: World, _ oracle: Oracle) throws(Violation) {
        try compareStates(world)
        if let shell = world.finalStates.first {
            try oracle.audit(Int(shell.nodeID.rawValue) - 1, shell.state)
        }
        if let (earlier, later) = ClientRevisions.violation(world.history) {
            throw Violation(.safety, "revisions follow time", "first \(earlier), then \(later)")
        }
        switch Linearizability.check(world.history) {
        case .linearizable: break
        case .violated(let key, let culprit):
            throw Violation(
                .safety, "linearizability", "key \(key): no order explains \(culprit)")
        case .undecided(let key):
            throw Violation(.safety, "linearizability", "key \(key): too many orders to try")
        }
    }

    private static func compareStates(_ world: World) throws(Violation) {
        var first: (id: NodeID, hash: UInt64)?
        for shell in world.finalStates {
            let hash = shell.state.contentHash()
            guard hash == shell.state.recomputeContentHash() else {
                throw Violation(
                    .safety, "equal state", "n\(shell.nodeID): the hash is not that of the rows")
            }
            if let first, first.hash != hash {
                throw Violation(
                    .safety, "equal state", "n\(first.id) and n\(shell.nodeID) end differently")
            }
            first = first ?? (shell.nodeID, hash)
        }
    }
}
