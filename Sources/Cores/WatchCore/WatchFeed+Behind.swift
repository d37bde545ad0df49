// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DequeModule
import KVCore

// Watches that begin in the past, that have fallen behind the ring, or that want previous values,
// read the state: a small page at a time, one at a time for the whole node, so that what is applied
// hardly waits for them. Each page serves all whom it helps.
extension WatchFeed {
    func waitForPage(_ watch: Watch) {
        watch.standing = .behind
        behind.append(watch)
        readPage()
    }

    func readPage() {
        guard pageUnderWay == nil, isOn else { return }
        // In the order in which they came: nobody waits for one who is further behind.
        while let first = behind.first, first.standing != .behind { behind.removeFirst() }
        guard let first = behind.first else { return }
        let withPrevious = behind.contains {
            $0.standing == .behind && $0.group.shape.previousValues
        }
        let request = ChangesRequest(
            after: .last(of: first.told), upTo: dispatched, count: configuration.pageChangesMax,
            bytesMax: configuration.pageBytesMax, withPrevious: withPrevious)
        pageUnderWay = request
        shell.readPage(request)
    }

    /// What the state said to the last `WatchShell.readPage`.
    package func pageRead(_ outcome: ReadOutcome<ChangesPage>, now: MonotonicInstant) {
        guard let request = pageUnderWay else {
            preconditionFailure("a page is read when it was asked for")
        }
        self.now = now
        let waiting = behind
        behind = []
        switch outcome {
        case .compacted(let oldest): compacted(waiting, oldest)
        case .future:
            // The state was replaced meanwhile.
            for watch in waiting where watch.standing == .behind { waitForPage(watch) }
        case .value(let page): feed(waiting, page, request)
        }
        pageUnderWay = nil
        readPage()
    }

    private func feed(_ waiting: Deque<Watch>, _ page: ChangesPage, _ request: ChangesRequest) {
        let after = request.after.revision
        var page = page
        if configuration.has(.splitRevision), page.more, page.events.count > 1 {
            page.events.removeLast()
        }
        var shared: [ObjectIdentifier: [WatchUpdate]] = [:]
        var rest: [Watch] = []
        for watch in waiting where watch.standing == .behind {
            let isHelped =
                watch.told >= after && watch.told < page.revision
                && (request.withPrevious || !watch.group.shape.previousValues)
            guard isHelped else {
                rest.append(watch)
                continue
            }
            let updates: [WatchUpdate]
            if watch.told == after {
                let group = ObjectIdentifier(watch.group)
                updates = shared[group] ?? batch(page, for: watch.group.shape, after: after)
                shared[group] = updates
            } else {
                updates = batch(page, for: watch.group.shape, after: watch.told)
            }
            let told = send(updates, to: watch, from: watch.told)
            let isAllTold = updates.isEmpty || told == page.revision
            watch.told = isAllTold ? page.revision : told
            rest.append(watch)
        }
        // Behind those who came meanwhile.
        for watch in rest where watch.standing == .behind { advance(watch) }
    }

    private func batch(
        _ page: ChangesPage, for shape: WatchShape, after told: Revision
    ) -> [WatchUpdate] {
        var batching = UpdateBatching(configuration)
        for event in page.events
        where event.number.revision > told
            && shape.wants(event.entry.key, isRemoval: event.isRemoval)
        {
            var event = event
            if !shape.previousValues { event.previous = nil }
            batching.add(event)
        }
        return batching.finish(upTo: page.revision)
    }

    private func compacted(_ waiting: Deque<Watch>, _ oldest: Revision) {
        for watch in waiting where watch.standing == .behind {
            guard watch.told.next < oldest else {
                waitForPage(watch)
                continue
            }
            if configuration.has(.skipCompacted) {
                watch.told = Revision(oldest.rawValue - 1)
                advance(watch)
            } else {
                fail(watch, .compacted(oldest: oldest, told: watch.told))
            }
        }
    }
}
