// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOCore
import NIOPosix
import NetClient
import Synchronization
import Testing

@testable import NetService
@testable import QUIC

/// Clients that mean harm, or break: aspend-net stays within its limits and lets members in.
extension NetServiceTests {
    @Suite struct AbuseTests {
        /// A node that takes clients, as a process of its own so that its memory can be measured.
        private func withProcess(
            _ body: (TestNode, NetProcess) async throws -> Void
        ) async throws {
            let node = TestNode(echo: EchoService())
            let process = NetProcess(node: node)
            defer { process.kill() }
            process.start(tokensRequired: false)
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually(20) { node.identity.withLock { $0 } != nil })
            try await body(node, process)
            try await node.stop()
        }

        /// A second node, a member, comes to a node that is under attack.
        private func expectMemberIsLetIn(_ node: TestNode, _ process: NetProcess) async throws {
            let own = try #require(node.identity.withLock { $0 })
            let member = TestNode()
            try await member.start()
            try await member.startEcho()
            try await member.startControl([
                NetPeer(endpoint: own.endpoint, addresses: [node.address])
            ])
            try await node.setPeers([member.peer], isClosed: true)
            let isUp = await eventually(20) { member.has(.peerUp(own.endpoint)) }
            #expect(isUp, "a member is let in")
            if isUp {
                let stream = try await member.open(to: own.endpoint)
                try await stream.write([1, 2, 3])
                #expect(await eventually { stream.count == 3 }, "and served")
            }
            try await member.stop()
        }

        private func connect(
            _ rogue: Rogue, _ node: TestNode
        ) async throws -> QUICConnection {
            let own = try #require(node.identity.withLock { $0 })
            let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
            return try await rogue.endpoint.connect(
                to: own.endpoint, addresses: [address], alpn: ALPN.client.rawValue
            ).get()
        }

        @Test func moreClientsThanAllowedKeepNoMemberOut() async throws {
            try await withProcess { node, process in
                // Two at each of two addresses: one alone, and one address, may not have so many.
                let rogues = [
                    try await Rogue(host: 2), try await Rogue(host: 3), try await Rogue(host: 2),
                    try await Rogue(host: 3),
                ]
                var open: [QUICConnection] = []
                var refused = 0
                for round in 0..<26 {
                    let attempts = await withTaskGroup(of: QUICConnection?.self) { group in
                        for number in 0..<20 {
                            let rogue = rogues[(round + number) % 4]
                            group.addTask { try? await self.connect(rogue, node) }
                        }
                        var results: [QUICConnection?] = []
                        for await result in group { results.append(result) }
                        return results
                    }
                    open += attempts.compactMap { $0 }
                    refused += attempts.count { $0 == nil }
                }
                #expect(open.count == NetLimits.clientConnectionsMax)
                #expect(refused == 520 - NetLimits.clientConnectionsMax)
                try await expectMemberIsLetIn(node, process)
                #expect(process.residentBytes < 120 << 20, "\(process.residentBytes) bytes")
                for rogue in rogues { try await rogue.stop() }
            }
        }

