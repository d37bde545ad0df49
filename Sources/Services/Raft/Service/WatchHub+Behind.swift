// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule
import KVCore
import NIOCore
import RaftStorage

// Watches that begin in the past, that have fallen behind the ring, or that want previous values,
// read the state: a small page at a time, one at a time for the whole node, so that what is applied
// hardly waits for them. Each page serves all whom it helps.
extension WatchHub {
    /// A page ends with the revision that reaches one of these.
    static let pageChangesMax = 256
    static let pageBytesMax = 262_144

    func waitForPage(_ watch: Watch) {
        watch.standing = .behind
        behind.append(watch)
        readPage()
    }

    func readPage() {
        guard !isReadingPage, isOn else { return }
        // In the order in which they came: nobody waits for one who is further behind.
        while let first = behind.first, first.standing != .behind { behind.removeFirst() }
        guard let first = behind.first else { return }
        isReadingPage = true
        let after = first.told
        let withPrevious = behind.contains {
            $0.standing == .behind && $0.group.shape.previousValues
        }
        let request = ChangesRequest(
            after: .last(of: after), upTo: dispatched, count: Self.pageChangesMax,
            bytesMax: Self.pageBytesMax, withPrevious: withPrevious)
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.state.perform { store in
            let outcome = try store.changes(request)
            return { box.value.pageRead(after, withPrevious: withPrevious, outcome) }
        }
    }

    private func pageRead(
        _ after: Revision, withPrevious: Bool, _ outcome: ReadOutcome<ChangesPage>
    ) {
        let waiting = behind
        behind = []
        switch outcome {
        case .compacted(let oldest): compacted(waiting, oldest)
        case .future:
            // The state was replaced meanwhile.
            for watch in waiting where watch.standing == .behind { waitForPage(watch) }
        case .value(let page): feed(waiting, page, after, withPrevious: withPrevious)
        }
        isReadingPage = false
        readPage()
    }

    private func feed(
        _ waiting: Deque<Watch>, _ page: ChangesPage, _ after: Revision, withPrevious: Bool
    ) {
        var shared: [ObjectIdentifier: [EncodedUpdate]] = [:]
        var rest: [Watch] = []
        for watch in waiting where watch.standing == .behind {
            let isHelped =
                watch.told >= after && watch.told < page.revision
                && (withPrevious || !watch.group.shape.previousValues)
            guard isHelped else {
                rest.append(watch)
                continue
            }
            let updates: [EncodedUpdate]
            if watch.told == after {
                let group = ObjectIdentifier(watch.group)
                updates = shared[group] ?? encode(page, for: watch.group.shape, after: after)
                shared[group] = updates
            } else {
                updates = encode(page, for: watch.group.shape, after: watch.told)
            }
            let told = send(updates, to: watch, from: watch.told)
            let isAllTold = updates.isEmpty || told == page.revision
            watch.told = isAllTold ? page.revision : told
            rest.append(watch)
        }
        // Behind those who came meanwhile.
        for watch in rest where watch.standing == .behind { advance(watch) }
    }

    private func encode(
        _ page: ChangesPage, for shape: WatchShape, after told: Revision
    ) -> [EncodedUpdate] {
        var encoder = UpdateEncoder()
        for event in page.events
        where event.number.revision > told
            && shape.wants(event.entry.key, isRemoval: event.isRemoval)
        {
            var event = event
            if !shape.previousValues { event.previous = nil }
            encoder.add(event)
        }
        return encoder.finish(upTo: page.revision)
    }

    private func compacted(_ waiting: Deque<Watch>, _ oldest: Revision) {
        for watch in waiting where watch.standing == .behind {
            guard watch.told.next < oldest else {
                waitForPage(watch)
                continue
            }
            let error = AspenError.compacted(
                "changes before revision \(oldest) are compacted away, and this watch had been told "
                    + "those up to \(watch.told): read the keys, then watch from the revision after "
                    + "the one that the answer shows", oldest: oldest)
            fail(watch, error)
        }
    }
}
