// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Glibc
import NIOCore
import RaftCore
import ServiceKit
import SwiftProtobuf
import WatchCore

/// Where the answer to a request goes.
protocol ReplySink: AnyObject {
    /// - Parameter bytes: what the request counted for.
    func reply(_ response: WireResponse, to id: UInt64, bytes: Int)
    /// One of several answers to the same request; `reply` gives the last one.
    func part(_ response: WireResponse, to id: UInt64)
    /// A page of keys, which is never a failure.
    func reply(_ page: ScanPage, _ scope: ScanToken.Scope, to id: UInt64, bytes: Int)
    var isOpen: Bool { get }
    /// False: whoever produces parts waits.
    var isWritable: Bool { get }
}

extension ReplySink {
    func reply(_ page: ScanPage, _ scope: ScanToken.Scope, to id: UInt64, bytes: Int) {
        reply(WireResponse(page, scope), to: id, bytes: bytes)
    }
}

/// A request that waits for its answer, but for what it asks.
struct RequestOrigin {
    let sink: any ReplySink
    let id: UInt64
    let deadline: MonotonicInstant
    /// Passed on by another node: not to be passed on again.
    let isFromPeer: Bool
    /// Of its frame, as far as they count (see `ClientConnection.requestBytesMax`).
    var bytes = 0
    /// All that was committed when it came is known here: see `ClientService.whenTrustIsCurrent`.
    var isTrustCurrent = false

    func reply(_ response: WireResponse) { sink.reply(response, to: id, bytes: bytes) }
    func reply(_ page: ScanPage, _ scope: ScanToken.Scope) {
        sink.reply(page, scope, to: id, bytes: bytes)
    }
    func fail(_ error: AspenError) { sink.reply(WireResponse(error), to: id, bytes: bytes) }
}

/// One client: frames of request id (u64 LE) and protobuf message. Confined to the event loop.
final class ClientConnection: ReplySink {
    /// Requests of one connection that wait for their answers.
    static let requestsMax = 4096
    /// Bytes of requests that wait for their answers, on all connections of a node. Small ones do
    /// not count: their number is bounded.
    static let requestBytesMax = 134_217_728
    static let smallRequestBytesMax = 4096
    /// Unread answers, in bytes, above which no further requests are read from this client.
    static let outgoingBytesHigh = 1_000_000
    /// Unread answers, in bytes, above which the connection is closed.
    static let outgoingBytesMax = 64_000_000
    /// The same of all connections of a node, above which the one with most of them is closed.
    static let unreadBytesMax = 268_435_456

    /// Bytes that may wait for the end of a turn of the loop: so far nobody knows whether the client
    /// reads them.
    static let unflushedBytesMax = 262_144

    /// A page of so many bytes leaves from where it lies; a smaller one is copied to go with others.
    private static let ownBufferBytesMin = 16_384

    private let frames: FrameChannel
    /// Held until the channel has closed, which may be after the node has stopped: what waits is sent
    /// first.
    private let service: ClientService
    private let permission: Permission
    /// What is said to those who may do nothing.
    private let denial: AspenError
    /// Of a client from elsewhere that has shown a token: it, and not `permission`, counts.
    let bearer: TokenBearer?
    private var inFlight = 0
    private var isReading = true
    /// Answers written since the client was last known to keep up, which was then.
    private(set) var unreadBytes = 0
    private var unreadSince = RaftNode.now
    private var isClosed = false
    /// When a frame came last.
    private(set) var heardAt = RaftNode.now
    /// By the id of their request: see `WatchHub`.
    var watches: [UInt64: Watch] = [:]
    var servedLast: UInt64 = 0
    private var unflushedBytes = 0
    private var isFlushing = false

    init(
        _ frames: FrameChannel, permission: Permission, denial: AspenError, bearer: TokenBearer?,
        service: ClientService
    ) {
        self.frames = frames
        self.permission = permission
        self.denial = denial
        self.bearer = bearer
        self.service = service
    }

    func start() {
        frames.onFrame = { [self] in received($1) }
        frames.onClosed = { [self] _, reason in closed(reason) }
        frames.onWritable = { [self] _ in writable() }
        try? frames.channel?.syncOptions?.setOption(
            .writeBufferWaterMark,
            value: ChannelOptions.Types.WriteBufferWaterMark(
                low: Self.outgoingBytesHigh / 4, high: Self.outgoingBytesHigh))
    }

    /// Nothing is under way.
    var isIdle: Bool { inFlight == 0 && watches.isEmpty && !isClosed }

