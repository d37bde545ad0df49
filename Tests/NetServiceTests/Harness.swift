// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import Glibc
import Logging
import NIOCore
import NIOPosix
import NetClient
import NetService
import QUIC
import ServiceKit
import Synchronization
import Testing

/// All tests with real sockets, one after the other: they measure times and memory.
@Suite(.serialized) struct NetServiceTests {}

/// A directory of its own that vanishes with it.
final class Scratch: Sendable {
    let path: String

    init() {
        var template = Array("/tmp/aspen-net-test-XXXXXX\0".utf8CString)
        guard let made = mkdtemp(&template) else { preconditionFailure("mkdtemp") }
        path = String(cString: made)
    }

    deinit {
        if let folder = opendir(path) {
            while let entry = readdir(folder) {
                let name = withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                }
                if name != ".", name != ".." { unlink("\(path)/\(name)") }
            }
            closedir(folder)
        }
        rmdir(path)
    }
}

/// Sockets as a supervisor makes them.
enum Sockets {
    static func pair() -> (CInt, CInt) {
        var pair: [CInt] = [-1, -1]
        let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        precondition(socketpair(AF_UNIX, kind, 0, &pair) == 0)
        return (pair[0], pair[1])
    }

    static func listening(_ path: String) -> CInt {
        let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        let descriptor = socket(AF_UNIX, kind, 0)
        unlink(path)
        let address =
            withUnsafeBytes(of: sa_family_t(AF_UNIX)) { Array($0) } + Array(path.utf8) + [0]
        precondition(bind(descriptor, address) == 0, "bind \(path)")
        precondition(listen(descriptor, 128) == 0)
        return descriptor
    }

    /// A UDP socket on the loopback interface, where 127.0.0.1 to 127.0.0.255 are as many machines.
    static func datagram(port: UInt16 = 0, host: UInt8 = 1) -> CInt {
        let kind = CInt(SOCK_DGRAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        let descriptor = socket(AF_INET, kind, 0)
        precondition(bind(descriptor, inet(port, host: host)) == 0, "bind UDP \(port)")
        return descriptor
    }

    static func inet(_ port: UInt16, host: UInt8 = 1) -> [UInt8] {
        withUnsafeBytes(of: sa_family_t(AF_INET)) { Array($0) }
            + [UInt8(port >> 8), UInt8(port & 255), 127, 0, 0, host]
            + [UInt8](repeating: 0, count: 8)
    }

    static func port(of descriptor: CInt) -> UInt16 {
        var bytes = [UInt8](repeating: 0, count: 128)
        var length = socklen_t(bytes.count)
        bytes.withUnsafeMutableBytes { raw in
            guard let base = raw.baseAddress else { return }
            getsockname(descriptor, base.assumingMemoryBound(to: sockaddr.self), &length)
        }
        return UInt16(bytes[2]) << 8 | UInt16(bytes[3])
    }

    private static func bind(_ descriptor: CInt, _ address: [UInt8]) -> CInt {
        address.withUnsafeBytes { raw in
            guard let base = raw.baseAddress else { return -1 }
            return Glibc.bind(
                descriptor, base.assumingMemoryBound(to: sockaddr.self), socklen_t(raw.count))
        }
    }

    static func send(_ bytes: [UInt8], from descriptor: CInt, to port: UInt16) {
        let address = inet(port)
        _ = address.withUnsafeBytes { raw in
            sendto(
                descriptor, bytes, bytes.count, 0,
                raw.baseAddress?.assumingMemoryBound(to: sockaddr.self), socklen_t(raw.count))
        }
    }
}

enum Cookies {
    static let text = "a cookie for tests, of 32 bytes!"
    static let right = stretched(text)
    static let wrong = stretched("another cookie for tests, also 32")

    static func stretched(_ text: String) -> CookieKey {
        guard let key = try? CookieKey(stretching: Secret(Array(text.utf8))) else {
            preconditionFailure("stretching a cookie")
        }
        return key
    }
}

/// Log lines of a service, to look at.
final class LogBook: Sendable {
    private let lines = Mutex<[String]>([])
    var all: [String] { lines.withLock { $0 } }
    func count(_ text: String) -> Int { all.count { $0.contains(text) } }

    func logger(_ label: String) -> Logger { Logger(label: label) { _ in Handler(book: self) } }

    private struct Handler: LogHandler {
        let book: LogBook
        var metadata: Logger.Metadata = [:]
        var logLevel = Logger.Level.debug
        init(book: LogBook) { self.book = book }
        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }
        func log(event: LogEvent) {
            let fields = (event.metadata ?? [:]).map { "\($0)=\($1)" }.sorted()
            let line = "\(event.level): \(event.message) \(fields.joined(separator: " "))"
            book.lines.withLock { $0.append(line) }
        }
    }
}

/// Waits, by looking again and again, until `condition` holds; false after `seconds`.
func eventually(
    _ seconds: Double = 10, _ condition: @Sendable () async throws -> Bool
) async rethrows -> Bool {
    let end = ContinuousClock.now + .seconds(seconds)
    while ContinuousClock.now < end {
        if try await condition() { return true }
        try? await Task.sleep(for: .milliseconds(1))  // polls
    }
    return false
}

