// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import Testing

@testable import WatchCore

/// A connection that takes `room` messages, and then none until it is told that it may again.
private final class Connection: WatchOutlet {
    var watches: [UInt64: Watch] = [:]
    var servedLast: UInt64 = 0
    var room = 0
    private(set) var told: [UInt64: Revision] = [:]
    private(set) var taken: [WatchUpdate] = []
    private(set) var ends: [WatchEnd] = []

    var canStream: Bool { room > 0 }

    func stream(_ update: WatchUpdate, to id: UInt64) -> Bool {
        guard canStream else { return false }
        room -= 1
        taken.append(update)
        push(update, to: id)
        return true
    }

    func push(_ update: WatchUpdate, to id: UInt64) {
        #expect(update.revision >= told[id] ?? .zero)
        told[id] = update.revision
    }

    func push(_ end: WatchEnd, to id: UInt64) { ends.append(end) }
}

/// A node whose state has been applied up to `revision`.
private final class Shell: WatchShell {
    private(set) lazy var feed = WatchFeed(configuration: configuration, shell: self)
    private(set) var revision = Revision.zero
    private let configuration: WatchConfiguration

    init(_ configuration: WatchConfiguration) { self.configuration = configuration }

    func setRecording(_ isOn: Bool, generation: Int) {
        guard isOn else { return }
        feed.recordingBegan(generation, at: revision, now: .zero)
    }

    /// Unless a test says so, everything fits into the ring: nothing is read from the state.
    var isRead = false
    private(set) var pages: [ChangesRequest] = []

    func readPage(_ request: ChangesRequest) {
        if !isRead { Issue.record("\(request)") }
        pages.append(request)
    }

    /// With one change for each revision, without values.
    func answerPage() {
        guard let request = pages.last else { return }
        let first = request.after.revision.rawValue + 1
        let events = (first...revision.rawValue).map { number in
            ChangeEvent(
                number: ChangeNumber(Revision(number), place: 0),
                entry: KeyValue(
                    key: [1], value: [], createRevision: Revision(1),
                    modRevision: Revision(number), version: number),
                isRemoval: false)
        }
        feed.pageRead(
            .value(ChangesPage(events: events, revision: revision, more: false)), now: .zero)
    }
    func dispatchLater(at time: MonotonicInstant) { feed.dispatchDue(now: time) }

    func open(_ id: UInt64, on connection: Connection, from start: Revision? = nil) {
        feed.open(
            id, connection, WatchShape(from: [], to: nil), from: start, current: revision,
            wantsProgress: false, now: .zero)
    }

    /// Puts of one key, each of a revision of its own.
    func put(_ count: Int, bytes: Int) {
        var recording = ChangeRecording()
        for _ in 0..<count {
            revision = revision.next
            recording.append(
                Change(
                    header: ChangeHeader(
                        number: ChangeNumber(revision, place: 0), key: [1],
                        createRevision: Revision(1), version: revision.rawValue, previous: .zero),
                    value: [UInt8](repeating: 7, count: bytes)))
        }
        feed.applied(recording, upTo: revision, now: .zero)
    }
}

/// Many watches on a connection that carries less than there is to be told.
@Suite struct SharedConnectionTests {
    private func crowd(_ count: UInt64) -> (Shell, Connection) {
        var configuration = WatchConfiguration()
        configuration.updateBytesMax = 1000
        configuration.dispatchInterval = .zero
        let shell = Shell(configuration)
        let connection = Connection()
        for id in 1...count { shell.open(id, on: connection) }
        return (shell, connection)
    }

    @Test func noneHasToWaitForAllThatOthersAreToBeTold() {
        let (shell, connection) = crowd(10)
        var apart: [UInt64] = []
        for _ in 0..<50 {
            // Each time as much more for everybody as the connection can carry for one.
            shell.put(3, bytes: 500)
            connection.room = 3
            shell.feed.writable(connection, now: .zero)
            let told = (1...10).compactMap { connection.told[$0]?.rawValue }
            apart.append((told.max() ?? 0) - (told.min() ?? 0))
        }
        // All fall behind, and all alike: but for what the connection takes at a time.
        #expect(apart.allSatisfy { $0 <= 3 }, "\(apart)")
        connection.room = .max
        shell.feed.writable(connection, now: .zero)
        #expect((1...10).allSatisfy { connection.told[$0] == shell.revision })
        #expect(connection.ends.isEmpty)
    }

    /// What differs is only the id: it is put into messages, and those are encoded, once.
    @Test func whoIsAsFarBehindAsOthersIsToldTheSameMessages() {
        let (shell, connection) = crowd(10)
        shell.put(40, bytes: 500)
        connection.room = .max
        shell.feed.writable(connection, now: .zero)
        #expect((1...10).allSatisfy { connection.told[$0] == shell.revision })
        #expect(connection.taken.count >= 10 * 20)
        let distinct = Set(connection.taken.map { ObjectIdentifier($0) })
        #expect(distinct.count == connection.taken.count / 10)
    }
}

/// A watch that was told more elsewhere than the node has yet.
@Suite struct FutureWatchTests {
    /// What is applied at once may be more than a recording takes. The state has then passed what the
    /// watch was told, and nothing else may come for long.
    @Test func aBatchTooLargeToBeRecordedReachesItToo() {
        let shell = Shell(WatchConfiguration())
        shell.isRead = true
        let connection = Connection()
        connection.room = 100
        shell.open(1, on: connection)
        shell.open(2, on: connection, from: Revision(3))
        #expect(connection.told[2] == Revision(2))
        shell.put(9, bytes: ChangeRecording.bytesMax / 8)
        #expect(shell.pages.map(\.after) == [.last(of: .zero)])
        shell.answerPage()
        #expect(connection.told[1] == Revision(9) && connection.told[2] == Revision(9))
    }
}