    private func received(_ frame: ByteBuffer) {
        guard !isClosed else { return }
        heardAt = RaftNode.now
        var frame = frame
        guard let id = frame.readInteger(endianness: .little, as: UInt64.self) else {
            return malformed("a frame has at least eight bytes")
        }
        let request: WireRequest
        do {
            request = try WireRequest(serializedBytes: FrameBytes(frame))
        } catch {
            // The id cannot be trusted either: whoever sends this speaks another protocol.
            return malformed("a request that is no message of the protocol")
        }
        guard inFlight < Self.requestsMax else {
            return write(
                WireResponse(
                    AspenError(
                        .resourceExhausted,
                        "more than \(Self.requestsMax) requests wait on this connection",
                        retry: .safe)), id)
        }
        let bytes = frame.readableBytes > Self.smallRequestBytesMax ? frame.readableBytes : 0
        guard service.requestBytes + bytes <= Self.requestBytesMax else {
            return write(
                WireResponse(
                    AspenError(
                        .resourceExhausted,
                        "the requests that wait at this node have more than "
                            + "\(Self.requestBytesMax) bytes: send fewer at a time",
                        retry: .safe)), id)
        }
        inFlight += 1
        service.requestBytes += bytes
        let deadline = service.deadline(milliseconds: request.timeoutMs)
        service.handle(
            request,
            RequestOrigin(
                sink: self, id: id, deadline: deadline, isFromPeer: false, bytes: bytes),
            permission: permission, denial: denial, bearer: bearer)
    }

    private func malformed(_ reason: String) {
        service.clientIsWrong(reason)
        write(WireResponse(AspenError(.invalidArgument, reason)), 0)
        isClosed = true
        frames.close()
    }

    func reply(_ response: WireResponse, to id: UInt64, bytes: Int) {
        inFlight -= 1
        service.requestBytes -= bytes
        service.node.metrics.answered(response)
        send(response, to: id)
    }

    /// Nothing in it depends on who asks.
    func reply(_ page: ScanPage, _ scope: ScanToken.Scope, to id: UInt64, bytes: Int) {
        inFlight -= 1
        service.requestBytes -= bytes
        guard !isClosed else { return }
        let (head, tail) = page.ends(scope)
        let isSmall = page.body.readableBytes < Self.ownBufferBytesMin
        frames.send(
            { buffer in
                buffer.writeInteger(id, endianness: .little)
                buffer.writeBytes(head)
                if isSmall { buffer.writeImmutableBuffer(page.body) }
            }, isSmall ? ByteBuffer() : page.body, { $0.writeBytes(tail) })
        wrote(head.count + page.body.readableBytes + tail.count)
    }

    func part(_ response: WireResponse, to id: UInt64) { send(response, to: id) }
    var isOpen: Bool { !isClosed }
    var isWritable: Bool { frames.isWritable }

    /// In the names that this client knows.
    private func send(_ response: WireResponse, to id: UInt64) {
        guard let bearer else { return write(response, id) }
        var veiled = response
        if let veil = bearer.veil { veiled.veil(veil) }
        write(veiled, id)
        // It will not become better: another token needs another connection.
        if let failure = response.failure, failure.code == .unauthenticated { end(failure) }
    }

    /// Its token holds no more: each watch is told so under its id, and whatever else waits under id 0;
    /// then it is closed.
    func end(_ reason: AspenError) {
        let farewell = WireResponse(reason)
        for id in watches.keys.sorted() + [0] { write(farewell, id) }
        close()
    }

    private func write(_ response: WireResponse, _ id: UInt64) {
        guard !isClosed else { return }
        guard let bytes: FrameBytes = try? response.serializedBytes() else { return }
        frames.send { buffer in
            buffer.writeInteger(id, endianness: .little)
            buffer.writeImmutableBuffer(bytes.buffer)
        }
        wrote(bytes.count)
    }

    private func wrote(_ count: Int) {
        unflushedBytes += count
        flushIfMany()
        guard !frames.isWritable else { return }
        if unreadBytes == 0 { unreadSince = RaftNode.now }
        unreadBytes += count
        service.unreadBytes += count
        if isReading {
            isReading = false
            setReading(false)
        }
        if unreadBytes > Self.outgoingBytesMax {
            service.clientIsWrong("a client does not read its answers")
            cutOff()
        } else {
            service.boundUnread()
        }
    }

    /// Closes without sending what waits.
    func cutOff() {
        isClosed = true
        frames.channel?.close(promise: nil)
    }

    /// What its unread answers cost the node: how many they are, for how long. Who reads has not had
    /// them for long.
    func unreadWeight(_ now: MonotonicInstant) -> Int {
        unreadBytes * (1 + Int((now - unreadSince).milliseconds))
    }

