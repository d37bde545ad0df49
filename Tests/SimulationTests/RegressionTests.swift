// SPDX-License-Identifier: GPL-2.0-or-later

import SimChecks
import SimFaults
import Testing

/// Seeds that once failed, and why. A change of what a seed draws makes another run of it: the cause
/// itself is kept by a test of its own wherever it was in production code.
@Suite struct RegressionTests {
    struct Regression: CustomTestStringConvertible, Sendable {
        var seed: UInt64
        /// Trouble besides what the seed draws.
        var with: Scenario.Trouble?
        var reason: String
        var testDescription: String { "\(seed): \(reason)" }
    }

    static let all: [Regression] = [
        .init(seed: 13531, reason: "a cluster that did not come right in time"),
        .init(seed: 17607, reason: "a cluster that did not come right in time"),
        .init(seed: 16919, reason: "healing was judged by the patience of the founding"),
        .init(seed: 17125, reason: "healing was judged by the patience of the founding"),
        .init(seed: 877, reason: "a founder with a damaged log elected itself"),
        .init(seed: 881, reason: "a founder with a damaged log led a term that had a leader"),
        .init(seed: 1096, reason: "a founder with a damaged log elected itself"),
        .init(seed: 1187, reason: "a founder with a damaged log led a term that had a leader"),
        .init(seed: 3282, reason: "a damaged log went by a membership that it had outlived"),
        .init(seed: 6935, reason: "a damaged log went by a membership that it had outlived"),
        .init(
            seed: 21259, with: .decay,
            reason: "trouble ended amid a pause, and who was paused slept on"),
        .init(
            seed: 21684, with: .decay,
            reason: "a key went with two leases, one after the other, in one batch"),
        .init(
            seed: 101492,
            reason: "a vote that waited for a slow disk was asked for by who was a voter no more"),
        .init(
            seed: 107028,
            reason: "a paused leader counted what a voter had acknowledged, then lost to damage"),
        .init(
            seed: 102756,
            reason: "clients less patient than a slow cluster takes asked faster than it answered"),
        .init(
            seed: 289,
            reason: "a leader took what it had inherited for its own, and more than its bound"),
        .init(
            seed: 553,
            reason: "a leader took what it had inherited for its own, and more than its bound"),
        .init(
            seed: 4481,
            reason:
                "a leader asked right after it stood still had not noticed that its successor failed"
        ),
        .init(
            seed: 9007,
            reason: "a question for votes waited for the disk while its voter was made a learner"),
        .init(
            seed: 100594,
            reason: "damage to the last batch of a full segment passed for a torn tail"),
        .init(
            seed: 110988,
            reason: "damage to the last batch of a full segment passed for a torn tail"),
        .init(
            seed: 130170,
            reason: "a bit flipped in a batch whose mark was lost with the power soon after"),
        .init(
            seed: 135452, reason: "entries counted as proven that a cut had replaced by new ones"),
        .init(
            seed: 323933,
            reason: "an acknowledgement in a term that only the snapshot put in force has told"),
        .init(
            seed: 129563, reason: "a membership of old, applied again, was taken for a later one"),
        .init(
            seed: 106612, reason: "errands were given by a leader that did not know of its end"),
        .init(
            seed: 596871,
            reason: "what a restart made durable was not known to have been, once the mark was lost"
        ),
        .init(
            seed: 544768,
            reason: "what a restart made durable was not known to have been, once the mark was lost"
        ),
        .init(
            seed: 587820,
            reason: "what a restart made durable was not known to have been, once the mark was lost"
        ),
        .init(
            seed: 524940,
            reason: "a question for votes waited for the disk while its voter campaigned once more"),
        .init(
            seed: 568101,
            reason:
                "a write that a snapshot had skipped was said to be undone: its session had ended"),
        .init(
            seed: 565491,
            reason: "an acknowledgement overtook a question of the repair, which had been answered"),
        .init(
            seed: 751353,
            reason: "a log that was to start anew behind a snapshot had done so: its sync failed"),
        .init(
            seed: 765427,
            reason: "a lease was granted anew, under its number, in the batch in which it had ended"
        ),
        .init(
            seed: 644525,
            reason: "a term known from an entry alone was forgotten with it: its record had no room"
        ),
        .init(
            seed: 801220,
            reason:
                "one entry in a round trip: the bound did not know that the log has its own pace"),
        .init(
            seed: 941561,
            reason:
                "entries cut off again were back, their record damaged, where the state had others"),
    ]

    @Test(arguments: all) func staysRight(_ regression: Regression) {
        var scenario = Scenario(seed: regression.seed)
        if let trouble = regression.with { scenario.insist(on: trouble) }
        let trial = Trial.runTwice(scenario)
        #expect(trial.violation == nil)
    }
}
