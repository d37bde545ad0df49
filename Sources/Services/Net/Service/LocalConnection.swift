// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import LinkCore
import Logging
import NIOCore
import QUIC
import ServiceKit

/// One connection on `net.sock`. Confined to the event loop.
final class LocalConnection {
    enum State {
        case fresh
        case control
        /// A stream has been asked for.
        case opening
        case spliced
        case closed
    }

    let frames: FrameChannel
    let role: LocalRole
    let uid: UInt32?
    var state = State.fresh
    var isSubscribed = false
    /// It speaks for the raft daemon: it has told the members.
    var isRaft = false
    private var unflushed = 0
    private static let repliesPerFlush = 16

    init(frames: FrameChannel, role: LocalRole, uid: UInt32?) {
        self.frames = frames
        self.role = role
        self.uid = uid
    }

    func send(_ reply: NetReply) {
        guard state != .spliced, state != .closed else { return }
        frames.send { $0.writeBytes(reply.encoded()) }
        unflushed += 1
        // A burst of small questions must not pile up large answers out of the channel's sight.
        if unflushed >= Self.repliesPerFlush {
            unflushed = 0
            frames.flush()
        }
        // Whoever does not read what he subscribed to is cut off; he may come back and is told
        // how things stand.
        if !frames.isWritable { close() }
    }

    func close() {
        if state != .spliced { frames.close() }
    }
}

extension NetService {
    func acceptLocal(_ channel: any Channel) throws {
        guard localCount < NetLimits.localConnectionsMax else {
            edgeLog.warning("too many connections on net.sock", culprit: "net.sock full")
            throw AspenError(.resourceExhausted, "too many connections on net.sock")
        }
        localCount += 1
        channel.closeFuture.whenComplete { [self] _ in localCount -= 1 }
        let frames = FrameChannel(frameBytesMax: NetRequest.frameBytesMax)
        frames.onFrame = { [self] frames, frame in receivedLocal(frame, frames) }
        frames.onClosed = { [self] frames, reason in closedLocal(frames, reason) }
        try channel.pipeline.syncOperations.addHandler(frames)
    }

    /// The kernel can tell who calls only once the channel is active: at its first frame it is.
    private func local(_ frames: FrameChannel) -> LocalConnection {
        if let connection = localConnections[ObjectIdentifier(frames)] { return connection }
        let role = frames.peer.map { configuration.access.role(of: $0) } ?? .stranger
        let connection = LocalConnection(frames: frames, role: role, uid: frames.peer?.uid)
        localConnections[ObjectIdentifier(frames)] = connection
        return connection
    }

    private func closedLocal(_ frames: FrameChannel, _ reason: FrameChannel.Closed) {
        if case .oversized(let bytes) = reason {
            garbage(frames.peer?.uid, "a frame of \(bytes) bytes")
        }
        guard let connection = localConnections.removeValue(forKey: ObjectIdentifier(frames))
        else { return }
        connection.state = .closed
        // A net that stops closes these connections itself: that says nothing of raft.
        if connection.isRaft, !isDraining, !localConnections.values.contains(where: \.isRaft) {
            setRaftState(.gone)
        }
    }

    private func garbage(_ uid: UInt32?, _ what: String) {
        edgeLog.warning(
            "closed a connection on net.sock: \(what)", culprit: "garbage \(uid ?? .max)",
            ["uid": "\(uid.map(String.init) ?? "unknown")"])
    }

    private func receivedLocal(_ frame: ByteBuffer, _ frames: FrameChannel) {
        let connection = local(frames)
        guard connection.state != .closed else { return }
        let request: NetRequest
        do throws(DecodeError) {
            request = try NetRequest(decoding: Array(buffer: frame))
        } catch {
            garbage(connection.uid, "a frame that cannot be read (\(error))")
            return connection.close()
        }
        if let refusal = configuration.access.refusal(of: request, to: connection.role) {
            edgeLog.warning(
                "refused on net.sock: \(refusal)",
                culprit: "denied \(connection.uid ?? .max) \(refusal)",
                ["uid": "\(connection.uid.map(String.init) ?? "unknown")"])
            connection.send(.failed(code: .permissionDenied, message: refusal))
            if connection.role == .stranger { connection.close() }
            return
        }
        switch (connection.state, request) {
        case (.fresh, .openStream(let peer, let alpn, let service)):
            connection.state = .opening
            openLocal(connection, peer, alpn, service)
        case (.opening, _), (.control, .openStream):
            garbage(connection.uid, "a request out of place")
            connection.send(
                .failed(
                    code: .invalidArgument, message: "a stream takes a connection of its own"))
            connection.close()
        default:
            connection.state = .control
            answer(request, connection)
        }
    }

