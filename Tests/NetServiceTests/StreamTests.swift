// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOCore
import NetClient
import NetService
import Synchronization
import Testing

extension NetServiceTests {
    @Suite struct StreamTests {
        @Test func aStreamIsJoinedToTheServiceWithItsPrincipal() async throws {
            try await withCluster(2) { nodes in
                let stream = try await nodes[0].open(to: nodes[1].endpoint)
                try await stream.write(Array("hello".utf8))
                #expect(await eventually { stream.received.withLock { $0 } == Array("hello".utf8) })
                let principal = try #require(nodes[1].echo.principals.withLock { $0.first })
                #expect(principal.endpoint == nodes[0].endpoint)
                #expect(principal.alpn == .raft)
                #expect(principal.hasProvedCookie)
                #expect(principal.tokenChain.isEmpty)
                #expect(principal.remoteAddress == nodes[0].address)
            }
        }

        @Test func everyNodeReachesEveryOther() async throws {
            try await withCluster(3) { nodes in
                for from in nodes {
                    for to in nodes where to !== from {
                        let stream = try await from.open(to: to.endpoint)
                        try await stream.write([1, 2, 3])
                        #expect(await eventually { stream.count == 3 })
                        try await stream.close()
                    }
                }
            }
        }

        @Test func endsArePassedOnInBothDirections() async throws {
            try await withCluster(2) { nodes in
                let stream = try await nodes[0].open(to: nodes[1].endpoint)
                let bytes = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
                try await stream.write(bytes)
                try await stream.end()
                #expect(await eventually { stream.isClosed.withLock { $0 } })
                let isWhole = stream.received.withLock { $0 == bytes }
                #expect(isWhole, "all of it before the end: \(stream.count) of \(bytes.count)")
            }
        }

        /// Both daemons are told to stop, net first: it carries raft's hand-over until raft is gone.
        @Test func aNetThatStopsCarriesItsRaftsLastWords() async throws {
            try await withCluster(2, configure: { $0.raftGraceMax = .minutes(1) }) { nodes in
                let stopped = try nodes[0].stopAsDaemon()
                let stream = try await nodes[0].open(to: nodes[1].endpoint)
                try await stream.write([1, 2, 3])
                #expect(await eventually { stream.count == 3 })
                try await nodes[0].stopControl()
                try await stopped.get()
                #expect(await eventually { stream.isClosed.withLock { $0 } })
            }
        }

        /// Its raft stays: a restart of net alone does not wait for long.
        @Test func aNetThatStopsAloneDoesNotWaitForItsRaft() async throws {
            try await withCluster(2, configure: { $0.raftGraceMax = .milliseconds(1) }) { nodes in
                try await nodes[0].stopAsDaemon().get()
                #expect(await eventually { nodes[0].losses.withLock { $0 } == 1 })
            }
        }

        @Test func aSlowReaderMakesTheWriterWait() async throws {
            try await withCluster(2) { nodes in
                let stream = try await nodes[0].open(to: nodes[1].endpoint)
                let channel = try #require(stream.channel.withLock { $0 })
                try await channel.setOption(.autoRead, value: false).get()
                let block = ByteBuffer(repeating: 7, count: 1 << 16)
                let total = 1000
                let writer = Task {
                    for _ in 0..<total { try await channel.writeAndFlush(block) }
                }
                // 64 MB do not fit anywhere on the way, so the writer must come to a stand.
                var before = -1
                var now = residentBytes()
                while abs(now - before) > 1 << 20 {
                    before = now
                    try await Task.sleep(for: .milliseconds(100))  // polls
                    now = residentBytes()
                }
                let echoed = nodes[1].echo.channels.withLock { $0.count }
                #expect(echoed == 1)
                #expect(stream.count < total << 16)
                try await channel.setOption(.autoRead, value: true).get()
                try await writer.value
                #expect(await eventually(30) { stream.count == total << 16 })
            }
        }

        @Test func aPeerThatIsNotThereIsUnavailableWithinTheTimeout() async throws {
            try await withCluster(2) { nodes in
                try await nodes[1].stopNet()
                let start = ContinuousClock.now
                // Until the loss is seen the stream may be opened and is then closed.
                var code: AspenErrorCode?
                while code == nil, ContinuousClock.now - start < .seconds(5) {
                    do {
                        let stream = try await nodes[0].open(to: nodes[1].endpoint)
                        _ = await eventually { stream.isClosed.withLock { $0 } }
                    } catch let error as AspenError {
                        code = error.code
                    }
                }
                #expect(code == .unavailable)
            }
        }

        @Test func whomNobodyNamesIsRefusedAtOnce() async throws {
            try await withCluster(2) { nodes in
                let stranger = TestNode()
                let start = ContinuousClock.now
                await #expect(throws: AspenError.self) {
                    _ = try await nodes[0].open(to: stranger.endpoint)
                }
                #expect(ContinuousClock.now - start < .milliseconds(500))
            }
        }

        @Test func aServiceThatDoesNotBelongToTheProtocolIsRefused() async throws {
            try await withCluster(2) { nodes in
                await #expect(throws: AspenError.self) {
                    _ = try await nodes[0].open(to: nodes[1].endpoint, alpn: .raft, service: .blob)
                }
            }
        }

        @Test func localCallersReachAnotherNodeAsClients() async throws {
            let nodes = [TestNode(), TestNode()]
            for node in nodes {
                try await node.start { $0.areTokensRequired = false }
                try await node.startEcho()
                try await node.startControl(nodes.filter { $0 !== node }.map(\.peer))
            }
            #expect(await eventually { nodes[0].has(.peerUp(nodes[1].endpoint)) })
            let stream = try await nodes[0].open(to: nodes[1].endpoint, alpn: .client)
            try await stream.write([42])
            #expect(await eventually { stream.count == 1 })
            let principal = try #require(nodes[1].echo.principals.withLock { $0.first })
            #expect(principal.alpn == .client)
            #expect(!principal.hasProvedCookie)
            for node in nodes { try await node.stop() }
        }

        @Test func withTokensRequiredAStreamWithoutOneIsRefused() async throws {
            try await withCluster(2) { nodes in
                let stream = try await nodes[0].open(to: nodes[1].endpoint, alpn: .client)
                #expect(await eventually { stream.isClosed.withLock { $0 } })
                #expect(await eventually { nodes[1].log.count("no token was shown") == 1 })
                #expect(nodes[1].echo.principals.withLock { $0.isEmpty })
            }
        }
    }
}

/// The resident set of this process (proc(5): statm).
func residentBytes() -> Int {
    var buffer = [UInt8](repeating: 0, count: 256)
    let descriptor = open("/proc/self/statm", O_RDONLY)
    defer { close(descriptor) }
    let count = read(descriptor, &buffer, buffer.count)
    let fields = String(decoding: buffer.prefix(max(0, count)), as: UTF8.self).split(separator: " ")
    return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4096
}
