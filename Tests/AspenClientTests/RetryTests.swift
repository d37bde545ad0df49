// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenTypes
import AspenWire
import FakeRaftServer
import Testing

private let isWrite: @Sendable (FakeRequest) -> Bool = {
    if case .writeKey = $0.request { true } else { false }
}
private let isRead: @Sendable (FakeRequest) -> Bool = {
    if case .readKey = $0.request { true } else { false }
}
private let isAdmin: @Sendable (FakeRequest) -> Bool = {
    if case .addLearner = $0.request { true } else { false }
}

private func options(
    timeout: Duration = .seconds(10), sessions: Bool = true
) -> AspenClient.Options {
    var options = AspenClient.Options()
    options.timeout = timeout
    options.usesSessions = sessions
    return options
}

private func code(
    _ body: () async throws -> Void
) async -> (AspenErrorCode?, AspenError.Retry?) {
    do {
        try await body()
        return (nil, nil)
    } catch let error as AspenError {
        return (error.code, error.retry)
    } catch {
        return (.internal, nil)
    }
}

private let isOpening: @Sendable (FakeRequest) -> Bool = {
    if case .openSession = $0.request { true } else { false }
}

@Suite struct RetryTests {
    /// What the cluster said is the reason, though it was said of the session and not of the write.
    @Test func aWriteWithoutASessionSaysWhyThereIsNone() async throws {
        try await withServer(options: options(timeout: .milliseconds(300))) { server, client in
            server.script { isOpening($0) ? .fail(.unavailable, .safe) : nil }
            do throws(AspenError) {
                _ = try await client.set("k", to: "v")
                Issue.record("the write succeeded")
            } catch {
                #expect(error.code == .unavailable)
                #expect(!error.message.contains("could not connect"), "\(error.message)")
                #expect(error.message.contains("gave up after"), "\(error.message)")
            }
            server.script { isOpening($0) ? .swallow : nil }
            do throws(AspenError) {
                _ = try await client.set("k", to: "v")
                Issue.record("the write succeeded")
            } catch {
                #expect(error.message.contains("no answer from"), "\(error.message)")
                #expect(error.retry == .safe)
            }
        }
    }

    /// So that its reason for giving up comes before the client gives up.
    @Test func theServerIsToldLessTimeThanThereIs() async throws {
        try await withServer(options: options(timeout: .seconds(3))) { server, client in
            _ = try await client.get("k")
            #expect(server.requests.filter(isRead).allSatisfy { $0.timeoutMs <= 2_900 })
        }
    }

    @Test(arguments: [
        [FakeRaftServer.Fault.dropAfter], [.dropBefore], [.dropAfter, .dropBefore, .dropAfter],
        [.fail(.unavailable, .safe)], [.fail(.unavailable, .withSession), .dropAfter], [.garbage],
    ])
    func aWriteUnderASessionIsAppliedOnce(faults: [FakeRaftServer.Fault]) async throws {
        try await withServer { server, client in
            server.faults(faults, for: isWrite)
            let answer = try await client.set("k", to: "v")
            #expect(answer.version == 1)
            #expect(server.appliedCount == 1)
            #expect(server.requests.filter(isWrite).count == faults.count + 1)
            #expect(Set(server.requests.filter(isWrite).map(\.writeKey.session.number)) == [1])
        }
    }

    @Test func withoutASessionALostWriteIsNotRepeated() async throws {
        try await withServer(options: options(sessions: false)) { server, client in
            server.faults([.dropAfter], for: isWrite)
            let outcome = await code { try await client.set("k", to: "v") }
            #expect(outcome == (.unknownOutcome, .withSession))
            #expect(server.requests.filter(isWrite).count == 1)
            #expect(server.sessionCount == 0)
        }
    }

