// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import LinkCore
import NIOCore
import RaftCore
import SwiftProtobuf
import TokenCore

@testable import NetService
@testable import RaftService

/// Something that reads bytes from strangers, or from a disk.
struct Decoder: Sendable {
    let name: String
    /// Decodes; says whether the bytes had a meaning. What was understood has one encoding only:
    /// encoded and decoded again it is the same.
    let decode: @Sendable ([UInt8]) -> Bool
    /// Inputs that mean something, to record a corpus from.
    let examples: @Sendable () throws -> [[UInt8]]

    static let all: [Decoder] = [
        controlMessage, streamHeader, netRequest, netReply, principal, ticket, peerFrame,
        raftMessage, membership, command, result, scanToken, clientRequest, clientResponse,
        tokenChain, entry, configuration, logRecovery, snapshot, dnsMessage, multicastDNS, resolver,
        discoveryRecord, gossipRequest, gossipReply, gossipMessage, gossipAnnouncement,
        gossipMachine, egressRequest, egressReply, resolverFile,
    ]

    static func named(_ name: String) -> Decoder? { all.first { $0.name == name } }
}

extension Decoder {
    // MARK: Between nets

    static let controlMessage = Decoder(name: "control-message") { bytes in
        var buffer = ByteBuffer(bytes: bytes)
        var isUnderstood = false
        while let message = try? ControlMessage.next(in: &buffer) {
            isUnderstood = true
            guard message != .unknown else { continue }
            var again = message.encoded()
            check((try? ControlMessage.next(in: &again)) == message)
        }
        return isUnderstood
    } examples: {
        [
            ControlMessage.proof(mac: bytes(32), incarnation: 7, raft: .serving),
            .service(.raft, .gone), .service(.dns, .unknown),
        ].map { Array(buffer: $0.encoded()) } + [[2, 0, 99, 1]]
    }

    static let streamHeader = Decoder(name: "stream-header") { bytes in
        var buffer = ByteBuffer(bytes: bytes)
        guard let header = try? StreamHeader.read(from: &buffer) else { return false }
        let encoded = Array(buffer: header.encoded())
        check(encoded == Array(bytes.prefix(encoded.count)))
        return true
    } examples: {
        [ServiceName.raft, .gossip, .cookie].map { Array(buffer: StreamHeader.bytes(for: $0)) }
            + [Array(buffer: StreamHeader(service: .raft, tokenChain: bytes(40)).encoded())]
    }

    static let tokenChain = Decoder(name: "token-chain") { bytes in
        guard let chain = try? TokenChain(decoding: bytes) else { return false }
        check(chain.encoded() == bytes)
        check((try? TokenChain(parsing: chain.text())) == chain)
        // Judged with signatures that all hold: whatever else it says must not trap.
        _ = try? chain.check(client: chain.audience, now: 2000) { _, _, _ in true }
        return true
    } examples: {
        let rights = try [
            "cluster:read", "cluster:admin", "kv:read:app/*", "kv:write:app/x", "kv:read:*",
        ].map { text in try Capability(parsing: text) }
        func link(_ id: UInt128, _ count: Int) -> TokenLink? {
            TokenLink(
                id: TokenID(id), audience: endpoint, notBefore: 1000, expires: 5000,
                capabilities: Array(rights.prefix(count)))
        }
        guard let first = link(1, 5), let second = link(2, 2) else { return [] }
        let sign = { (_: [UInt8]) in [UInt8](repeating: 7, count: 64) }
        let chain = try TokenChain(root: endpoint, first, sign: sign)
        return [chain.encoded(), try chain.delegating(second, sign: sign).encoded()]
    }

    static let principal = Decoder(name: "principal") { bytes in
        guard let value = try? Principal(decoding: bytes) else { return false }
        check(value.encoded() == bytes)
        return true
    } examples: {
        [
            Principal(
                endpoint: endpoint, alpn: .client, hasProvedCookie: false, tokenChain: [1, 2],
                remoteAddress: "127.0.0.1:9"
            ).encoded(),
            Principal(
                endpoint: endpoint, alpn: .raft, hasProvedCookie: true,
                remoteAddress: "[2001:db8::1]:7001"
            ).encoded(),
        ]
    }

    // MARK: net.sock

    static let netRequest = Decoder(name: "net-request") { bytes in
        guard let value = try? NetRequest(decoding: bytes) else { return false }
        check((try? NetRequest(decoding: value.encoded())) == value)
        return true
    } examples: {
        [
            NetRequest.openStream(endpoint: endpoint, alpn: .raft, service: .raft), .identify,
            .setPeers(peers: [peer, peer], isClosed: true), .subscribe,
            .members([NetMember(node: NodeID(3), endpoint: endpoint)]), .listConnections,
            .sign(context: "gossip", bytes: [1, 2, 3]),
        ].map { $0.encoded() }
    }

