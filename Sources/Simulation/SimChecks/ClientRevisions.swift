// SPDX-License-Identifier: GPL-2.0-or-later

import SimFaults

/// Do the revisions that clients were told agree with real time?
///
/// An answer's revision is at least that of each operation that had ended before it began, and a write
/// that changed something has a greater one than each of these, and shares it with no other write.
package enum ClientRevisions {
    /// - Returns: the first operation (by its end) whose revision contradicts an earlier one, and that.
    package static func violation(
        _ history: [ClientOperation]
    ) -> (earlier: ClientOperation, later: ClientOperation)? {
        let ended = history.filter { $0.end != nil && $0.revision != nil }
        let byEnd = ended.sorted { ($0.end ?? 0) < ($1.end ?? 0) }
        var writers: [UInt64: ClientOperation] = [:]
        for write in byEnd where write.changed {
            let revision = write.revision ?? 0
            if let other = writers[revision] { return (other, write) }
            writers[revision] = write
        }
        var next = 0
        var highest: ClientOperation?
        for later in ended.sorted(by: { $0.begin < $1.begin }) {
            while next < byEnd.count, (byEnd[next].end ?? 0) < later.begin {
                let candidate = byEnd[next]
                if (candidate.revision ?? 0) > (highest?.revision ?? 0) { highest = candidate }
                next += 1
            }
            guard let earlier = highest else { continue }
            let (before, now) = (earlier.revision ?? 0, later.revision ?? 0)
            if now < before || (later.changed && now == before) { return (earlier, later) }
        }
        return nil
    }
}

extension ClientOperation {
    /// A write that is known to have changed the store.
    fileprivate var changed: Bool {
        switch answer {
        case .stored, .swapped(true), .deleted(true): true
        default: false
        }
    }
}