    @Test func withoutASessionARefusedWriteIsRepeated() async throws {
        try await withServer(options: options(sessions: false)) { server, client in
            server.faults([.fail(.unavailable, .safe), .fail(.unavailable, .safe)], for: isWrite)
            try await client.set("k", to: "v")
            #expect(server.appliedCount == 1)
            #expect(server.requests.filter(isWrite).count == 3)
        }
    }

    @Test func administrationIsRepeatedOnlyWhenNotCarriedOut() async throws {
        try await withServer { server, client in
            server.faults([.fail(.unavailable, .safe)], for: isAdmin)
            _ = try await client.addLearner(NodeID(2))
            #expect(server.requests.filter(isAdmin).count == 2)
            server.faults([.dropAfter], for: isAdmin)
            let outcome = await code { _ = try await client.addLearner(NodeID(3)) }
            #expect(outcome.0 == .unknownOutcome)
            #expect(server.requests.filter(isAdmin).count == 3)
        }
    }

    @Test func readsAreRepeated() async throws {
        try await withServer { server, client in
            try await client.set("k", to: "v")
            server.faults(
                [.dropBefore, .dropAfter, .fail(.unavailable, .withSession)], for: isRead)
            #expect(try await client.get("k").entry?.value == Array("v".utf8))
            #expect(server.requests.filter(isRead).count == 4)
        }
    }

    @Test func aFinalErrorIsNotRepeated() async throws {
        try await withServer { server, client in
            server.faults([.fail(.permissionDenied, .never)], for: isRead)
            #expect(await code { _ = try await client.get("k") } == (.permissionDenied, .never))
            #expect(server.requests.filter(isRead).count == 1)
        }
    }

    @Test func anExpiredSessionIsReplacedWhenNothingWasSentUnderIt() async throws {
        try await withServer { server, client in
            try await client.set("a", to: "1")
            server.expireSessions()
            try await client.set("a", to: "2")
            #expect(server.appliedCount == 2)
            #expect(try await client.get("a").entry?.version == 2)
        }
    }

    @Test func anExpiredSessionUnderARetryIsAnUnknownOutcome() async throws {
        try await withServer { server, client in
            server.faults([.dropAfter, .expireSessions], for: isWrite)
            #expect(await code { try await client.set("k", to: "v") }.0 == .unknownOutcome)
            #expect(server.appliedCount == 1)
        }
    }