    static let netReply = Decoder(name: "net-reply") { bytes in
        guard let value = try? NetReply(decoding: bytes) else { return false }
        check((try? NetReply(decoding: value.encoded())) == value)
        return true
    } examples: {
        [
            NetReply.opened, .done,
            .identity(
                endpoint: endpoint, addresses: ["127.0.0.1:1"],
                configuredPeers: [
                    ConfiguredPeer(node: NodeID(2), peer: peer),
                    ConfiguredPeer(node: nil, peer: peer),
                ]),
            .signature(bytes(64)), .failed(code: .unavailable, message: "no"),
            .event(.peerUp(endpoint)), .event(.peerDown(endpoint, reason: "gone")),
            .event(.serviceGone(endpoint, .raft)),
            .event(.members([NetMember(node: NodeID(3), endpoint: endpoint)])),
            .connections([
                NetConnection(
                    endpoint: endpoint, address: "127.0.0.1:7701", roundTripMicroseconds: 400)
            ]),
        ].map { $0.encoded() }
    }

    // MARK: From people

    /// The input is what the ticket's checksum stands behind, which most changes would break.
    static let ticket = Decoder(name: "ticket") { bytes in
        _ = try? Ticket(String(decoding: bytes, as: UTF8.self))
        guard let ticket = try? Ticket(Ticket.prefix + Base32.encode(checksummed(bytes))) else {
            return false
        }
        check((try? Ticket(ticket.encoded())) == ticket)
        return true
    } examples: {
        let text = Ticket(
            cluster: ClusterID(0x0123_4567_89ab_cdef),
            endpoints: [
                Ticket.Endpoint(endpoint: endpoint, addresses: peer.addresses),
                Ticket.Endpoint(endpoint: endpoint, addresses: []),
            ]
        ).encoded()
        return [(Base32.decode(text.dropFirst(5)) ?? []).dropLast(4)]
    }

    static let clientRequest = Decoder(name: "client-request") { bytes in
        guard let request = try? WireRequest(serializedBytes: bytes) else { return false }
        if case .transaction(let body)? = request.request { _ = try? Transaction(body) }
        let again: [UInt8]? = try? request.serializedBytes()
        check(again.flatMap { try? WireRequest(serializedBytes: $0) } == request)
        return true
    } examples: {
        var write = WireRequest()
        write.timeoutMs = 500
        write.writeKey = .with {
            $0.key = Data([1, 2, 3])
            $0.value = Data(bytes(40))
            $0.session = .with {
                $0.session = 7
                $0.number = 3
                $0.acknowledgedBelow = 2
            }
        }
        var transaction = WireRequest()
        transaction.transaction = .with {
            $0.compares = [
                .with {
                    $0.key = Data([1])
                    $0.version = 3
                }
            ]
            $0.success = [.with { $0.put = .with { $0.key = Data([9]) } }]
            $0.failure = [.with { $0.get = .with { $0.key = Data([9]) } }]
        }
        var health = WireRequest()
        health.getHealth = .init()
        return try [write, transaction, health].map { try $0.serializedBytes() }
    }

    static let clientResponse = Decoder(name: "client-response") { bytes in
        let response = try? WireResponse(serializedBytes: bytes)
        // What the client has of its own for pages of keys says the same of anything.
        let own = try? WireResponse(answer: Data(bytes))
        check((own == nil) == (response == nil))
        guard let response, let own else { return false }
        // Not compared as values: a number may be none, which equals nothing.
        check((try? own.serializedBytes() as [UInt8]) == (try? response.serializedBytes()))
        let again: [UInt8]? = try? response.serializedBytes()
        check(again.flatMap { try? WireResponse(serializedBytes: $0) } == response)
        return true
    } examples: {
        let refusal = WireResponse(AspenError(.unavailable, "no leader", retry: .safe))
        var health = WireResponse()
        health.getHealth = .with {
            $0.status = "healthy"
            $0.nodeID = 3
        }
        var page = WireResponse()
        page.scanKeys = .with {
            $0.entries = (0..<3).map { number in
                .with {
                    $0.key = Data("key \(number)".utf8)
                    $0.value = Data(repeating: 7, count: 50 * number)
                    ($0.createRevision, $0.modRevision, $0.version) = (3, 300 << number, 1)
                }
            }
            $0.continuation = Data([1, 2, 3])
            $0.revision = 70_000
        }
        return try [refusal, health, page].map { try $0.serializedBytes() }
    }

    static let scanToken = Decoder(name: "scan-token") { bytes in
        _ = try? ScanToken(decoding: bytes, scope: scanScope)
        let input = checksummed(bytes)
        guard let token = try? ScanToken(decoding: input, scope: scanScope) else { return false }
        check(token.encoded(scope: scanScope) == input)
        return true
    } examples: {
        [
            ScanToken(revision: Revision(9), lastKey: [1, 2, 3]).encoded(scope: scanScope).dropLast(
                4)
        ]
    }
}

/// What a decoder promises of what it has understood.
func check(_ condition: Bool, _ what: StaticString = #function) {
    precondition(condition, "a value changes when it is encoded and decoded again")
}

func checksummed(_ bytes: [UInt8]) -> [UInt8] {
    var writer = ByteWriter()
    writer.raw(bytes)
    writer.integer(CRC32C.of(bytes))
    return writer.bytes
}

func bytes(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 37) } }

let endpoint: EndpointID = {
    guard let endpoint = EndpointID(bytes: bytes(32)) else { preconditionFailure("32 bytes") }
    return endpoint
}()

let peer = NetPeer(endpoint: endpoint, addresses: ["127.0.0.1:7701", "[::1]:1"])

private let scanScope = ScanToken.Scope(from: [1], to: [2], isDescending: false)