/// What a service behind `raft.peer` does with its streams: it keeps the principal and echoes.
final class EchoService: Sendable {
    let principals = Mutex<[Principal]>([])
    let bytes = Mutex<[UInt8]>([])
    let channels = Mutex<[any Channel]>([])
    /// From now on it accepts and reads nothing.
    let isStalled = Mutex(false)
    private let keepsBytes: Bool

    init(keepsBytes: Bool = false) { self.keepsBytes = keepsBytes }

    func accept(_ channel: any Channel) throws {
        try channel.syncOptions?.setOption(.allowRemoteHalfClosure, value: true)
        channels.withLock { $0.append(channel) }
        if isStalled.withLock({ $0 }) {
            try channel.syncOptions?.setOption(.autoRead, value: false)
        }
        try channel.pipeline.syncOperations.addHandler(Handler(service: self))
    }

    /// As if the daemon had died: every descriptor of it closes at once.
    func die() {
        let open = channels.withLock { channels in
            defer { channels = [] }
            return channels
        }
        for channel in open { channel.close(promise: nil) }
    }

    private final class Handler: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        typealias OutboundOut = ByteBuffer
        let service: EchoService
        var incoming = ByteBuffer()
        var hasPrincipal = false
        init(service: EchoService) { self.service = service }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            var data = unwrapInboundIn(data)
            if !hasPrincipal {
                incoming.writeBuffer(&data)
                guard
                    let length = incoming.getInteger(
                        at: incoming.readerIndex, endianness: .little, as: UInt32.self),
                    incoming.readableBytes >= 4 + Int(length)
                else { return }
                incoming.moveReaderIndex(forwardBy: 4)
                let bytes = incoming.readBytes(length: Int(length)) ?? []
                guard let principal = try? Principal(decoding: bytes) else {
                    return context.close(promise: nil)
                }
                service.principals.withLock { $0.append(principal) }
                hasPrincipal = true
                data = incoming
                incoming = ByteBuffer()
            }
            guard data.readableBytes > 0 else { return }
            if service.keepsBytes { service.bytes.withLock { $0 += Array(buffer: data) } }
            context.writeAndFlush(wrapOutboundOut(data), promise: nil)
        }

        func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
            // The peer has ended: everything echoed, then our end.
            let done = context.eventLoop.makePromise(of: Void.self)
            context.writeAndFlush(wrapOutboundOut(ByteBuffer()), promise: done)
            let box = NIOLoopBound(context, eventLoop: context.eventLoop)
            done.futureResult.whenComplete { _ in box.value.close(promise: nil) }
        }
    }
}

/// One node: a NetService with real sockets and a stand-in for its raft daemon.
final class TestNode: @unchecked Sendable {
    // SAFETY: the mutable parts are set up before use and changed by the one test that owns it.
    let loop: any EventLoop
    let key: NodeKey
    let scratch = Scratch()
    let log = LogBook()
    let echo: EchoService
    let events = Mutex<[NetEvent]>([])
    let connects = Mutex<Int>(0)
    let losses = Mutex<Int>(0)
    let identity = Mutex<NetIdentity?>(nil)
    /// The end of the pair over which net passes connections, for another process.
    var passingEnd: CInt { dup(peerSockets.net) }
    let port: UInt16
    private let reserved: Mutex<CInt?>
    private(set) var service: NetService?
    private(set) var control: NIOLoopBound<NetControl>?
    private let peerSockets: (net: CInt, raft: CInt)
    var netSocket: String { "\(scratch.path)/net.sock" }
    var endpoint: EndpointID { key.endpoint }
    var address: String { "127.0.0.1:\(port)" }
    var peer: NetPeer { NetPeer(endpoint: endpoint, addresses: [address]) }

    init(key: NodeKey = .generate(), echo: EchoService = EchoService()) {
        loop = MultiThreadedEventLoopGroup.singleton.next()
        self.key = key
        self.echo = echo
        let socket = Sockets.datagram()
        port = Sockets.port(of: socket)
        reserved = Mutex(socket)
        peerSockets = Sockets.pair()
    }

    deinit { if let unused = takeReserved() { close(unused) } }

    private func takeReserved() -> CInt? {
        reserved.withLock { socket in
            defer { socket = nil }
            return socket
        }
    }

    /// Bound to `port`: at first the one that has kept it from everybody else since it was chosen.
    func datagram() -> CInt { takeReserved() ?? Sockets.datagram(port: port) }

    /// Starts net; `configure` may change what it is told.
    func start(
        cookie: CookieKey = Cookies.right, configure: (inout NetConfiguration) -> Void = { _ in }
    ) async throws {
        var configuration = NetConfiguration(
            key: key, cookie: cookie, advertised: [address],
            access: AccessTable(daemons: [:], owner: getuid()))
        configuration.connectors = [.raft: .passing(descriptor: peerSockets.net)]
        configure(&configuration)
        let final = configuration
        let datagram = datagram()
        let listening = Sockets.listening(netSocket)
        let service = try await loop.submit { [loop, log] in
            NetService(eventLoop: loop, configuration: final, logger: log.logger("net"))
        }.get()
        self.service = service
        try await loop.flatSubmit {
            service.start(datagramSocket: datagram, netSocket: listening)
        }.get()
    }

