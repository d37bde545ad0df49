// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import Testing

@testable import ProposalCore

/// What happens to a table, in words: `begin KIND`, `give TERM`, `refuse NUMBER [FAILURE]`,
/// `apply NUMBER`, `applied-to TERM`, `leader`, `copy TERM`, `skip`, `sweep SECONDS [leaderless]`,
/// `dismiss`.
private struct Story: CustomTestStringConvertible, Sendable {
    var testDescription: String
    var events: [String]
    /// What the table wanted, event by event, without those that wanted nothing.
    var wants: [String]

    init(_ name: String, _ events: [String], _ wants: [String]) {
        testDescription = name
        self.events = events
        self.wants = wants
    }
}

/// Carries a story out. Each write is called by its payload: a letter.
private struct Teller {
    var table: ProposalTable
    var effects: [ProposalEffect] = []
    var names: [WriteID: String] = [:]
    var begun = 0
    var wants: [String] = []

    init(_ bug: ProposalPlantedBug? = nil) {
        var configuration = ProposalConfiguration()
        configuration.plantedBug = bug
        table = ProposalTable(configuration, appliedTerm: Term(1))
    }

    mutating func tell(_ story: Story) throws -> [String] {
        for event in story.events {
            try tell(event.split(separator: " ").map(String.init))
            for effect in effects { obey(effect) }
            effects.removeAll()
            table.checkInvariants()
        }
        return wants
    }

