// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import RaftStorage
import SimFaults

/// Reads, and what a backup shows, held against the reference.
extension Oracle {
    package func looked(
        _ node: Int, number: UInt64, _ read: SimRead, _ answer: SimReadAnswer
    ) throws(Violation) {
        guard let began = looks[node].removeValue(forKey: number) else { return }
        let isPast = read.at != nil
        if !isPast, answer.revision < reference.revision(at: began) {
            throw breach(
                "reads are current",
                "n\(node + 1) answers from revision \(answer.revision); when the read came, "
                    + "\(reference.revision(at: began)) was committed")
        }
        try check(node, read, answer)
    }

    package func lookedStale(
        _ node: Int, _ read: SimRead, _ answer: SimReadAnswer, now: MonotonicInstant
    ) throws(Violation) {
        // By the node's clock, which runs up to a twentieth faster or slower.
        let bound = (read.staleness ?? .zero) * 1.06
        let index = commitTimes.last { $0.at + bound < now }?.index ?? .zero
        if answer.revision < reference.revision(at: index) {
            throw breach(
                "stale reads keep their bound",
                "n\(node + 1) answers from revision \(answer.revision); \(bound) earlier "
                    + "\(reference.revision(at: index)) was committed")
        }
        try check(node, read, answer)
    }

    private func check(
        _ node: Int, _ read: SimRead, _ answer: SimReadAnswer
    ) throws(Violation) {
        guard answer.revision <= reference.revision else {
            throw breach("reads are current", "n\(node + 1) answers from a revision to come")
        }
        let expected = expectation(read, answer)
        if answer.entries != expected.entries || answer.more != expected.more
            || answer.events != expected.events
        {
            throw breach(
                "reads see one revision",
                "n\(node + 1) answers \(read) at \(answer.revision) with \(answer), not "
                    + "\(expected)")
        }
    }

    private func expectation(_ read: SimRead, _ answer: SimReadAnswer) -> SimReadAnswer {
        var expected = SimReadAnswer(revision: answer.revision, compacted: answer.compacted)
        switch read.what {
        case .keys(let keys):
            var bytes = 0
            for key in keys {
                let entry = reference.value(of: key, at: answer.revision)
                bytes += entry.map { $0.key.count + $0.value.count } ?? 0
                let isFull = bytes > reference.bounds.scanPageBytesMax
                if entry != nil, isFull, !expected.entries.isEmpty { break }
                expected.entries.append(entry)
            }
        case .range(let from, let to, let limit):
            let all = reference.range(from: from, to: to, at: answer.revision)
            let page = reference.page(all, limit: limit)
            expected.entries = page.entries
            expected.more = page.more
        case .history(let key, let limit):
            let page = reference.history(
                of: key, upTo: answer.revision, compacted: answer.compacted, limit: limit)
            expected.events = page.events
            expected.more = page.more
        }
        return expected
    }

    package func lookCompacted(_ node: Int, number: UInt64, _ at: Revision) throws(Violation) {
        looks[node][number] = nil
        if at >= reference.compacted {
            throw breach(
                "what is not compacted can be read",
                "n\(node + 1) refuses revision \(at), compacted is \(reference.compacted)")
        }
    }

    // MARK: - Backups

    package func restored(
        _ node: Int, _ header: BackupHeader, _ state: MemoryState, from source: MemoryState
    ) throws(Violation) {
        func different(_ what: String) -> Violation {
            breach("a backup is whole", "restored from n\(node + 1): \(what)")
        }
        let revision = reference.revision(at: header.index)
        guard header.index == state.appliedIndex, header.revision == revision,
            state.revision == revision
        else {
            throw different(
                "it says revision \(header.revision) at \(header.index), and shows "
                    + "\(state.revision) at \(state.appliedIndex)")
        }
        for past in [revision, source.meta.compacted] {
            let expected = reference.range(from: [], to: nil, at: past)
            var found: [KeyValue] = []
            var from: [UInt8]? = []
            while let next = from {
                let request = RangeRequest(
                    from: next, to: nil, limit: Limits.batchCountMax, at: past)
                guard case .page(let page) = state.range(request) else { break }
                found += page.entries
                from = page.more ? page.entries.last.map { $0.key + [0] } : nil
            }
            guard found == expected else {
                throw different("other keys than there were at \(past)")
            }
        }
        let leases = source.leases(after: .none, limit: .max)
        guard state.leases(after: .none, limit: .max) == leases else {
            throw different("other leases")
        }
        for lease in leases.leases
        where state.keys(of: lease.id, limit: .max) != source.keys(of: lease.id, limit: .max) {
            throw different("other keys under lease \(lease.id)")
        }
        guard state.nextSessionExpiry() == nil, state.meta.sessionCount == 0 else {
            throw different("sessions of another cluster's clients")
        }
        guard state.contentHash() == state.recomputeContentHash() else {
            throw different("the hash is not that of the rows")
        }
    }
}