    /// Accepts what net passes on, as aspend-raft does.
    func startEcho() async throws {
        let echo = echo
        _ = try await Listener.start(descriptor: peerSockets.raft, on: loop) { try echo.accept($0) }
            .get()
    }

    /// Connects to net.sock as aspend-raft does.
    func startControl(_ peers: [NetPeer], isClosed: Bool = true) async throws {
        control = try await loop.submit { [self] in
            let control = NetControl(eventLoop: loop, socketPath: netSocket)
            control.onEvent = { [self] event in events.withLock { $0.append(event) } }
            control.onConnected = { [self] own in
                identity.withLock { $0 = own }
                connects.withLock { $0 += 1 }
            }
            control.onLost = { [self] in losses.withLock { $0 += 1 } }
            control.setPeers(peers, isClosed: isClosed)
            control.start()
            return NIOLoopBound(control, eventLoop: loop)
        }.get()
    }

    func setPeers(_ peers: [NetPeer], isClosed: Bool) async throws {
        let control = control
        try await loop.submit { control?.value.setPeers(peers, isClosed: isClosed) }.get()
    }

    func stopControl() async throws {
        let control = control
        try await loop.submit { control?.value.stop() }.get()
        self.control = nil
    }

    func stopNet() async throws {
        guard let service else { return }
        try await loop.flatSubmit { service.drain() }.get()
        self.service = nil
    }

    /// What a signal to stop sets going; ends when net has stopped.
    func stopAsDaemon() throws -> EventLoopFuture<Void> {
        let service = try #require(service)
        self.service = nil
        return loop.flatSubmit { service.stop() }
    }

    func stop() async throws {
        try await stopControl()
        try await stopNet()
        shutdown(peerSockets.net, CInt(SHUT_RDWR))
        close(peerSockets.net)
    }

    var hasSeenAnyPeerUp: Bool {
        events.withLock { $0.contains { if case .peerUp = $0 { true } else { false } } }
    }

    var hasSeenAnyPeerDown: Bool {
        events.withLock { $0.contains { if case .peerDown = $0 { true } else { false } } }
    }

    func has(_ event: NetEvent) -> Bool { events.withLock { $0.contains(event) } }

    /// Opens a stream through this node's net.
    func open(
        to peer: EndpointID, alpn: ALPN = .raft, service: ServiceName = .raft
    ) async throws -> TestStream {
        let stream = TestStream()
        let channel = try await NetStream.open(
            eventLoop: loop, socketPath: netSocket, endpoint: peer, alpn: alpn, service: service
        ) { channel in
            try channel.syncOptions?.setOption(.allowRemoteHalfClosure, value: true)
            try channel.pipeline.syncOperations.addHandler(TestStream.Collector(stream))
        }.get()
        stream.channel.withLock { $0 = channel }
        return stream
    }
}

/// The near end of an open stream.
final class TestStream: Sendable {
    let received = Mutex<[UInt8]>([])
    let hasEnded = Mutex(false)
    let isClosed = Mutex(false)
    let channel = Mutex<(any Channel)?>(nil)

    final class Collector: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        let stream: TestStream
        init(_ stream: TestStream) { self.stream = stream }
        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            let bytes = unwrapInboundIn(data)
            stream.received.withLock { $0 += Array(buffer: bytes) }
        }
        func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
            stream.hasEnded.withLock { $0 = true }
        }
        func channelInactive(context: ChannelHandlerContext) {
            stream.isClosed.withLock { $0 = true }
        }
        func errorCaught(context: ChannelHandlerContext, error: any Error) {}
    }

    func write(_ bytes: [UInt8]) async throws {
        guard let channel = channel.withLock({ $0 }) else { return }
        try await channel.writeAndFlush(ByteBuffer(bytes: bytes))
    }

    func end() async throws {
        guard let channel = channel.withLock({ $0 }) else { return }
        try await channel.close(mode: .output)
    }

    func close() async throws {
        guard let channel = channel.withLock({ $0 }) else { return }
        try await channel.close()
    }

    var count: Int { received.withLock { $0.count } }
}

/// Nodes that name each other as members; torn down at the end.
func withCluster(
    _ count: Int, configure: (inout NetConfiguration) -> Void = { _ in },
    _ body: @Sendable ([TestNode]) async throws -> Void
) async throws {
    let nodes = (0..<count).map { _ in TestNode() }
    do {
        for node in nodes {
            try await node.start(configure: configure)
            try await node.startEcho()
            let others = nodes.filter { $0 !== node }.map(\.peer)
            try await node.startControl(others)
        }
        let isUp = await eventually {
            nodes.allSatisfy { node in
                nodes.allSatisfy { $0 === node || node.has(.peerUp($0.endpoint)) }
            }
        }
        try #require(isUp, "every node is up for every other")
        try await body(nodes)
    } catch {
        for node in nodes { try? await node.stop() }
        throw error
    }
    for node in nodes { try await node.stop() }
}
