// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import Testing

@Suite struct ClusterTests {
    private func ids(_ range: ClosedRange<UInt64>) -> [NodeID] { range.map { NodeID($0) } }

    @Test func threeNodesElectAndReplicate() {
        let world = World(seed: 1)
        world.found(voters: ids(1...3))
        world.pass(.seconds(5))
        guard let leader = world.leader else {
            Issue.record("no leader after five seconds")
            return
        }
        for number in 0..<100 { world.propose(leader.id, "value \(number)") }
        world.settle()
        for node in world.nodes { #expect(node.applied.count == 102) }
        #expect(world.violations.isEmpty)
    }
}