    private mutating func tell(_ words: [String]) throws {
        func number(_ place: Int) throws -> UInt64 { try #require(UInt64(words[place])) }
        let start = MonotonicInstant.zero
        switch words[0] {
        case "begin": try begin(words[1])
        case "give": table.willPropose(in: Term(try number(1)))
        case "refuse":
            let failure: ProposalFailure =
                switch words.count > 2 ? words[2] : "noLeader" {
                case "tooMany": .tooMany
                case "noLeader": .noLeader
                default: .refused(words[2])
                }
            table.failed(try number(1), failure, into: &effects)
        case "apply":
            guard let (id, _, isFateUnknown) = table.applied(try number(1)) else { return }
            wants.append("\(names[id] ?? "?") applied\(isFateUnknown ? " in doubt" : "")")
            table.release(id)
        case "applied-to":
            table.applied(upTo: Term(try number(1)), now: start, into: &effects)
        case "leader": table.leaderKnown(now: start, into: &effects)
        case "copy":
            for copy in table.copies(in: Term(try number(1))) {
                wants.append(
                    "\(String(decoding: copy.payload, as: UTF8.self)) again \(copy.number)")
            }
        case "skip": table.skipped(now: start, into: &effects)
        case "sweep":
            let now = start + .seconds(Int64(try number(1)))
            table.sweep(now: now, hasLeader: words.count < 3, into: &effects)
        case "dismiss": table.dismiss(into: &effects)
        default: Issue.record("\(words)")
        }
    }

    private mutating func begin(_ name: String) throws {
        let kind = try #require(WriteClass.allCases.first { "\($0)" == name })
        let letter = String(UnicodeScalar(UInt8(ascii: "a") + UInt8(begun)))
        begun += 1
        let deadline = MonotonicInstant.zero + .seconds(10)
        switch kind {
        case .administrative, .founding:
            let (id, number) = table.begin(kind, givenIn: Term(1), deadline: deadline, now: .zero)
            names[id] = letter
            wants.append("\(letter) given \(number)")
        default:
            let id = table.begin(
                kind, Array(letter.utf8), deadline: kind == .housekeeping ? nil : deadline,
                now: .zero, into: &effects)
            names[id] = letter
        }
    }

    private mutating func obey(_ effect: ProposalEffect) {
        switch effect {
        case .propose(let id, let number, let payload, let isFirst):
            #expect(names[id].map { Array($0.utf8) } == payload)
            wants.append("\(names[id] ?? "?") \(isFirst ? "first" : "also") \(number)")
        case .ended(let id, let outcome):
            wants.append("\(names[id] ?? "?") \(outcome)")
            table.release(id)
        }
    }
}

private let stories = [
    Story(
        "a write is applied", ["begin once", "give 1", "apply 1", "apply 1"],
        ["a first 1", "a applied"]),
    Story(
        "refused by a leader that is none, it waits for one",
        ["begin once", "give 1", "refuse 1", "leader", "give 2", "apply 2"],
        ["a first 1", "a first 2", "a applied"]),
    Story(
        "what waits is told in time that nothing was done",
        ["begin once", "give 1", "refuse 1", "sweep 10 leaderless"], ["a first 1", "a noLeader"]),
    Story(
        "what is under way may still be done when time runs out",
        ["begin once", "give 1", "sweep 10", "apply 1"], ["a first 1", "a timedOut"]),
    Story(
        "a copy that is refused says nothing of the first",
        ["begin once", "give 1", "copy 1", "refuse 1", "leader", "apply 1"],
        ["a first 1", "a again 1", "a applied"]),
    Story(
        "a copy that is refused, then an entry of a later term",
        [
            "begin once", "give 1", "copy 1", "refuse 1", "applied-to 2", "give 2", "apply 1",
            "apply 2",
        ],
        ["a first 1", "a again 1", "a first 2", "a applied"]),
    Story(
        "only the leader of the same term is given a number again",
        ["begin once", "give 1", "leader", "copy 2", "apply 1"], ["a first 1", "a applied"]),
    Story(
        "what is not yet given to the core is not copied", ["begin once", "copy 1", "give 1"],
        ["a first 1"]),
    Story(
        "a new leader alone loses nothing",
        ["begin once", "give 1", "leader", "applied-to 1", "apply 1"], ["a first 1", "a applied"]),
    Story(
        "an entry of a later term: lost, and proposed anew in the order of before",
        ["begin once", "begin once", "give 1", "applied-to 3", "apply 2", "give 3", "apply 3"],
        ["a first 1", "b first 2", "a first 3", "b first 4", "a applied"]),
    Story(
        "given in the later term it is not lost", ["begin once", "give 3", "applied-to 3"],
        ["a first 1"]),
    Story(
        "not yet given it is not lost", ["begin once", "applied-to 3", "give 3", "apply 1"],
        ["a first 1", "a applied"]),
    Story(
        "what a snapshot skips may have been done: never proposed again",
        ["begin once", "give 1", "skip", "applied-to 2", "leader", "sweep 10"],
        ["a first 1", "a timedOut"]),
    Story(
        "under a session it is asked what became of it",
        ["begin repeatable", "give 1", "skip", "give 2", "apply 2", "apply 1"],
        ["a first 1", "a also 2", "a applied in doubt"]),
    Story(
        "skipped and then refused it may have been done",
        [
            "begin repeatable", "give 1", "skip", "give 1", "applied-to 2", "give 2", "refuse 3",
            "sweep 10 leaderless",
        ],
        ["a first 1", "a also 2", "a also 3", "a skippedInDoubt"]),
    Story(
        "skipped and then one too many it may have been done",
        [
            "begin repeatable", "skip", "applied-to 2", "give 1", "refuse 2 tooMany",
            "refuse 1 tooMany",
        ],
        ["a first 1", "a also 2", "a skippedInDoubt"]),
    Story(
        "under a session silence is broken",
        [
            "begin repeatable", "begin once", "give 1", "sweep 1", "sweep 2", "give 1", "apply 1",
            "apply 3",
        ],
        ["a first 1", "b first 2", "a also 3", "a applied"]),
    Story(
        "and broken less and less often",
        ["begin repeatable", "sweep 2", "sweep 5", "sweep 6", "give 1", "apply 2"],
        ["a first 1", "a also 2", "a also 3", "a applied"]),
    Story(
        "not without a leader", ["begin repeatable", "give 1", "sweep 2 leaderless"], ["a first 1"]),
    Story(
        "refused under its last number it may be applied under another",
        [
            "begin repeatable", "give 1", "sweep 2", "give 1", "refuse 2", "leader", "refuse 1",
            "leader",
        ],
        ["a first 1", "a also 2", "a first 3"]),
    Story(
        "refused under an earlier number",
        ["begin repeatable", "give 1", "sweep 2", "give 1", "refuse 1", "apply 2"],
        ["a first 1", "a also 2", "a applied"]),
    Story(
        "lost under all its numbers",
        [
            "begin repeatable", "give 1", "sweep 2", "give 1", "applied-to 2", "apply 1", "apply 2",
            "apply 3",
        ],
        ["a first 1", "a also 2", "a first 3", "a applied"]),
    Story(
        "too many, and refused for good",
        ["begin once", "begin once", "give 1", "refuse 1 tooMany", "refuse 2 large"],
        ["a first 1", "b first 2", "a tooMany", "b refused(\"large\")"]),
    Story(
        "what is made for one leader is not proposed to another",
        ["begin administrative", "begin administrative", "copy 1", "refuse 1", "applied-to 2"],
        ["a given 1", "b given 2", "a leadsNoMore", "b lost"]),
    Story(
        "a founding begins a term by itself", ["begin founding", "applied-to 2", "apply 1"],
        ["a given 1", "a applied"]),
    Story(
        "housekeeping is dropped",
        [
            "begin housekeeping", "begin housekeeping", "begin housekeeping", "give 1", "refuse 1",
            "applied-to 2", "begin housekeeping", "give 2", "sweep 10",
        ],
        [
            "a first 1", "b first 2", "c first 3", "a noLeader", "b lost", "c lost", "d first 4",
            "d timedOut",
        ]),
    Story(
        "whoever leaves knows nothing of what is under way",
        ["begin once", "begin once", "give 1", "refuse 1", "dismiss", "leader"],
        ["a first 1", "b first 2", "b leftInDoubt", "a left"]),
    Story(
        "a known leader that takes nothing is asked again",
        ["begin once", "give 1", "refuse 1", "sweep 1", "give 1", "refuse 2", "sweep 2"],
        ["a first 1", "a first 2", "a first 3"]),
]

@Suite struct ProposalTableTests {
    @Test(arguments: stories) fileprivate func story(_ story: Story) throws {
        var teller = Teller()
        let wants = try teller.tell(story)
        #expect(wants == story.wants)
    }

