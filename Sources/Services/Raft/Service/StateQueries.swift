// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftStorage

extension StateStore {
    func answer(_ query: StateQuery) throws(StorageError) -> StateAnswer {
        switch query {
        case .get(let key): return .value(try get(key, at: nil), revision: revision)
        case .range(let request): return .range(try range(request))
        case .page(let request): return .page(try ScanPage.read(request, from: self))
        case .keys(let keys, let revision): return .keys(try all(keys, at: revision))
        case .count(let request): return .count(try count(request))
        case .history(let key, let before, let limit):
            return .history(try history(of: key, before: before, limit: limit))
        case .lease(let id, let limit):
            let row = try lease(id)
            let attached = row == nil || limit == 0 ? [] : try keys(of: id, limit: limit)
            return .lease(row, keys: attached, time: time)
        case .leases(let after, let limit):
            return .leases(try leases(after: after, limit: limit), time: time)
        }
    }

    /// All that were asked for, as long as they fit into one answer; else too few.
    private func all(
        _ wanted: [[UInt8]], at revision: Revision?
    ) throws(StorageError) -> ReadOutcome<KeysPage> {
        guard !wanted.isEmpty else {
            return .value(KeysPage(entries: [], revision: revision ?? self.revision))
        }
        var whole: KeysPage?
        var bytes = 0
        while (whole?.entries.count ?? 0) < wanted.count {
            let rest = whole.map { Array(wanted[$0.entries.count...]) } ?? wanted
            let outcome = try get(rest, at: whole?.revision ?? revision)
            guard case .value(let page) = outcome else { return outcome }
            for entry in page.entries { bytes += entry?.byteCount ?? 0 }
            if bytes > ClientService.batchReadBytesMax { break }
            if whole == nil { whole = page } else { whole?.entries += page.entries }
        }
        return .value(whole ?? KeysPage(entries: [], revision: revision ?? self.revision))
    }
}