    private func nothingIsUnread() {
        service.unreadBytes -= unreadBytes
        unreadBytes = 0
    }

    // MARK: - Streams

    /// The request, a small one, is answered by more than one message, and waits no more.
    func streamBegan() { inFlight -= 1 }

    /// Something that is said under an id that is a stream's, whatever waits already.
    func push(_ response: WireResponse, to id: UInt64) { send(response, to: id) }

    var canStream: Bool { !isClosed && frames.isWritable }

    /// One message of a stream, encoded.
    /// - Returns: false if it was not taken, because the client does not read fast enough: `writable`
    ///   says when it does.
    func stream(_ bytes: ByteBuffer, to id: UInt64) -> Bool {
        flushIfMany()
        guard canStream else { return false }
        unflushedBytes += bytes.readableBytes
        frames.send { buffer in
            buffer.writeInteger(id, endianness: .little)
            buffer.writeImmutableBuffer(bytes)
        }
        return true
    }

    private func flushIfMany() {
        guard unflushedBytes >= Self.unflushedBytesMax else { return }
        unflushedBytes = 0
        isFlushing = true
        frames.flush()
        isFlushing = false
    }

    private func writable() {
        if isFlushing {
            // Whoever answers just now is not asked for more before it has done so.
            let box = NIOLoopBound(self, eventLoop: service.node.loop)
            return service.node.loop.execute { if box.value.canStream { box.value.writable() } }
        }
        nothingIsUnread()
        service.watches.writable(self)
        service.taken(by: self)
        guard !isReading else { return }
        isReading = true
        setReading(true)
    }

    private func setReading(_ isOn: Bool) {
        try? frames.channel?.syncOptions?.setOption(.autoRead, value: isOn)
    }

    /// Sends what is waiting, then closes. Watches and backups end at once: a client that does not
    /// read would keep them otherwise.
    func close() {
        isClosed = true
        service.watches.closed(self)
        frames.close()
    }

    private func closed(_ reason: FrameChannel.Closed) {
        isClosed = true
        nothingIsUnread()
        service.watches.closed(self)
        service.taken(by: self)
        service.ended(self)
        if case .oversized(let bytes) = reason {
            service.clientIsWrong("a frame of \(bytes) bytes")
        }
        // Breaks the cycle frames -> closures -> self; answers under way come to nothing.
        frames.onFrame = { _, _ in }
        frames.onWritable = { _ in }
        frames.onClosed = { _, _ in }
    }
}

/// A frame as swift-protobuf wants to see it, without a copy.
struct FrameBytes: SwiftProtobufContiguousBytes {
    var buffer: ByteBuffer

    init(_ buffer: ByteBuffer) { self.buffer = buffer }

    init(repeating value: UInt8, count: Int) {
        buffer = ByteBuffer(repeating: value, count: count)
    }

    init<S: Sequence>(_ sequence: S) where S.Element == UInt8 {
        buffer = ByteBuffer(bytes: sequence)
    }

    var count: Int { buffer.readableBytes }

    func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try buffer.withUnsafeReadableBytes(body)
    }

    mutating func withUnsafeMutableBytes<R>(
        _ body: (UnsafeMutableRawBufferPointer) throws -> R
    ) rethrows -> R {
        try buffer.withUnsafeMutableReadableBytes(body)
    }
}

/// Who may do what on the local socket: judged by what the kernel says of the caller.
struct LocalAccess: Sendable {
    var ownUID: uid_t
    var adminGroup: gid_t?
    var useGroup: gid_t?
    /// The suite's other daemons. They are in group `aspen` to get into /run/aspen, which gives them
    /// no right to anybody's keys.
    var daemons: Set<uid_t> = []

    /// From the system's user database: groups `aspen-admin` and `aspen`.
    init() {
        ownUID = geteuid()
        adminGroup = Self.group("aspen-admin")
        useGroup = Self.group("aspen")
        for name in ["net", "gossip", "blob", "forge", "sql", "jobs", "dns"] {
            guard let entry = getpwnam("aspend-\(name)") else { continue }
            daemons.insert(entry.pointee.pw_uid)
        }
    }

    private static func group(_ name: String) -> gid_t? { getgrnam(name)?.pointee.gr_gid }

    func permission(of peer: LocalPeer?) -> Permission {
        guard let peer else { return .none }
        if peer.uid == 0 || peer.uid == ownUID { return .admin }
        if daemons.contains(peer.uid) { return .none }
        let groups = peer.groups + [peer.gid]
        if let adminGroup, groups.contains(adminGroup) { return .admin }
        if let useGroup, groups.contains(useGroup) { return .use }
        return .none
    }
}
