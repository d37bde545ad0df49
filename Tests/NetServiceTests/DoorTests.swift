// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOCore
import Synchronization
import Testing
import TokenCore

@testable import NetService
@testable import QUIC

/// Clients from elsewhere, at a node that wants tokens.
extension NetServiceTests {
    @Suite struct DoorTests {
        private static let root = NodeKey.generate()

        private static func token(
            for client: EndpointID, from: Int = -5, until: Int = 600, by signer: NodeKey = root
        ) throws -> TokenChain {
            let now = time(nil)
            let link = try #require(
                TokenLink(
                    id: TokenID(1), audience: client, notBefore: UInt64(now + from),
                    expires: UInt64(now + until),
                    capabilities: [try Capability(parsing: "kv:read:app/*")]))
            return try TokenChain(root: root.endpoint, link, sign: signer.sign)
        }

        private func withNode(_ body: (TestNode, Rogue) async throws -> Void) async throws {
            let node = TestNode()
            try await node.start()
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            let client = try await Rogue()
            try await body(node, client)
            try await client.stop()
            try await node.stop()
        }

        private func header(_ chain: [UInt8]?) -> [UInt8] {
            Array(buffer: StreamHeader(service: .raft, tokenChain: chain).encoded())
        }

        /// Why a connection that begins with these bytes ends.
        private func refusal(
            _ client: Rogue, _ node: TestNode, _ bytes: [UInt8]
        ) async throws -> (StreamErrorCode?, String) {
            guard
                case .closedByPeer(let code, let reason) = try await client.attack(
                    node, alpn: .client, bytes)
            else { return (nil, "") }
            return (StreamErrorCode(rawValue: code), reason)
        }

        @Test func whatIsWrongIsSaidInWordsBeforeAnythingReachesTheService() async throws {
            try await withNode { node, client in
                let own = client.key.endpoint
                let other = NodeKey.generate()
                let good = try Self.token(for: own)
                let cases: [([UInt8]?, String)] = [
                    (nil, "no token was shown"), ([], "no token was shown"),
                    ([1, 2, 3], "damaged"),
                    (Array(good.encoded().dropLast()), "damaged"),
                    (try Self.token(for: other.endpoint).encoded(), "another client key"),
                    (try Self.token(for: own, from: -9, until: -1).encoded(), "expired"),
                    (try Self.token(for: own, from: 90, until: 100).encoded(), "not valid before"),
                    (try Self.token(for: own, by: other).encoded(), "not signed"),
                ]
                for (chain, words) in cases {
                    let (code, reason) = try await refusal(client, node, header(chain))
                    #expect(code == .unauthenticated, "\(words)")
                    #expect(reason.contains(words), "\(reason)")
                }
                let connections = node.echo.principals.withLock { $0.count }
                #expect(connections == 0, "nothing reaches the service")
                let text = good.text()
                #expect(node.log.all.allSatisfy { !$0.contains(text.prefix(60)) })
            }
        }

        @Test(.timeLimit(.minutes(1))) func whoSaysNothingIsSentAwayInTime() async throws {
            try await withNode { node, client in
                let (code, reason) = try await refusal(client, node, [])
                #expect(code == .unauthenticated && reason.contains("in time"))
                let service = try #require(node.service)
                // The client may hear of it before the node has put its books in order.
                while try await node.loop.submit({
                    service.clientsWithoutToken + service.clientHeaders
                }).get() != 0 { await Task.yield() }
            }
        }

        /// A byte now and then does not make the time longer.
        @Test(.timeLimit(.minutes(1))) func whoDripsItsTokenIsSentAwayInTime() async throws {
            try await withNode { node, client in
                let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
                let bytes = header(try Self.token(for: client.key.endpoint).encoded())
                let connection = try await client.endpoint.connect(
                    to: node.endpoint, addresses: [address], alpn: ALPN.client.rawValue
                ).get()
                let over = client.loop.makePromise(of: QUICError.self)
                let began = ContinuousClock.now
                let sent = Mutex(0)
                try await client.loop.submit {
                    let stream = try connection.openStream()
                    let drip = client.loop.scheduleRepeatedTask(
                        initialDelay: .zero, delay: .milliseconds(100)
                    ) { _ in
                        let next = sent.withLock { count in
                            count += 1
                            return count - 1
                        }
                        guard next < bytes.count, connection.isOpen else { return }
                        stream.write(ByteBuffer(bytes: [bytes[next]]))
                    }
                    connection.onClosed = { error in
                        drip.cancel()
                        over.succeed(error)
                    }
                }.get()
                guard case .closedByPeer(let code, _) = try await over.futureResult.get() else {
                    Issue.record("closed otherwise")
                    return
                }
                #expect(StreamErrorCode(rawValue: code) == .unauthenticated)
                #expect(ContinuousClock.now - began < NetLimits.tokenTimeout * 5)
            }
        }

