// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import CAspenSystem
import FoundationEssentials
import Glibc
import Logging
import NIOCore
import NIOPosix
import ServiceKit
import SwiftProtobuf
import Testing
import TokenCore

@testable import NetService
@testable import QUIC
@testable import RaftService

/// Every request with every kind of token over QUIC, through aspend-net's door to aspend-raft's table:
/// both in this process, with the sockets that a supervisor would hand them.
@Suite(.serialized) struct TokenDoorTests {
    /// How a request ended.
    enum Outcome {
        /// By net, with words; nothing reached raft.
        case turnedAway(String)
        case answered(WireResponse)
    }

    /// A node of its own: net and raft, required to want tokens.
    final class Node: Sendable {
        let directory: String
        let loop: any EventLoop
        let net: NetService
        let raft: RaftServer
        let cluster: TestCluster
        let port: UInt16
        let endpoint: EndpointID

        private static let cookie: CookieKey? = try? CookieKey(
            stretching: Secret(Array("a cookie for tests, of 32 bytes!".utf8)))

        init() async throws {
            var template = Array("/tmp/aspen-door-test-XXXXXX\0".utf8CString)
            directory = String(cString: try #require(mkdtemp(&template)))
            cluster = TestCluster(1)
            let loop = cluster.group.next()
            self.loop = loop
            let key = TokenTests.key(40)
            endpoint = key.endpoint
            var pair: [CInt] = [-1, -1]
            let kind = CInt(SOCK_SEQPACKET.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
            try #require(socketpair(AF_UNIX, kind, 0, &pair) == 0)
            let (netEnd, raftEnd) = (pair[0], pair[1])
            let datagram = aspen_bind_datagram("127.0.0.1", 0)
            let netSocket = aspen_listen_unix("\(directory)/net.sock")
            try #require(datagram >= 0 && netSocket >= 0)
            let bound = try #require(SocketAddress(boundSocket: datagram)?.port)
            port = UInt16(bound)
            let cookie = try #require(Self.cookie)
            let path = "\(directory)/net.sock"
            let (net, raft) = try await loop.submit {
                var logger = Logger(label: "door")
                logger.logLevel = .critical
                var configuration = NetConfiguration(
                    key: key, cookie: cookie, advertised: ["127.0.0.1:\(bound)"],
                    access: AccessTable(daemons: [:], owner: getuid()))
                configuration.connectors = [.raft: .passing(descriptor: netEnd)]
                let net = NetService(
                    eventLoop: loop, configuration: configuration, logger: logger)
                var settings = try TestCluster.settings(NodeID(1), directory: nil)
                settings.options.areTokensRequired = true
                let raft = RaftServer(
                    settings: settings, storage: OpenedStorage.inMemory(), loop: loop,
                    logger: logger, transport: NetTransport(eventLoop: loop, socketPath: path),
                    onFatal: { Issue.record("the node stopped: \($0)") })
                return (net, raft)
            }.get()
            self.net = net
            self.raft = raft
            try await loop.flatSubmit {
                net.start(datagramSocket: datagram, netSocket: netSocket)
            }.get()
            try await loop.flatSubmit {
                raft.start()
                return raft.listenToPeers(raftEnd)
            }.get()
        }

        func admin() async throws -> TestClient {
            let raft = raft
            return try await TestClient.connect(
                on: cluster.group.next(), accept: { try raft.acceptClient($0) }, serverLoop: loop)
        }

        func stop() async throws {
            let (net, raft) = (net, raft)
            try await loop.submit { raft.stop() }.get()
            try await loop.flatSubmit { net.drain() }.get()
            try await cluster.stop()
            unlink("\(directory)/net.sock")
            rmdir(directory)
        }
    }

    /// A client on another machine, with one key; each request has a connection of its own.
    final class Client: Sendable {
        let loop: any EventLoop
        let endpoint: NIOLoopBound<QUICEndpoint>

        init(_ node: Node) async throws {
            let loop = node.cluster.group.next()
            self.loop = loop
            let descriptor = aspen_bind_datagram("127.0.0.1", 0)
            try #require(descriptor >= 0)
            endpoint = try await loop.submit {
                let endpoint = QUICEndpoint(
                    eventLoop: loop, key: TokenTests.client, configuration: QUICConfiguration())
                return NIOLoopBound(endpoint, eventLoop: loop)
            }.get()
            let endpoint = endpoint
            try await loop.flatSubmit { endpoint.value.bind(inheritedDatagramSocket: descriptor) }
                .get()
        }

        func ask(
            _ node: Node, _ chain: [UInt8]?, _ request: WireRequest.OneOf_Request
        ) async throws -> Outcome {
            let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
            var message = WireRequest()
            message.timeoutMs = 5000
            message.request = request
            let bytes: [UInt8] = try message.serializedBytes()
            var out = StreamHeader(service: .raft, tokenChain: chain).encoded()
            out.writeInteger(UInt32(bytes.count + 8), endianness: .little)
            out.writeInteger(UInt64(1), endianness: .little)
            out.writeBytes(bytes)
            let (endpoint, id, sent) = (endpoint, node.endpoint, out)
            let over = loop.makePromise(of: Outcome.self)
            try await loop.flatSubmit { [loop] in
                endpoint.value.connect(to: id, addresses: [address], alpn: ALPN.client.rawValue)
                    .flatMapThrowing { connection in
                        connection.onClosed = { error in
                            guard
                                case .closedByPeer(let code, let reason) = error,
                                code == StreamErrorCode.unauthenticated.rawValue
                            else { return over.fail(error) }
                            over.succeed(.turnedAway(reason))
                        }
                        let stream = try connection.openStream()
                        let incoming = NIOLoopBoundBox(ByteBuffer(), eventLoop: loop)
                        stream.onData = { data in
                            incoming.value.writeImmutableBuffer(data)
                            guard let response = Self.response(incoming.value) else { return }
                            over.succeed(.answered(response))
                            connection.close(code: 0, reason: "")
                        }
                        stream.write(sent)
                    }
            }.get()
            return try await over.futureResult.get()
        }

        private static func response(_ data: ByteBuffer) -> WireResponse? {
            var data = data
            guard let length: UInt32 = data.readInteger(endianness: .little),
                var frame = data.readSlice(length: Int(length)), frame.readableBytes >= 8
            else { return nil }
            frame.moveReaderIndex(forwardBy: 8)
            return try? WireResponse(serializedBytes: Array(buffer: frame))
        }

        func stop() async throws {
            let endpoint = endpoint
            try await loop.flatSubmit { endpoint.value.close() }.get()
        }
    }

    /// A cluster of one, which trusts the root of the tests; and somebody who is on the machine.
    private func started() async throws -> (Node, TestClient) {
        let node = try await Node()
        let admin = try await node.admin()
        var begun = try await admin.ask(.initCluster(.init()))
        // Until aspend-net has told where this node is.
        while begun.failure?.code == .unavailable {
            begun = try await admin.ask(.initCluster(.init()))
        }
        #expect(begun.failure == nil, "\(begun)")
        var add = Aspen_Client_V1_AddTokenRootRequest()
        add.root = Data(TokenTests.root.endpoint.bytes)
        #expect(try await admin.ask(.addTokenRoot(add)).addTokenRoot.added)
        return (node, admin)
    }

    @Test(.timeLimit(.minutes(3))) func everyRequestWithEveryKindOfToken() async throws {
        let (node, admin) = try await started()
        var revoke = Aspen_Client_V1_RevokeTokenRequest()
        revoke.id = Data(TokenID(99).bytes)
        #expect(try await admin.ask(.revokeToken(revoke)).failure == nil)
        let client = try await Client(node)
        let all = TokenTests.everything
        let bad: [(name: String, chain: [UInt8]?, words: String, isForRaft: Bool)] = [
            ("no token", nil, "no token was shown", false),
            ("an empty token", [], "no token was shown", false),
            ("no chain", [1, 2, 3], "damaged", false),
            (
                "expired", try TokenTests.token(all, from: -9, until: -1).encoded(), "has expired",
                false
            ),
            (
                "not yet valid", try TokenTests.token(all, from: 90).encoded(), "not valid before",
                false
            ),
            (
                "wrong audience",
                try TokenTests.token(all, for: TokenTests.key(8).endpoint).encoded(),
                "another client key", false
            ),
            ("widened", try TokenTests.widened(), "grants more", false),
            (
                "wrong root", try TokenTests.token(all, by: TokenTests.key(7)).encoded(),
                "not trusted", true
            ),
            ("revoked", try TokenTests.token(all, id: 99).encoded(), "is revoked", true),
        ]
        let put = try await admin.put("app/x", [1]).get().writeKey.revision
        for (request, _) in TokenTests.requests {
            let name = ClientService.requestTable[request.row].name
            for (kind, chain, words, isForRaft) in bad {
                switch try await client.ask(node, chain, request) {
                case .turnedAway(let reason):
                    #expect(!isForRaft, "\(name), \(kind): net said \(reason)")
                    #expect(reason.contains(words), "\(name), \(kind): \(reason)")
                case .answered(let answer):
                    #expect(isForRaft, "\(name), \(kind): got past net: \(answer)")
                    #expect(answer.failure?.code == .unauthenticated, "\(name), \(kind): \(answer)")
                    #expect(answer.failure?.message.contains(words) == true, "\(kind): \(answer)")
                }
            }
            let asked = try await client.ask(
                node, try TokenTests.token(["kv:read:other"]).encoded(), request)
            guard case .answered(let narrow) = asked else {
                Issue.record("\(name): a token that holds was turned away: \(asked)")
                continue
            }
            #expect(
                (narrow.failure?.code == .permissionDenied) == (name != "CancelWatch"),
                "\(name): \(narrow)")
        }
        #expect(
            try await admin.put("app/x", [1]).get().writeKey.revision == put + 1,
            "none of it has changed anything")
        for (request, enough) in TokenTests.requests {
            let name = ClientService.requestTable[request.row].name
            guard !TokenMatrixTests.changesTheCluster.contains(name) else { continue }
            let asked = try await client.ask(
                node, try TokenTests.token(enough).encoded(), request)
            guard case .answered(let answer) = asked else {
                Issue.record("\(name): the right token was turned away: \(asked)")
                continue
            }
            let code = answer.failure?.code
            #expect(code != .permissionDenied && code != .unauthenticated, "\(name): \(answer)")
        }
        try await client.stop()
        try await node.stop()
    }

    /// What may end the node is asked of one that nothing else is asked of.
    @Test(.timeLimit(.minutes(1)), arguments: TokenMatrixTests.changesTheCluster)
    func theRightTokenIsEnoughForWhatMayEndTheNode(_ name: String) async throws {
        let (request, enough) = try #require(
            TokenTests.requests.first {
                ClientService.requestTable[$0.request.row].name == name
            })
        let (node, _) = try await started()
        let client = try await Client(node)
        let asked = try await client.ask(node, try TokenTests.token(enough).encoded(), request)
        if case .answered(let answer) = asked {
            let code = answer.failure?.code
            #expect(code != .permissionDenied && code != .unauthenticated, "\(answer)")
        } else {
            Issue.record("the right token was turned away: \(asked)")
        }
        try await client.stop()
        try await node.stop()
    }
}