    @Test func theDeadlineHoldsAndSaysWhatIsUnknown() async throws {
        try await withServer(options: options(timeout: .milliseconds(500))) { server, client in
            server.script { isWrite($0) || isRead($0) ? .swallow : nil }
            #expect(
                await code { try await client.set("k", to: "v") }
                    == (.deadlineExceeded, .withSession))
            #expect(await code { _ = try await client.get("k") } == (.deadlineExceeded, .safe))
            server.script { isWrite($0) ? .fail(.unavailable, .safe) : nil }
            #expect(await code { try await client.set("k", to: "v") } == (.unavailable, .safe))
        }
    }

    /// What changes nothing has no outcome that could be unknown.
    @Test func aReadWhoseConnectionIsLostIsUnavailable() async throws {
        try await withServer(options: options(timeout: .milliseconds(300))) { server, client in
            server.script { isRead($0) ? .dropBefore : nil }
            do {
                _ = try await client.get("k")
                Issue.record("there was no answer")
            } catch let error as AspenError {
                // The latter if its time is over while it tries once more.
                #expect(error.code == .unavailable || error.code == .deadlineExceeded)
                #expect(error.retry == .safe)
                #expect(!error.message.contains("carried out"), "\(error.message)")
            }
        }
    }

    @Test func acknowledgedNumbersAreReported() async throws {
        try await withServer { server, client in
            for number in 1...5 { try await client.set("k", to: "\(number)") }
            let last = try #require(server.requests.last(where: isWrite))
            #expect(last.writeKey.session.number == 5)
            #expect(last.writeKey.session.acknowledgedBelow == 5)
        }
    }

    /// More writes at once than a session has room for: all are carried out, none beyond the window.
    @Test func manyAtOnceStayWithinTheWindow() async throws {
        try await withServer { server, client in
            server.faults(Array(repeating: .dropAfter, count: 3), for: isWrite)
            await withTaskGroup { group in
                for number in 0..<1000 {
                    group.addTask {
                        await #expect(throws: Never.self) {
                            try await client.set("k\(number)", to: "v")
                        }
                    }
                }
            }
            #expect(server.appliedCount == 1000)
            for request in server.requests.filter(isWrite) {
                let session = request.writeKey.session
                #expect(
                    session.number - session.acknowledgedBelow < UInt64(Limits.sessionWindowMax))
            }
        }
    }

    @Test func cancellationReturnsAtOnce() async throws {
        try await withServer { server, client in
            server.script { isRead($0) || isWrite($0) ? .swallow : nil }
            let read = Task { await code { _ = try await client.get("k") } }
            let write = Task { await code { try await client.set("k", to: "v") } }
            while server.requests.filter({ isRead($0) || isWrite($0) }).count < 2 {
                await Task.yield()
            }
            read.cancel()
            write.cancel()
            #expect(await read.value == (.deadlineExceeded, .safe))
            #expect(await write.value == (.unknownOutcome, .withSession))
            let early = Task {
                withUnsafeCurrentTask { $0?.cancel() }
                return await code { _ = try await client.get("k") }
            }
            #expect(await early.value.0 == .deadlineExceeded)
        }
    }

    /// A request with many answers too, and it is not sent again.
    @Test func aCancelledBackupReturnsAtOnce() async throws {
        try await withServer { server, client in
            let isBackup: @Sendable (FakeRequest) -> Bool = {
                if case .backup = $0.request { true } else { false }
            }
            server.script { isBackup($0) ? .swallow : nil }
            let backup = Task { await code { _ = try await client.backup { _ in } } }
            while !server.requests.contains(where: isBackup) { await Task.yield() }
            backup.cancel()
            #expect(await backup.value == (.deadlineExceeded, .safe))
            try await client.set("k", to: "v")
            #expect(server.requests.filter(isBackup).count == 1)
        }
    }

    @Test func theNextEndpointTakesOver() async throws {
        let first = FakeRaftServer()
        let second = FakeRaftServer(sharing: first)
        try await first.start()
        try await second.start()
        let client = try await AspenClient.connect(.sockets([first.path, second.path]))
        try await client.set("k", to: "1")
        #expect(second.connectionCount == 0)
        await first.stop()
        try await client.set("k", to: "2")
        #expect(second.connectionCount == 1)
        #expect(try await client.get("k").entry?.version == 2)
        await client.close()
        await second.stop()
    }

    @Test func aNodeWithoutALeaderIsLeft() async throws {
        let first = FakeRaftServer()
        let second = FakeRaftServer(sharing: first)
        try await first.start()
        try await second.start()
        first.script { isRead($0) ? .fail(.unavailable, .safe) : nil }
        let client = try await AspenClient.connect(.sockets([first.path, second.path]))
        #expect(try await client.get("k").entry == nil)
        #expect(first.requests.filter(isRead).count == 2)
        #expect(second.requests.filter(isRead).count == 1)
        await client.close()
        await first.stop()
        await second.stop()
    }

    @Test func noSocketIsSaidAtOnce() async throws {
        let outcome = await code {
            _ = try await AspenClient.connect(.socket("/nonexistent/raft.sock"))
        }
        #expect(outcome == (.unavailable, .safe))
    }

    @Test func closingEndsTheSession() async throws {
        let server = FakeRaftServer()
        try await server.start()
        let client = try await AspenClient.connect(.socket(server.path))
        try await client.set("k", to: "v")
        #expect(server.sessionCount == 1)
        await client.close()
        #expect(server.sessionCount == 0)
        #expect(await code { _ = try await client.get("k") }.0 == .unavailable)
        await server.stop()
    }
}