        /// Slots for clients that have not shown a token yet are few, and held for seconds: one address
        /// gets some of them.
        @Test func whoShowsNoTokenFillsNoMoreThanItsAddress() async throws {
            try await withNode { node, client in
                let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
                @Sendable func connect(_ rogue: Rogue) async throws -> QUICConnection {
                    try await rogue.endpoint.connect(
                        to: node.endpoint, addresses: [address], alpn: ALPN.client.rawValue
                    ).get()
                }
                let silent = try await Rogue(host: 2)
                // A busy machine turns the first away before the last comes.
                let isFull = await eventually {
                    (try? await connect(silent)) == nil
                }
                #expect(isFull)
                let words = "32 clients at one address that have not shown a token yet"
                #expect(await eventually { node.log.count(words) > 0 })
                let token = try Self.token(for: client.key.endpoint)
                let bytes = header(token.encoded()) + [42]
                let connection = try await connect(client)
                try await client.loop.submit {
                    let stream = try connection.openStream()
                    stream.onData = { data in
                        client.received.withLock { $0 += Array(buffer: data) }
                    }
                    stream.write(ByteBuffer(bytes: bytes))
                }.get()
                #expect(await eventually { client.received.withLock { $0 } == [42] })
                try await silent.stop()
            }
        }

        @Test func eachLimitAtTheDoorHasAnAnswer() async throws {
            try await withNode { node, client in
                let tooMany = NetLimits.streamsBeforeTokenMax + 1
                let ended = try await client.attack(
                    node, alpn: .client, streams: tooMany, [ProtocolVersion.streamWithToken])
                guard case .closedByPeer(let code, let reason) = ended else {
                    Issue.record("\(ended)")
                    return
                }
                #expect(StreamErrorCode(rawValue: code) == .unauthenticated)
                #expect(reason.contains("too many streams"))

                let service = try #require(node.service)
                let token = try Self.token(for: client.key.endpoint)
                let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
                func connect() async throws -> QUICConnection {
                    try await client.endpoint.connect(
                        to: node.endpoint, addresses: [address], alpn: ALPN.client.rawValue
                    ).get()
                }
                /// As if so many others were there.
                func add(
                    _ path: any ReferenceWritableKeyPath<NetService, Int> & Sendable, _ count: Int
                ) async throws {
                    try await node.loop.submit { service[keyPath: path] += count }.get()
                }
                try await add(\.clientsWithoutToken, NetLimits.clientsWithoutTokenMax)
                await #expect(throws: QUICError.self) { _ = try await connect() }
                try await add(\.clientsWithoutToken, -NetLimits.clientsWithoutTokenMax)

                let resets = Mutex<[UInt64]>([])
                func open(_ count: Int) async throws {
                    let connection = try await connect()
                    let bytes = header(token.encoded())
                    try await client.loop.submit {
                        let stream = try connection.openStream()
                        stream.onReset = { code in resets.withLock { $0.append(code) } }
                        stream.write(ByteBuffer(bytes: bytes))
                    }.get()
                    #expect(await eventually { resets.withLock { $0.count } == count })
                }
                try await add(\.clientHeaders, NetLimits.clientHeadersMax)
                try await open(1)
                try await add(\.clientHeaders, -NetLimits.clientHeadersMax)
                try await add(\.joinedClientStreams, NetLimits.clientStreamsMax)
                try await open(2)
                try await add(\.joinedClientStreams, -NetLimits.clientStreamsMax)
                let exhausted = StreamErrorCode.resourceExhausted.rawValue
                #expect(resets.withLock { $0 } == [exhausted, exhausted])
            }
        }

        @Test func aGoodTokenIsHandedOverWhole() async throws {
            try await withNode { node, client in
                let token = try Self.token(for: client.key.endpoint)
                let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
                let connection = try await client.endpoint.connect(
                    to: node.endpoint, addresses: [address], alpn: ALPN.client.rawValue
                ).get()
                let bytes = header(token.encoded()) + [42]
                try await client.loop.submit {
                    // Twice: the second stream's token is known already.
                    for _ in 0..<2 {
                        let stream = try connection.openStream()
                        stream.onData = { data in
                            client.received.withLock { $0 += Array(buffer: data) }
                        }
                        stream.write(ByteBuffer(bytes: bytes))
                    }
                }.get()
                #expect(await eventually { client.received.withLock { $0 } == [42, 42] })
                let principals = node.echo.principals.withLock { $0 }
                #expect(principals.count == 2)
                for principal in principals {
                    #expect(principal.tokenChain == token.encoded())
                    #expect(principal.endpoint == client.key.endpoint)
                    #expect(!principal.hasProvedCookie)
                }
            }
        }
    }
}
