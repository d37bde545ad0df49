// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOCore
import NetClient
import Synchronization
import Testing

@testable import NetService
@testable import QUIC

/// Connections of nodes that have not admitted each other: with the cookie, for gossip, and for
/// nothing else.
extension NetServiceTests {
    @Suite struct GossipTests {
        /// Its gossip daemon is the same echo as its raft daemon.
        private func started(
            cookie: CookieKey = Cookies.right, isClosed: Bool = true,
            configure: (inout NetConfiguration) -> Void = { _ in }
        ) async throws -> TestNode {
            let node = TestNode()
            try await node.start(cookie: cookie) {
                $0.connectors[.gossip] = $0.connectors[.raft]
                configure(&$0)
            }
            try await node.startEcho()
            try await node.startControl([], isClosed: isClosed)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            return node
        }

        /// What the gossip daemon of `node` says to its net.
        private func learn(
            _ peers: [NetPeer], _ node: TestNode
        ) async throws -> NIOLoopBound<NetControl> {
            let isConnected = Mutex(false)
            let control = try await node.loop.submit {
                let control = NetControl(eventLoop: node.loop, socketPath: node.netSocket)
                control.onConnected = { _ in isConnected.withLock { $0 = true } }
                control.setLearned(peers.map { ConfiguredPeer(node: nil, peer: $0) })
                control.start()
                return NIOLoopBound(control, eventLoop: node.loop)
            }.get()
            #expect(await eventually { isConnected.withLock { $0 } })
            return control
        }

        private func stop(_ control: NIOLoopBound<NetControl>, _ node: TestNode) async throws {
            try await node.loop.submit { control.value.stop() }.get()
        }

        @Test func strangersWithTheSameCookieMeetForGossipOnly() async throws {
            let (one, two) = (try await started(), try await started())
            let control = try await learn([two.peer], one)
            let stream = try await one.open(to: two.endpoint, alpn: .gossip, service: .gossip)
            try await stream.write(Array("who is there".utf8))
            #expect(await eventually { stream.count == 12 })
            let principal = try #require(two.echo.principals.withLock { $0.first })
            #expect(principal.endpoint == one.endpoint && principal.alpn == .gossip)
            #expect(principal.hasProvedCookie)
            // One connection carries what both open.
            let back = try await learn([], two)
            let other = try await two.open(to: one.endpoint, alpn: .gossip, service: .gossip)
            try await other.write([1, 2, 3])
            #expect(await eventually { other.count == 3 })
            #expect(one.service?.endpoint.connectionCount == 1)
            // Members they are not.
            await #expect(throws: AspenError.self) { _ = try await one.open(to: two.endpoint) }
            #expect(!one.hasSeenAnyPeerUp && !two.hasSeenAnyPeerUp)
            for (control, node) in [(control, one), (back, two)] { try await stop(control, node) }
            for node in [one, two] { try await node.stop() }
        }

        @Test func anotherCookieOpensNothing() async throws {
            let (one, two) = (try await started(), try await started(cookie: Cookies.wrong))
            let control = try await learn([two.peer], one)
            let error = await #expect(throws: AspenError.self) {
                _ = try await one.open(to: two.endpoint, alpn: .gossip, service: .gossip)
            }
            #expect(error?.code == .unauthenticated, "\(error.map { "\($0)" } ?? "")")
            #expect(error?.message.contains("the cookie differs") == true)
            #expect(two.echo.principals.withLock { $0.isEmpty })
            #expect(await eventually { two.log.count("did not prove our cookie") == 1 })
            try await stop(control, one)
            for node in [one, two] { try await node.stop() }
        }