    /// Each of the faults that can be planted changes some story.
    @Test(arguments: ProposalPlantedBug.allCases) func aPlantedBugShows(
        bug: ProposalPlantedBug
    ) throws {
        let changed = try stories.filter { story in
            var teller = Teller(bug)
            return try teller.tell(story) != story.wants
        }
        #expect(!changed.isEmpty)
    }

    @Test func whatIsDoneAndWhatIsNot() {
        let inDoubt: [WriteOutcome] = [.timedOut, .leftInDoubt, .skippedInDoubt]
        #expect(inDoubt.allSatisfy { !$0.isNothingDone })
        let undone: [WriteOutcome] = [
            .noLeader, .leadsNoMore, .lost, .tooMany, .refused(""), .left,
        ]
        #expect(undone.allSatisfy { $0.isNothingDone })
    }

    /// A write that ended while it was still to be stamped does not leave its term to another one.
    @Test func placesAreUsedAgain() {
        var table = ProposalTable(appliedTerm: Term(1))
        var effects: [ProposalEffect] = []
        let first = table.begin(.once, [1], deadline: .zero, now: .zero, into: &effects)
        table.sweep(now: .zero, hasLeader: true, into: &effects)
        table.release(first)
        let (second, _) = table.begin(
            .administrative, givenIn: Term(1), deadline: .zero, now: .zero)
        #expect(second == first && table.count == 1)
        table.willPropose(in: Term(2))
        effects.removeAll()
        table.applied(upTo: Term(2), now: .zero, into: &effects)
        #expect(effects == [.ended(second, .lost)])
    }

    @Test func itSaysWhenItWantsToBeSwept() {
        var table = ProposalTable(appliedTerm: Term(1))
        var effects: [ProposalEffect] = []
        func at(_ milliseconds: Int64) -> MonotonicInstant { .zero + .milliseconds(milliseconds) }
        #expect(table.deadline(now: .zero, hasLeader: true) == nil)
        _ = table.begin(.once, [1], deadline: at(5000), now: .zero, into: &effects)
        #expect(table.deadline(now: .zero, hasLeader: true) == at(5000))
        _ = table.begin(.repeatable, [2], deadline: at(9000), now: .zero, into: &effects)
        #expect(table.deadline(now: .zero, hasLeader: true) == at(2000))
        #expect(table.deadline(now: .zero, hasLeader: false) == at(5000))
        table.failed(1, .noLeader, into: &effects)
        #expect(table.deadline(now: at(7), hasLeader: true) == at(27))
    }
}
