// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// The consensus of one node: Raft (Ongaro and Ousterhout 2014; thesis 2014) with pre-vote,
/// CheckQuorum, ReadIndex and joint consensus, as a machine without hands.
package struct RaftCore: Machine {
    package typealias Input = RaftInput
    package typealias Effect = RaftEffect

    package let configuration: RaftConfiguration
    package private(set) var deadline: MonotonicInstant?

    package init(
        configuration: RaftConfiguration, recovery: RaftRecovery, now: MonotonicInstant,
        random: inout RandomSource
    ) {
        self.configuration = configuration
    }

    package mutating func step(
        _ input: consuming RaftInput, now: MonotonicInstant, random: inout RandomSource,
        into effects: inout [RaftEffect]
    ) {
    }

    package func checkInvariants() {}
}