        /// While a cluster goes over from one cookie to the next: who accepts both is reached by those who
        /// show either, and shows his own.
        @Test func anotherCookieIsAcceptedAsWell() async throws {
            @Sendable func node(_ own: CookieKey, _ accepted: CookieKey?) async throws -> TestNode {
                try await started(cookie: own) { $0.cookies.accepted = accepted }
            }
            let (old, new) = (Cookies.right, Cookies.wrong)
            let oldOnly = try await node(old, nil)
            let oldFirst = try await node(old, new)
            let newFirst = try await node(new, old)
            let newOnly = try await node(new, nil)
            let all = [oldOnly, oldFirst, newFirst, newOnly]
            let pairs: [(from: TestNode, to: TestNode, isOpened: Bool)] = [
                (newFirst, oldOnly, false), (oldOnly, newOnly, false), (newOnly, oldOnly, false),
                (oldOnly, oldFirst, true), (oldFirst, newFirst, true), (newOnly, newFirst, true),
                (newOnly, oldFirst, true), (oldOnly, newFirst, true),
            ]
            for (from, to, isOpened) in pairs {
                let control = try await learn([to.peer], from)
                do throws(any Error) {
                    let stream = try await from.open(
                        to: to.endpoint, alpn: .gossip, service: .gossip)
                    #expect(isOpened)
                    try await stream.write([1, 2, 3])
                    #expect(await eventually { stream.count == 3 })
                } catch {
                    #expect(!isOpened, "\(error)")
                    #expect((error as? AspenError)?.code == .unauthenticated)
                }
                try await stop(control, from)
            }
            for node in all { try await node.stop() }
        }

