// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage

/// One thing done to a log.
enum LogOperation {
    case write(LogWrite)
    case discard(upTo: LogIndex, Term)
    case reset(LogIndex, Term)
    case prepare

    func perform(on log: any LogStore) throws(StorageError) {
        switch self {
        case .write(let write): try log.write(write)
        case .discard(let index, let term): try log.discard(upTo: index, term: term)
        case .reset(let index, let term): try log.reset(to: index, term: term)
        case .prepare: try log.prepareNextIfNeeded()
        }
    }

    /// The single records it becomes: after a power cut any number of them may be there.
    var steps: [LogOperation] {
        guard case .write(let write) = self else { return [self] }
        var steps: [LogOperation] = []
        let ticket = write.ticket
        if let cut = write.truncateAfter {
            steps.append(.write(LogWrite(ticket: ticket, truncateAfter: cut)))
        }
        steps += write.entries.map { .write(LogWrite(ticket: ticket, entries: [$0])) }
        if let state = write.hardState {
            steps.append(.write(LogWrite(ticket: ticket, hardState: state)))
        }
        return steps
    }
}

/// A log as a plain array.
struct LogModel {
    /// Where the log started: after a snapshot, or zero.
    var base = LogIndex.zero
    var baseTerm = Term.zero
    /// Every entry since `base`, discarded or not.
    var entries: [Entry] = []
    var hardState = HardState()
    var discardedUpTo = LogIndex.zero

    var lastIndex: LogIndex { base.advanced(by: entries.count) }
    var lastTerm: Term { entries.last?.term ?? baseTerm }

    func term(at index: LogIndex) -> Term {
        index == base ? baseTerm : entries[Int(index.rawValue - base.rawValue) - 1].term
    }

    mutating func apply(_ operation: LogOperation) {
        switch operation {
        case .write(let write):
            if let cut = write.truncateAfter, cut < lastIndex {
                entries.removeLast(Int(lastIndex.rawValue - cut.rawValue))
            }
            entries += write.entries
            hardState = write.hardState ?? hardState
        case .discard(let index, _): discardedUpTo = max(discardedUpTo, index)
        case .reset(let index, let term):
            (base, baseTerm, entries, discardedUpTo) = (index, term, [], index)
        case .prepare: break
        }
    }

    /// Something that a Raft node might do next.
    func draw(_ random: inout RandomSource) -> LogOperation {
        switch random.uniform(0..<20) {
        case 0...1 where lastIndex > discardedUpTo:
            let room = lastIndex.rawValue - discardedUpTo.rawValue
            let index = discardedUpTo.advanced(by: random.uniform(0..<Int(room) + 1))
            return .discard(upTo: index, term(at: index))
        case 4 where random.chance(1, in: 5):
            let index = lastIndex.advanced(by: random.uniform(0..<50))
            return .reset(index, max(lastTerm, hardState.term))
        case 2, 3: return .prepare
        default: return .write(drawWrite(&random))
        }
    }

    private func drawWrite(_ random: inout RandomSource) -> LogWrite {
        var term = max(lastTerm, hardState.term)
        var write = LogWrite(ticket: DurabilityTicket(0))
        var last = lastIndex
        if random.chance(1, in: 8) {
            term = term.next
            write.hardState = HardState(
                term: term, votedFor: random.chance(1, in: 2) ? NodeID(random.uniform(0..<4)) : nil)
            let room = Int(lastIndex.rawValue - max(base, discardedUpTo).rawValue)
            if room > 0 && random.chance(1, in: 2) {
                last = LogIndex(lastIndex.rawValue - UInt64(random.uniform(0..<min(room, 20)) + 1))
                write.truncateAfter = last
            }
        }
        let size = random.chance(1, in: 60) ? 20_000 : random.uniform(0..<600)
        for _ in 0..<random.uniform(0..<8) {
            last = last.next
            write.entries.append(
                Entry(
                    index: last, term: term, kind: .command, origin: nil,
                    time: ClusterTime(milliseconds: last.rawValue),
                    payload: random.bytes(random.chance(1, in: 2) ? size : random.uniform(0..<64))))
        }
        return write
    }

    /// What is wrong with the log, nil if nothing is.
    func disagreement(with log: any LogStore) throws(StorageError) -> String? {
        if log.lastIndex != lastIndex { return "last index \(log.lastIndex), not \(lastIndex)" }
        if log.firstIndex.previous > discardedUpTo { return "\(log.firstIndex) is not the first" }
        if log.firstIndex.previous < base { return "\(log.firstIndex) is before the snapshot" }
        let skipped = Int(log.firstIndex.previous.rawValue - base.rawValue)
        return try log.all() == Array(entries[skipped...]) ? nil : "the entries differ"
    }

    /// - Parameter later: hard states that may have been written behind the end of the log.
    func disagreement(with recovery: RaftRecovery, later: [HardState] = []) -> String? {
        if !recovery.isTailTrusted { return "the tail is not trusted" }
        if recovery.lastIndex != lastIndex { return "recovered up to \(recovery.lastIndex)" }
        let states = ([hardState] + later).map {
            lastTerm > $0.term ? HardState(term: lastTerm) : $0
        }
        if !states.contains(recovery.hardState) { return "hard state \(recovery.hardState)" }
        if recovery.snapshotIndex <= lastIndex, recovery.snapshotIndex >= base,
            recovery.snapshotTerm != term(at: recovery.snapshotIndex)
        {
            return "term \(recovery.snapshotTerm) before the first entry"
        }
        var terms: [Term] = []
        for index in recovery.snapshotIndex.rawValue..<lastIndex.rawValue {
            let term = term(at: LogIndex(index + 1))
            if terms.last != term { terms.append(term) }
        }
        return recovery.termStarts.map(\.term) == terms ? nil : "terms \(recovery.termStarts)"
    }
}
