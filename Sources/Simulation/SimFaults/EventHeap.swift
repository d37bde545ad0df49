// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// What happens next in virtual time: earliest first, and among equals the one that was scheduled
/// first, so that a run never depends on how the heap happens to be laid out.
///
/// Events stay where they are put; what moves up and down the heap are three numbers. It lies in the
/// module of the events: generic code of another module is not specialised for them, and then took a
/// quarter of a run.
package struct EventHeap<Event> {
    private struct Item {
        let at: UInt64
        let sequence: UInt64
        /// In `events`.
        let place: Int

        init(at: UInt64, sequence: UInt64, place: Int) {
            self.at = at
            self.sequence = sequence
            self.place = place
        }

        func precedes(_ other: Item) -> Bool {
            at != other.at ? at < other.at : sequence < other.sequence
        }
    }

    private var items: [Item] = []
    private var events: [Event?] = []
    private var vacant: [Int] = []
    private var scheduled: UInt64 = 0

    package init() {}

    package var count: Int { items.count }
    package var isEmpty: Bool { items.isEmpty }

    /// When the next event happens.
    package var next: MonotonicInstant? {
        items.first.map { MonotonicInstant(nanoseconds: $0.at) }
    }

    package mutating func schedule(_ event: Event, at time: MonotonicInstant) {
        scheduled += 1
        let item = Item(at: time.nanoseconds, sequence: scheduled, place: keep(event))
        items.append(item)
        var child = items.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard item.precedes(items[parent]) else { break }
            items[child] = items[parent]
            child = parent
        }
        items[child] = item
    }

    package mutating func pop() -> (at: MonotonicInstant, event: Event)? {
        guard let last = items.popLast() else { return nil }
        guard let first = items.first else { return take(last) }
        var hole = 0
        while true {
            var child = 2 * hole + 1
            guard child < items.count else { break }
            if child + 1 < items.count, items[child + 1].precedes(items[child]) { child += 1 }
            guard items[child].precedes(last) else { break }
            items[hole] = items[child]
            hole = child
        }
        items[hole] = last
        return take(first)
    }

    private mutating func keep(_ event: Event) -> Int {
        guard let place = vacant.popLast() else {
            events.append(event)
            return events.count - 1
        }
        events[place] = event
        return place
    }

    private mutating func take(_ item: Item) -> (at: MonotonicInstant, event: Event)? {
        guard let event = events[item.place].take() else { return nil }
        vacant.append(item.place)
        return (MonotonicInstant(nanoseconds: item.at), event)
    }
}