        @Test func whereNobodyIsKnownToBeNobodyIsDialled() async throws {
            let one = try await started()
            let peer = NodeKey.generate().endpoint
            for addresses: [String] in [[], ["127.0.0.1:1"]] {
                let control = try await learn([NetPeer(endpoint: peer, addresses: addresses)], one)
                let error = await #expect(throws: AspenError.self) {
                    _ = try await one.open(to: peer, alpn: .gossip, service: .gossip)
                }
                #expect(error?.code == .unavailable && error?.retry == .safe)
                try await stop(control, one)
            }
            try await one.stop()
        }

        /// A member of a cluster that says at which other address it is now to be found.
        @Test func aMemberIsFoundWhereItSaysItIs() async throws {
            let (one, two) = (try await started(), try await started())
            let wrong = NetPeer(endpoint: two.endpoint, addresses: ["127.0.0.1:1"])
            try await one.setPeers([wrong], isClosed: true)
            try await two.setPeers(
                [NetPeer(endpoint: one.endpoint, addresses: [])], isClosed: true)
            let control = try await learn([two.peer], one)
            #expect(await eventually { one.has(.peerUp(two.endpoint)) })
            try await stop(control, one)
            for node in [one, two] { try await node.stop() }
        }

        /// An address of this machine is gone: who does not answer at once is dialled anew. Here nobody is given
        /// the time to.
        @Test func connectionsThatAreSilentAfterAMoveAreMadeAnew() async throws {
            @Sendable func node() async throws -> TestNode {
                try await started { $0.answerAfterMove = .zero }
            }
            let (one, two) = (try await node(), try await node())
            try await one.setPeers([two.peer], isClosed: true)
            try await two.setPeers(
                [NetPeer(endpoint: one.endpoint, addresses: [])], isClosed: true)
            let control = try await learn([two.peer], one)
            #expect(await eventually { one.has(.peerUp(two.endpoint)) })
            @Sendable func links() async throws -> Set<ObjectIdentifier> {
                try await one.loop.submit {
                    Set((one.service?.sessions ?? [:]).values.filter(\.isProved).map { .init($0) })
                }.get()
            }
            let before = try await links()
            #expect(before.count == 1)
            func located(_ addresses: [String]) async throws {
                try await one.loop.submit { control.value.setLocated(addresses) }.get()
            }
            // One more, then another one: nothing is gone.
            try await located(["192.0.2.1:1"])
            try await located(["192.0.2.1:1", "192.0.2.2:1"])
            #expect(try await links() == before)
            try await located(["192.0.2.2:1"])
            while true {
                let now = try await links()
                if now.count == 1, now.isDisjoint(with: before) { break }
                try Task.checkCancellation()
            }
            let stream = try await one.open(to: two.endpoint)
            try await stream.write([1, 2, 3])
            #expect(await eventually { stream.count == 3 })
            try await stop(control, one)
            for node in [one, two] { try await node.stop() }
        }

        @Test func whatGossipSaysIsThereForTheOtherDaemons() async throws {
            let node = TestNode()
            try await node.start {
                $0.advertised = []
                $0.port = 7123
            }
            // As aspend-raft is.
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            #expect(node.identity.withLock { $0?.addresses } == [])
            let control = try await learn([], node)
            let found = [
                ConfiguredPeer(
                    node: NodeID(5),
                    peer: NetPeer(
                        endpoint: NodeKey.generate().endpoint, addresses: ["192.0.2.5:7001"]))
            ]
            @Sendable func ask(_ request: NetRequest) async throws -> NetReply? {
                try await node.loop.flatSubmit {
                    let promise = node.loop.makePromise(of: NetReply?.self)
                    control.value.ask(request) { promise.succeed($0) }
                    return promise.futureResult
                }.get()
            }
            #expect(try await ask(.listLearned) == .learned(peers: []))
            try await node.loop.submit {
                control.value.setLearned(found)
                control.value.setLocated(["192.0.2.1:7123", "nonsense"])
            }.get()
            #expect(try await ask(.listLearned) == .learned(peers: found))
            #expect(
                try await ask(.identify)
                    == .identity(
                        endpoint: node.endpoint, addresses: ["192.0.2.1:7123"], configuredPeers: []
                    ))
            #expect(await eventually { node.has(.located(["192.0.2.1:7123"])) })
            // And who subscribes only now, after it has asked who the node is.
            let events = Mutex<[NetEvent]>([])
            let late = try await node.loop.submit {
                let late = NetControl(eventLoop: node.loop, socketPath: node.netSocket)
                late.onEvent = { event in events.withLock { $0.append(event) } }
                late.start()
                return NIOLoopBound(late, eventLoop: node.loop)
            }.get()
            #expect(
                await eventually { events.withLock { $0.contains(.located(["192.0.2.1:7123"])) } })
            try await node.loop.submit { late.value.stop() }.get()
            let setup = try await ask(.gossipSetup)
            #expect(
                setup
                    == .gossipSetup(
                        topics: [Cookies.right.gossipTopic], port: 7123, advertised: []))
            #expect(Cookies.right.gossipTopic != Cookies.wrong.gossipTopic)
            // A question that nobody can answer any more is answered with nothing.
            try await stop(control, node)
            #expect(try await ask(.listLearned) == nil)
            try await node.stop()
        }

        /// By way of net: aspend-raft tells it who belongs to the cluster, whoever subscribes hears it.
        @Test func theMembersAreToldToWhoSubscribes() async throws {
            let node = TestNode()
            try await node.start()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            let raft = try #require(node.control)
            func tell(_ numbers: [UInt64]) async throws -> [NetMember] {
                let members = numbers.map {
                    NetMember(node: NodeID($0), endpoint: NodeKey.generate().endpoint)
                }
                try await node.loop.submit { raft.value.setMembers(members) }.get()
                return members
            }
            let first = try await tell([1, 2])
            #expect(await eventually { node.has(.members(first)) })
            let heard = Mutex<[NetEvent]>([])
            let gossip = try await node.loop.submit {
                let control = NetControl(eventLoop: node.loop, socketPath: node.netSocket)
                control.onEvent = { event in heard.withLock { $0.append(event) } }
                control.start()
                return NIOLoopBound(control, eventLoop: node.loop)
            }.get()
            #expect(await eventually { heard.withLock { $0 == [.members(first)] } })
            let second = try await tell([1, 2, 3])
            #expect(
                await eventually { heard.withLock { $0 == [.members(first), .members(second)] } })
            try await stop(gossip, node)
            try await node.stop()
        }

        @Test func whoeverGossipsIsToldWhereTheOtherIsAndHowFarAway() async throws {
            let (one, two) = (try await started(), try await started())
            let (control, back) = (try await learn([two.peer], one), try await learn([], two))
            @Sendable func connections(
                _ node: TestNode, _ control: NIOLoopBound<NetControl>
            ) async throws -> [NetConnection] {
                let reply = try await node.loop.flatSubmit {
                    let promise = node.loop.makePromise(of: NetReply?.self)
                    control.value.ask(.listConnections) { promise.succeed($0) }
                    return promise.futureResult
                }.get()
                guard case .connections(let list)? = reply else { return [] }
                return list
            }
            #expect(try await connections(one, control).isEmpty)
            let stream = try await one.open(to: two.endpoint, alpn: .gossip, service: .gossip)
            try await stream.write([1])
            #expect(await eventually { stream.count == 1 })
            for (node, asked, peer) in [(one, control, two), (two, back, one)] {
                let list = try await connections(node, asked)
                #expect(list.map(\.endpoint) == [peer.endpoint])
                #expect(list.first?.address == "127.0.0.1:\(peer.port)")
                #expect(list.allSatisfy { 1...10_000_000 ~= $0.roundTripMicroseconds })
            }
            try await stop(control, one)
            try await stop(back, two)
            for node in [one, two] { try await node.stop() }
        }

        @Test func connectionsForGossipAreCounted() async throws {
            let node = try await started { $0.proofTimeout = .seconds(60) }
            let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
            @Sendable func connect(_ stranger: Rogue) async throws -> QUICConnection {
                try await stranger.endpoint.connect(
                    to: node.endpoint, addresses: [address], alpn: ALPN.gossip.rawValue
                ).get()
            }
            // At as many addresses as it takes: one alone may not fill all there is.
            var strangers: [Rogue] = []
            var open: [QUICConnection] = []
            while open.count < NetLimits.gossipUnprovedMax {
                let stranger = try await Rogue(host: UInt8(2 + strangers.count))
                strangers.append(stranger)
                for _ in 0..<NetLimits.gossipUnprovedPerAddressMax {
                    open.append(try await connect(stranger))
                }
                await #expect(throws: QUICError.self) { _ = try await connect(stranger) }
            }
            #expect(
                await eventually {
                    node.log.count("more than 8 strangers at one address before the proof") > 0
                })
            let another = try await Rogue(host: 200)
            await #expect(throws: QUICError.self) { _ = try await connect(another) }
            #expect(
                await eventually {
                    node.log.count("more than 16 strangers before the proof") > 0
                })
            // Who has left makes room.
            let (stranger, last) = (try #require(strangers.last), try #require(open.last))
            try await stranger.loop.submit { last.close(code: 0, reason: "") }.get()
            #expect(await eventually { (try? await connect(another)) != nil })
            for rogue in strangers + [another] { try await rogue.stop() }
            try await node.stop()
        }

        /// Each peer with a connection, as in an overlay gone mad.
        @Test func theWholeOfThemIsBoundedToo() async throws {
            let node = try await started()
            var peers: [TestNode] = []
            var controls: [NIOLoopBound<NetControl>] = []
            for _ in 0...NetLimits.gossipConnectionsMax {
                let peer = try await started()
                peers.append(peer)
                controls.append(try await learn([node.peer], peer))
            }
            var (opened, refused) = (0, 0)
            for peer in peers {
                do {
                    let stream = try await peer.open(
                        to: node.endpoint, alpn: .gossip, service: .gossip)
                    try await stream.write([1])
                    #expect(await eventually { stream.count == 1 })
                    opened += 1
                } catch { refused += 1 }
            }
            #expect(opened == NetLimits.gossipConnectionsMax && refused == 1)
            for (peer, control) in zip(peers, controls) {
                try await stop(control, peer)
                try await peer.stop()
            }
            try await node.stop()
        }
    }
}