    private func answer(_ request: NetRequest, _ connection: LocalConnection) {
        switch request {
        case .openStream: preconditionFailure("a stream is no request to answer here")
        case .identify:
            connection.send(
                .identity(
                    endpoint: configuration.key.endpoint, addresses: ownAddresses,
                    configuredPeers: configuration.configuredPeers))
        case .setPeers(let peers, let isClosed):
            connection.isRaft = true
            drive(
                .members(
                    peers.map { LinkPeer(endpoint: $0.endpoint, addresses: $0.addresses) },
                    isClosed: isClosed))
            setRaftState(.serving)
            connection.send(.done)
        case .learned(let peers):
            learned = Array(peers.prefix(configuration.link.learnedMax))
            drive(
                .learned(
                    learned.map {
                        LinkPeer(endpoint: $0.peer.endpoint, addresses: $0.peer.addresses)
                    }))
            connection.send(.done)
        case .members(let list):
            connection.send(.done)
            guard list != members else { return }
            members = list
            publish(.members(list))
        case .listConnections: connection.send(.connections(gossip.connections))
        case .listLearned: connection.send(.learned(peers: learned))
        case .gossipSetup:
            connection.send(
                .gossipSetup(
                    topics: configuration.cookies.all.map(\.gossipTopic),
                    port: configuration.port, advertised: configuration.advertised))
        case .located(let addresses):
            let former = ownAddresses
            located = addresses.filter { NetAddress.parse($0) != nil }
            connection.send(.done)
            if ownAddresses != former { publish(.located(ownAddresses)) }
            if !knownLocated.isSubset(of: located) { dropSilentConnections() }
            knownLocated = Set(located)
        case .subscribe:
            connection.send(.done)
            connection.isSubscribed = true
            if let members { connection.send(.event(.members(members))) }
            // It may have become known between the answer to `identify` and this.
            if configuration.advertised.isEmpty, !located.isEmpty {
                connection.send(.event(.located(located)))
            }
            for (peer, standing) in machine.standings {
                switch standing {
                case .pending: break
                case .up: connection.send(.event(.peerUp(peer)))
                case .serviceGone:
                    connection.send(
                        .event(.peerDown(peer, reason: "its service is not there")))
                case .down(let reason):
                    connection.send(.event(.peerDown(peer, reason: reason)))
                }
            }
        case .sign(let context, let bytes):
            // The prefix keeps these apart from every text that TLS signs (RFC 8446 section 4.4.3
            // begins with 64 spaces).
            let text = Array("aspen signature v1\n\(context)\n".utf8) + bytes
            connection.send(.signature(configuration.key.sign(text)))
        }
    }

    private func openLocal(
        _ connection: LocalConnection, _ peer: EndpointID, _ alpn: ALPN, _ service: ServiceName
    ) {
        openStream(to: peer, alpn: alpn, service: service) { [self] result in
            switch result {
            case .failure(let error):
                connection.send(.failed(code: error.code, message: error.message))
                connection.close()
            case .success(let (stream, release)):
                guard connection.state == .opening, let channel = connection.frames.channel else {
                    stream.reset(code: StreamErrorCode.none.rawValue)
                    return release()
                }
                spliceLocal(connection, channel, stream, release)
            }
        }
    }

    private func spliceLocal(
        _ connection: LocalConnection, _ channel: any Channel, _ stream: QUICStream,
        _ release: @escaping () -> Void
    ) {
        connection.send(.opened)
        connection.state = .spliced
        let early = connection.frames.detach()
        let splice = Splice(stream: stream, lostCode: .none)
        let key = ObjectIdentifier(connection.frames)
        splice.onFinished = { [self] in
            localConnections[key] = nil
            release()
        }
        do {
            try Splice.prepare(channel)
            try channel.pipeline.syncOperations.addHandler(splice)
            splice.start(toPeer: early)
        } catch {
            splice.abort()
            channel.close(promise: nil)
        }
    }
}
