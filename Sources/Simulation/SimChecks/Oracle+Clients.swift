// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimFaults
import WatchCore

/// What one watcher has been told.
struct WatcherBook {
    var shape: WatchShape
    /// Nil until the watch has begun.
    var told: Revision?
    var start: Revision?
    var events = 0
}

/// What clients get, held against what they should.
extension Oracle {
    func checkResults(
        _ node: Int, _ entries: [Entry], _ results: [CommandResult]
    ) throws(Violation) {
        for (entry, result) in zip(entries, results) {
            // It may have to be kept, and given again.
            let bytes = ResultCodec.encode(result)
            if entry.index == reference.applied.next {
                if entry.time.milliseconds < reference.time {
                    throw breach(
                        "cluster time never goes back",
                        "entry \(entry.index) is of \(entry.time.milliseconds) ms, after "
                            + "\(reference.time)")
                }
                reference.apply(entry, answerBytes: bytes.count)
            }
            guard entry.index <= reference.applied else { continue }
            guard (try? ResultCodec.decode(bytes)) == result else {
                throw breach("answers can be kept", "not \(result)")
            }
            let expected = reference.result(at: entry.index)
            if !result.means(expected) {
                throw breach(
                    "results are right",
                    "n\(node + 1) answers entry \(entry.index) with \(result), not \(expected)")
            }
        }
    }

    /// Whoever is first at an index is looked at now and then; the others by the hash.
    func auditIfDue(_ node: Int, _ state: MemoryState) throws(Violation) {
        guard state.appliedIndex == reference.applied,
            reference.applied.rawValue >= audited.rawValue + Self.auditInterval
        else { return }
        audited = reference.applied
        try audit(node, state)
    }

    /// - Note: nothing is said of a state at an older index.
    package func audit(_ node: Int, _ state: MemoryState) throws(Violation) {
        guard state.appliedIndex == reference.applied else { return }
        let fault: String?
        do throws(StorageError) {
            fault = try StateAudit(reference, state).fault()
        } catch {
            fault = "it has no snapshot: \(error)"
        }
        if let fault {
            throw breach(
                "a state is what was written",
                "n\(node + 1) at \(state.appliedIndex), revision \(state.revision): \(fault)")
        }
    }

    package func opened(
        _ node: Int, _ state: MemoryState, isMadeAnew: Bool
    ) throws(Violation) {
        if !isMadeAnew { try checkJoin(node, applied: state.appliedIndex) }
        let expected = reference.revision(at: state.appliedIndex)
        if state.revision != expected {
            throw breach(
                "revisions never go back",
                "n\(node + 1) starts at revision \(state.revision), index \(state.appliedIndex) "
                    + "made \(expected)")
        }
    }

    // MARK: - Watches

    package func watchOpened(_ watcher: Int, _ shape: WatchShape, from start: Revision?) {
        watchers[watcher] = WatcherBook(shape: shape, told: nil, start: start)
    }

    package func watchTold(
        _ watcher: Int, _ events: [ChangeEvent], upTo revision: Revision
    ) throws(Violation) {
        guard let book = watchers[watcher] else { return }
        guard let told = book.told else {
            if let start = book.start, revision.next != start, start > .zero {
                throw breach(
                    "watches go on where they were",
                    "watcher \(watcher) wanted to go on from \(start) and begins after \(revision)")
            }
            watchers[watcher]?.told = revision
            return
        }
        guard revision >= told, revision <= reference.revision else {
            throw breach(
                "watches are in order",
                "watcher \(watcher) was told \(told), now hears up to \(revision) of "
                    + "\(reference.revision)")
        }
        let expected = reference.events(after: told, upTo: revision).joined()
            .filter { book.shape.wants($0.entry.key, isRemoval: $0.isRemoval) }
        let isRight =
            events.count == expected.count
            && zip(events, expected).allSatisfy { agree($0, $1, book.shape) }
        if !isRight {
            throw breach(
                "watches miss and repeat nothing",
                "watcher \(watcher) hears for revisions \(told.next)...\(revision): "
                    + "\(events.map(Self.brief)), not \(expected.map(Self.brief))")
        }
        watchers[watcher]?.told = revision
        watchers[watcher]?.events += events.count
        eventsTold += events.count
    }

    private func agree(_ one: ChangeEvent, _ other: ChangeEvent, _ shape: WatchShape) -> Bool {
        guard one.number == other.number, one.isRemoval == other.isRemoval,
            one.entry.key == other.entry.key, one.entry.modRevision == other.entry.modRevision
        else { return false }
        // Where pages are small, values that do not fit are left out.
        let isLeftOut = one.previous == nil && reference.bounds.changePageBytesMax < 1 << 20
        if shape.previousValues, one.previous != other.previous, !isLeftOut { return false }
        return one.isRemoval || one.entry == other.entry
    }

    private static func brief(_ event: ChangeEvent) -> String {
        let key = String(decoding: event.entry.key, as: UTF8.self)
        return "\(event.number.revision)\(event.isRemoval ? "-" : "+")\(key)"
    }

    package func watchEnded(_ watcher: Int, _ end: WatchEnd) throws(Violation) {
        guard case .compacted(let oldest, let told) = end else { return }
        guard oldest <= reference.compacted.next, told.next < oldest else {
            throw breach(
                "what is not compacted can be watched",
                "watcher \(watcher) is told that changes before \(oldest) are gone, compacted is "
                    + "\(reference.compacted)")
        }
    }

    /// Nothing that it wants to hear is still to come.
    package func isFullyTold(_ watcher: Int) -> Bool {
        let answer = hasHeardAll(watcher)
        saidOfWatchers.append(answer)
        return answer
    }

    private func hasHeardAll(_ watcher: Int) -> Bool {
        guard let book = watchers[watcher], let told = book.told else { return false }
        return !reference.events(after: told, upTo: reference.revision).joined()
            .contains { book.shape.wants($0.entry.key, isRemoval: $0.isRemoval) }
    }
}
