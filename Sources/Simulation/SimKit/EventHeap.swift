// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// What happens next in virtual time: earliest first, and among equals the one that was scheduled
/// first, so that a run never depends on how the heap happens to be laid out.
package struct EventHeap<Event> {
    @usableFromInline
    struct Item {
        @usableFromInline let at: UInt64
        @usableFromInline let sequence: UInt64
        @usableFromInline let event: Event

        @inlinable
        init(at: UInt64, sequence: UInt64, event: Event) {
            self.at = at
            self.sequence = sequence
            self.event = event
        }

        @inlinable
        func precedes(_ other: Item) -> Bool {
            at != other.at ? at < other.at : sequence < other.sequence
        }
    }

    @usableFromInline var items: [Item] = []
    @usableFromInline var scheduled: UInt64 = 0

    @inlinable
    package init() {}

    package var count: Int { items.count }
    package var isEmpty: Bool { items.isEmpty }

    /// When the next event happens.
    package var next: MonotonicInstant? {
        items.first.map { MonotonicInstant(nanoseconds: $0.at) }
    }

    @inlinable
    package mutating func schedule(_ event: Event, at time: MonotonicInstant) {
        scheduled += 1
        let item = Item(at: time.nanoseconds, sequence: scheduled, event: event)
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

    @inlinable
    package mutating func pop() -> (at: MonotonicInstant, event: Event)? {
        guard let last = items.popLast() else { return nil }
        guard let first = items.first else {
            return (MonotonicInstant(nanoseconds: last.at), last.event)
        }
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
        return (MonotonicInstant(nanoseconds: first.at), first.event)
    }
}
