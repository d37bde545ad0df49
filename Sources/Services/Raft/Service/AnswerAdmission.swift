// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import DequeModule
import KVCore
import ProposalCore

/// Which writes may begin, for the answers that they may have.
///
/// What a transaction returns is made once, when it is applied, and must then be kept until its client
/// takes it. So that this is bounded and yet nobody who reads misses an answer, a transaction that may
/// return much is not even proposed while its client has enough to read, or enough on its way. Then
/// whatever else the client sends waits behind it: writes begin in the order in which they came.
struct AnswerAdmission {
    /// Bytes that the answers under way to one client may have.
    static let awaitedBytesMax = 33_554_432
    /// Bytes of all answers under way and unread, above which each client has one answer under way at
    /// a time.
    static let awaitedBytesHigh = 134_217_728

    struct Held {
        let write: PendingWrite
        let kind: WriteClass
        let payload: [UInt8]
    }

    /// By the sinks of clients.
    private var awaited: [ObjectIdentifier: Int] = [:]
    private var awaitedBytes = 0
    private var held: [ObjectIdentifier: Deque<Held>] = [:]
    private(set) var heldCount = 0

    /// - Parameter unread: bytes of answers that were given and have not been read, of all clients.
    func admits(_ write: PendingWrite, unread: Int) -> Bool {
        guard let sink = write.origin?.sink else { return true }
        guard held.isEmpty || held[ObjectIdentifier(sink)] == nil else { return false }
        return hasRoom(for: write, sink, unread)
    }

    private func hasRoom(for write: PendingWrite, _ sink: any ReplySink, _ unread: Int) -> Bool {
        guard write.answerBytes > 0 else { return true }
        guard sink.isWritable else { return false }
        guard let awaited = awaited[ObjectIdentifier(sink)] else { return true }
        return awaited + write.answerBytes <= Self.awaitedBytesMax
            && awaitedBytes + unread + write.answerBytes <= Self.awaitedBytesHigh
    }

    mutating func hold(_ held: Held) {
        guard let sink = held.write.origin?.sink else { return }
        self.held[ObjectIdentifier(sink), default: []].append(held)
        heldCount += 1
    }

    mutating func began(_ write: PendingWrite) {
        guard write.answerBytes > 0, let sink = write.origin?.sink else { return }
        awaited[ObjectIdentifier(sink), default: 0] += write.answerBytes
        awaitedBytes += write.answerBytes
    }

    mutating func ended(_ write: PendingWrite) {
        guard write.answerBytes > 0, let sink = write.origin?.sink else { return }
        let id = ObjectIdentifier(sink)
        let rest = (awaited[id] ?? 0) - write.answerBytes
        precondition(rest >= 0, "what has ended had begun")
        awaited[id] = rest == 0 ? nil : rest
        awaitedBytes -= write.answerBytes
    }

    /// Whose writes wait.
    var sinks: [ObjectIdentifier] { held.isEmpty ? [] : Array(held.keys) }

    /// The next write of that client that need wait no longer: it may begin, or its client has gone.
    mutating func next(of sink: ObjectIdentifier, unread: Int) -> Held? {
        guard let first = held[sink]?.first, let to = first.write.origin?.sink else { return nil }
        guard !to.isOpen || hasRoom(for: first.write, to, unread) else { return nil }
        remove(1, of: sink)
        return first
    }

    /// Those whose time is over.
    mutating func expired(_ now: MonotonicInstant) -> [PendingWrite] {
        var expired: [PendingWrite] = []
        for (sink, waiting) in held where waiting.contains(where: { $0.isExpired(now) }) {
            expired += waiting.filter { $0.isExpired(now) }.map(\.write)
            let rest = waiting.filter { !$0.isExpired(now) }
            heldCount -= waiting.count - rest.count
            held[sink] = rest.isEmpty ? nil : rest
        }
        return expired
    }

    mutating func removeAll() -> [PendingWrite] {
        let all = held.values.flatMap { $0.map(\.write) }
        held = [:]
        heldCount = 0
        return all
    }

    private mutating func remove(_ count: Int, of sink: ObjectIdentifier) {
        held[sink]?.removeFirst(count)
        heldCount -= count
        if held[sink]?.isEmpty == true { held[sink] = nil }
    }
}

extension AnswerAdmission.Held {
    func isExpired(_ now: MonotonicInstant) -> Bool {
        write.origin.map { $0.deadline <= now } ?? false
    }
}

extension ClientService {
    /// After answers were given, or taken.
    func beginHeld() {
        for sink in admission.sinks { beginHeld(of: sink) }
    }

    func beginHeld(of sink: ObjectIdentifier) {
        while let held = admission.next(of: sink, unread: unreadBytes) {
            if held.write.origin?.sink.isOpen == false {
                held.write.origin?.fail(Self.isGone)
            } else {
                begin(held.write, held.kind, held.payload)
            }
        }
    }

    func sweepHeld(_ now: MonotonicInstant) {
        guard admission.heldCount > 0 else { return }
        for write in admission.expired(now) { write.origin?.fail(Self.isNotRead) }
        beginHeld()
    }

    func dismissHeld() {
        for write in admission.removeAll() { write.origin?.fail(Self.hasLeftCluster) }
    }
}
