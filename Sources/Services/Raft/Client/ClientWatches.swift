// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore
import Synchronization

/// What a watch reports besides its range.
public struct WatchOptions: Sendable, Equatable {
    public enum Kinds: Sendable { case all, puts, deletes }
    public var kinds = Kinds.all
    /// Each event comes with what it replaced. The server reads that from its disk.
    public var previousValues = false
    /// Updates without events come as well, every 5 s when nothing happens.
    public var progress = false

    public init(kinds: Kinds = .all, previousValues: Bool = false, progress: Bool = false) {
        self.kinds = kinds
        self.previousValues = previousValues
        self.progress = progress
    }
}

/// Something that happened.
public struct WatchUpdate: Sendable, Equatable {
    /// All changes up to and with this revision have been told: another watch, of another process,
    /// goes on from the next one.
    public var revision: Revision
    /// In order; the events of one revision are never split.
    public var events: [KeyEvent]
}

extension AspenClient {
    /// Follows what happens to the keys of a range: every change, once, in order.
    ///
    /// The watch lives through lost connections, elections and dead nodes: it goes on at whatever
    /// node can be reached, from where it was. It begins with the first `next()`, and ends, on the
    /// server too, when its task is cancelled or its iterator goes.
    ///
    /// ```swift
    /// for try await update in client.watch(KeyRange(prefix: "jobs/")) {
    ///     for event in update.events { print(event.kind, event.entry.key) }
    /// }
    /// ```
    ///
    /// - Parameter from: the first revision of interest; nil: whatever comes after now.
    /// - Throws: from `next()`: `compacted`, with `oldestRevision`, when what comes next is no longer
    ///   kept: read the keys again, then watch from the revision after the one that was read.
    ///   `permissionDenied`, `resourceExhausted` (more than `Limits.watchesPerConnectionMax`).
    public func watch(
        _ range: KeyRange, from: Revision? = nil, _ options: WatchOptions = WatchOptions()
    ) -> WatchUpdates {
        WatchUpdates(client: self, range: range, from: from, options: options)
    }
}

/// What `AspenClient.watch` returns. Each iterator is a watch of its own.
public struct WatchUpdates: AsyncSequence, Sendable {
    let client: AspenClient
    let range: KeyRange
    let from: Revision?
    let options: WatchOptions

    public struct AsyncIterator: AsyncIteratorProtocol {
        let handle: WatchHandle

        public mutating func next() async throws(AspenError) -> WatchUpdate? {
            try await next(isolation: nil)
        }

        public mutating func next(
            isolation actor: isolated (any Actor)?
        ) async throws(AspenError) -> WatchUpdate? {
            try await handle.next()
        }
    }

    public func makeAsyncIterator() -> AsyncIterator {
        AsyncIterator(handle: WatchHandle(self))
    }
}

/// Ends the watch when nobody holds it any more.
final class WatchHandle: Sendable {
    private let client: AspenClient
    private let watch: NIOLoopBoundBox<ClientWatch?>
    private let updates: WatchUpdates

    init(_ updates: WatchUpdates) {
        client = updates.client
        self.updates = updates
        watch = .makeBoxSendingValue(nil, eventLoop: updates.client.engine.eventLoop)
    }

    func next() async throws(AspenError) -> WatchUpdate? {
        let loop = client.engine.eventLoop
        let result: Result<WatchUpdate?, AspenError> = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                loop.execute { [self] in
                    current.take { continuation.resume(returning: $0) }
                    if isCancelled.load(ordering: .acquiring) { current.cancel() }
                }
            }
        } onCancel: {
            isCancelled.store(true, ordering: .releasing)
            loop.execute { [self] in current.cancel() }
        }
        return try result.get()
    }

    private let isCancelled = Atomic<Bool>(false)

    /// On the loop.
    private var current: ClientWatch {
        if let made = watch.value { return made }
        let made = ClientWatch(
            client.engine.value, updates.range, from: updates.from, updates.options)
        watch.value = made
        return made
    }

    deinit {
        client.engine.eventLoop.execute { [watch] in watch.value?.cancel() }
    }
}