        /// Clients without end, of one key or at one address, leave room for others.
        @Test func noClientAndNoAddressTakesAllThereIs() async throws {
            let node = TestNode()
            try await node.start { $0.areTokensRequired = false }
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.identity.withLock { $0 } != nil })
            var rogues: [Rogue] = []
            for (count, words) in [
                (NetLimits.clientConnectionsPerIdentityMax, "100 connections of one client"),
                (
                    NetLimits.clientConnectionsPerAddressMax
                        - NetLimits.clientConnectionsPerIdentityMax,
                    "100 connections of one client"
                ),
                (0, "200 clients at one address"),
            ] {
                let rogue = try await Rogue(host: 2)
                rogues.append(rogue)
                for _ in 0..<count { _ = try await connect(rogue, node) }
                await #expect(throws: QUICError.self) { _ = try await connect(rogue, node) }
                #expect(await eventually { node.log.count(words) > 0 }, "\(words)")
            }
            let other = try await Rogue(host: 3)
            _ = try await connect(other, node)
            // Who goes makes room.
            try await rogues[0].stop()
            let late = rogues[2]
            #expect(await eventually { (try? await self.connect(late, node)) != nil })
            for rogue in rogues.dropFirst() + [other] { try await rogue.stop() }
            let service = try #require(node.service)
            #expect(
                await eventually {
                    (try? await node.loop.submit { service.clientCounts.isEmpty }.get()) == true
                })
            try await node.stop()
        }

        @Test func addressesAreCountedAsWhatOneMachineHas() throws {
            func origin(_ text: String) throws -> Origin {
                Origin(try SocketAddress(ipAddress: text, port: 7))
            }
            #expect(try origin("192.0.2.1") == origin("192.0.2.1"))
            #expect(try origin("192.0.2.1") == origin("::ffff:192.0.2.1"))
            #expect(try origin("192.0.2.1") != origin("192.0.2.2"))
            #expect(try origin("2001:db8::1") == origin("2001:db8::ffff:1"))
            #expect(try origin("2001:db8::1") != origin("2001:db8:0:1::1"))
        }

        /// A hundred streams a client, each with much to send, to a service that does not read;
        /// and to one whose answers the clients do not read.
        @Test(arguments: [true, false])
        func streamsThatStallUseBoundedMemory(serviceReads: Bool) async throws {
            try await withProcess { node, process in
                node.echo.isStalled.withLock { $0 = !serviceReads }
                let rogues = [try await Rogue(), try await Rogue()]
                var connections: [QUICConnection] = []
                for number in 0..<6 {
                    connections.append(try await connect(rogues[number % 2], node))
                }
                let much = ByteBuffer(repeating: 7, count: 400_000)
                for (number, connection) in connections.enumerated() {
                    try await rogues[number % 2].loop.submit {
                        let header = StreamHeader.bytes(for: .raft)
                        for _ in 0..<Limits.streamsPerConnectionMax {
                            let stream = try connection.openStream()
                            stream.write(header)
                            stream.write(much)
                            // Nothing is read: no credit for the answers.
                            stream.pauseReading()
                        }
                    }.get()
                }
                var most = 0
                let end = ContinuousClock.now + .seconds(4)
                while ContinuousClock.now < end {
                    most = max(most, process.residentBytes)
                    try await Task.sleep(for: .milliseconds(50))  // polls
                }
                #expect(most < 120 << 20, "\(most) bytes")
                node.echo.isStalled.withLock { $0 = false }
                try await expectMemberIsLetIn(node, process)
                for rogue in rogues { try await rogue.stop() }
            }
        }

        /// Beyond the budget, streams that hold most are reset; others go on.
        @Test func whatClientsHoldHasABudget() async throws {
            let node = TestNode()
            try await node.start {
                $0.areTokensRequired = false
                $0.clientBytesMax = 1 << 20
            }
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            node.echo.isStalled.withLock { $0 = true }
            let rogue = try await Rogue()
            let resets = Mutex<[UInt64]>([])
            for _ in 0..<4 {
                let connection = try await connect(rogue, node)
                try await rogue.loop.submit {
                    for _ in 0..<2 {
                        let stream = try connection.openStream()
                        stream.onReset = { code in resets.withLock { $0.append(code) } }
                        stream.write(StreamHeader.bytes(for: .raft))
                        stream.write(ByteBuffer(repeating: 7, count: 2 << 20))
                    }
                }.get()
            }
            #expect(await eventually { resets.withLock { $0.count } >= 3 })
            #expect(
                resets.withLock { codes in
                    codes.allSatisfy { $0 == StreamErrorCode.resourceExhausted.rawValue }
                })
            #expect(node.log.count("clients hold too much memory") == 1, "logged once")
            node.echo.isStalled.withLock { $0 = false }
            let another = try await Rogue()
            let connection = try await connect(another, node)
            let answered = Mutex(false)
            try await another.loop.submit {
                let stream = try connection.openStream()
                stream.onData = { _ in answered.withLock { $0 = true } }
                stream.write(StreamHeader.bytes(for: .raft))
                stream.write(ByteBuffer(string: "x"))
            }.get()
            #expect(await eventually { answered.withLock { $0 } }, "others are served")
            try await rogue.stop()
            try await another.stop()
            try await node.stop()
        }

        /// A client whose machine loses its power says nothing: all that it held is freed.
        @Test func aClientThatVanishesIsForgotten() async throws {
            let node = TestNode()
            try await node.start {
                $0.areTokensRequired = false
                $0.quic.idleTimeout = .seconds(1)
            }
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            let rogue = try await Rogue()
            let connection = try await connect(rogue, node)
            try await rogue.loop.submit {
                for _ in 0..<50 {
                    let stream = try connection.openStream()
                    stream.write(StreamHeader.bytes(for: .raft))
                    stream.write(ByteBuffer(repeating: 7, count: 100_000))
                }
            }.get()
            let service = try #require(node.service)
            let counts: @Sendable () async throws -> [Int] = {
                try await node.loop.submit {
                    [
                        service.inboundClients, service.joinedClientStreams, service.joined.count,
                        service.endpoint.connectionCount,
                    ]
                }.get()
            }
            #expect(await eventually { (try? await counts()) == [1, 50, 50, 1] })
            try await rogue.vanish()
            #expect(await eventually { (try? await counts()) == [0, 0, 0, 0] })
            let echo = node.echo
            #expect(
                await eventually { echo.channels.withLock { $0.allSatisfy { !$0.isActive } } })
            try await node.stop()
        }
    }
}

extension Rogue {
    /// No more is heard of it.
    fileprivate func vanish() async throws {
        let endpoint = endpoint
        try await loop.flatSubmit {
            endpoint.channel?.close() ?? endpoint.eventLoop.makeSucceededVoidFuture()
        }.get()
    }
}
