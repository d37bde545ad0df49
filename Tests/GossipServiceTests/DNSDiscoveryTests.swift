// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CAspenSystem
import DNSWire
import EgressService
import Glibc
import Logging
import NIOCore
import NIOPosix
import ResolverCore
import Synchronization
import Testing

@testable import GossipService

private let origin: DNSName = {
    guard let name = DNSName("nodes.example") else { preconditionFailure("a name") }
    return name
}()

private let logger: Logger = {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
}()

/// A name server on loopback that answers as a test says.
private final class FakeNameServer: Sendable {
    struct Asked: Sendable {
        var query: DNSMessage
        var isStream: Bool
        /// Of who asks.
        var port: Int
        var name: DNSName { query.questions[0].name }
    }

    let port: UInt16
    private let channels: [any Channel]

    /// - Parameter answers: what is sent back, in order.
    init(
        _ loop: any EventLoop, answers: @escaping @Sendable (Asked) -> [[UInt8]]
    ) throws {
        let log = NIOLockedLog()
        let datagrams = try DatagramBootstrap(group: loop).channelInitializer { channel in
            channel.eventLoop.makeCompletedFuture {
                try channel.pipeline.syncOperations.addHandler(Datagrams(log, answers))
            }
        }.bind(host: "127.0.0.1", port: 0).wait()
        let number = datagrams.localAddress?.port ?? 0
        let streams = try ServerBootstrap(group: loop)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Streams(log, answers))
                }
            }.bind(host: "127.0.0.1", port: number).wait()
        port = UInt16(number)
        channels = [datagrams, streams]
        self.log = log
    }

    private let log: NIOLockedLog
    var questions: [Asked] { log.all }

    func stop() { for channel in channels { try? channel.close().wait() } }

    final class NIOLockedLog: Sendable {
        private let list = Mutex<[Asked]>([])
        var all: [Asked] { list.withLock { $0 } }
        func add(_ one: Asked) { list.withLock { $0.append(one) } }
    }

    private final class Datagrams: ChannelInboundHandler {
        typealias InboundIn = AddressedEnvelope<ByteBuffer>
        typealias OutboundOut = AddressedEnvelope<ByteBuffer>
        private let log: NIOLockedLog
        private let answers: @Sendable (Asked) -> [[UInt8]]
        init(_ log: NIOLockedLog, _ answers: @escaping @Sendable (Asked) -> [[UInt8]]) {
            (self.log, self.answers) = (log, answers)
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            let envelope = unwrapInboundIn(data)
            guard let query = try? DNSMessage(decoding: Array(buffer: envelope.data)) else {
                return
            }
            let one = Asked(
                query: query, isStream: false, port: envelope.remoteAddress.port ?? 0)
            log.add(one)
            for bytes in answers(one) {
                let answer = AddressedEnvelope(
                    remoteAddress: envelope.remoteAddress, data: ByteBuffer(bytes: bytes))
                context.writeAndFlush(wrapOutboundOut(answer), promise: nil)
            }
        }
    }

    private final class Streams: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        typealias OutboundOut = ByteBuffer
        private let log: NIOLockedLog
        private let answers: @Sendable (Asked) -> [[UInt8]]
        init(_ log: NIOLockedLog, _ answers: @escaping @Sendable (Asked) -> [[UInt8]]) {
            (self.log, self.answers) = (log, answers)
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            var buffer = unwrapInboundIn(data)
            guard let length = buffer.readInteger(as: UInt16.self), buffer.readableBytes == length,
                let query = try? DNSMessage(decoding: Array(buffer: buffer))
            else { return context.close(promise: nil) }
            let one = Asked(
                query: query, isStream: true, port: context.channel.remoteAddress?.port ?? 0)
            log.add(one)
            for bytes in answers(one) {
                var answer = ByteBuffer()
                answer.writeInteger(UInt16(bytes.count))
                answer.writeBytes(bytes)
                context.writeAndFlush(wrapOutboundOut(answer), promise: nil)
            }
        }
    }
}

extension DNSMessage {
    /// The answer to this question: TXT records with these texts.
    fileprivate func answer(_ texts: [String], ttl: UInt32 = 300) -> DNSMessage {
        var message = DNSMessage(id: id, flags: [.response, .recursionDesired])
        message.questions = questions
        message.answers = texts.map {
            DNSRecord(questions[0].name, ttl: ttl, .text([Array($0.utf8)]))
        }
        return message
    }
}

/// The shell, with aspend-egress' part played in this process.
// SAFETY: `discovery` is used on `loop` alone; the rest does not change.
private final class Bench: @unchecked Sendable {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    var loop: any EventLoop { group.next() }
    private let threads = NIOThreadPool(numberOfThreads: 1)
    private let directory: String
    private let listener: CInt
    private var discovery: DNSDiscovery?
    private let news = Mutex<[DNSNews]>([])
    private let heard: EventLoopPromise<Void>
    private let wanted: Int

    /// - Parameter wanted: news after which `all()` returns.
    init(servers: [NameServer]?, wanted: Int = 1) throws {
        var template = Array("/tmp/aspen-dns-XXXXXX".utf8CString)
        _ = mkdtemp(&template)
        directory = String(
            decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        listener = aspen_listen_unix(directory + "/egress.sock")
        heard = group.next().makePromise()
        self.wanted = wanted
        threads.start()
        if let servers { serve(servers) }
        try loop.submit { [self] in
            let fresh = DNSDiscovery(
                origin: origin, egressSocketPath: directory + "/egress.sock", loop: loop,
                logger: logger)
            fresh.onNews = { [self] one in
                let count = news.withLock {
                    $0.append(one)
                    return $0.count
                }
                if count == self.wanted { heard.succeed() }
            }
            discovery = fresh
        }.wait()
    }

    private func serve(_ servers: [NameServer]) {
        threads.submit { [listener] _ in
            while true {
                var interest = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
                poll(&interest, 1, -1)
                let connection = accept(listener, nil, nil)
                guard connection >= 0 else { return }
                EgressAnswering(access: .ofSystem(), logger: logger) {
                    () throws(AspenError) in servers
                }.answer(connection)
            }
        }
    }

    func want(_ endpoints: [EndpointID]) throws {
        try loop.submit { [self] in discovery?.want(endpoints) }.wait()
    }

    func forget() throws { try loop.submit { [self] in discovery?.forget() }.wait() }

    /// When as many as are wanted have come.
    func all() throws -> [DNSNews] {
        try heard.futureResult.wait()
        return news.withLock { $0 }
    }

    var soFar: [DNSNews] { news.withLock { $0 } }

    func stop() throws {
        try loop.submit { [self] in
            discovery?.stop()
            discovery = nil
        }.wait()
        heard.fail(CancellationError())
        shutdown(listener, CInt(SHUT_RDWR))
        try threads.syncShutdownGracefully()
        close(listener)
        unlink(directory + "/egress.sock")
        rmdir(directory)
        try group.syncShutdownGracefully()
    }
}

private let loopback = IPAddress.v4(0x7f00_0001)
private let address = "192.0.2.7:7700"

@Suite struct DNSDiscoveryTests {
    private let servers = MultiThreadedEventLoopGroup.singleton.next()

    @Test func whatDNSSaysIsNews() throws {
        let server = try FakeNameServer(servers) {
            [$0.query.answer(["addr=\(address) [2001:db8::1]:7700", "relay=https://x"]).encoded()]
        }
        defer { server.stop() }
        let bench = try Bench(servers: [NameServer(loopback, port: server.port)])
        try bench.want([endpoint(1)])
        #expect(
            try bench.all() == [.found(endpoint(1), addresses: [address, "[2001:db8::1]:7700"])])
        #expect(
            server.questions.map(\.name) == [DiscoveryRecord.name(of: endpoint(1), origin: origin)])
        #expect(server.questions[0].query.flags.contains(.recursionDesired))
        try bench.stop()
    }

    @Test func aTruncatedAnswerIsAskedForOverAStream() throws {
        let server = try FakeNameServer(servers) { asked in
            if asked.isStream { return [asked.query.answer(["addr=\(address)"]).encoded()] }
            var cut = asked.query.answer([])
            cut.flags.insert(.truncated)
            return [cut.encoded()]
        }
        defer { server.stop() }
        let bench = try Bench(servers: [NameServer(loopback, port: server.port)])
        try bench.want([endpoint(1)])
        #expect(try bench.all() == [.found(endpoint(1), addresses: [address])])
        #expect(server.questions.map(\.isStream) == [false, true])
        try bench.stop()
    }

    @Test func wrongAnswersAreWaitedOver() throws {
        let server = try FakeNameServer(servers) { asked in
            let right = asked.query.answer(["addr=\(address)"])
            let evil = ["addr=198.51.100.1:7700"]
            var otherID = asked.query.answer(evil)
            otherID.id ^= 1
            var otherName = asked.query.answer(evil)
            otherName.questions[0].name = origin
            var noAnswer = asked.query.answer(evil)
            noAnswer.flags.remove(.response)
            let bytes = right.encoded()
            return [
                [], [0], Array(bytes.dropLast()), [UInt8](repeating: 0xff, count: 9001),
                otherID.encoded(), otherName.encoded(), noAnswer.encoded(), bytes,
                asked.query.answer(evil).encoded(),
            ]
        }
        defer { server.stop() }
        let bench = try Bench(servers: [NameServer(loopback, port: server.port)])
        try bench.want([endpoint(1)])
        #expect(try bench.all() == [.found(endpoint(1), addresses: [address])])
        #expect(server.questions.count == 1)
        try bench.stop()
    }

    @Test func aServerThatIsNotThereMakesRoomForTheNext() throws {
        let gone = try FakeNameServer(servers) { _ in [] }
        gone.stop()
        let refusing = try FakeNameServer(servers) { asked in
            var message = asked.query.answer([])
            message.flags.formUnion(DNSFlags(rawValue: 5))
            return [message.encoded()]
        }
        let server = try FakeNameServer(servers) {
            [$0.query.answer(["addr=\(address)"]).encoded()]
        }
        defer {
            refusing.stop()
            server.stop()
        }
        let bench = try Bench(
            servers: [gone.port, refusing.port, server.port].map { NameServer(loopback, port: $0) })
        try bench.want([endpoint(1)])
        #expect(try bench.all() == [.found(endpoint(1), addresses: [address])])
        #expect(refusing.questions.count == 1 && server.questions.count == 1)
        try bench.stop()
    }

    @Test func eachQuestionHasAPortAndAnIdOfItsOwn() throws {
        let server = try FakeNameServer(servers) {
            [$0.query.answer(["addr=\(address)"]).encoded()]
        }
        defer { server.stop() }
        let bench = try Bench(servers: [NameServer(loopback, port: server.port)], wanted: 20)
        try bench.want((1...20).map { endpoint($0) })
        #expect(try bench.all().count == 20)
        let asked = server.questions
        #expect(asked.count == 20)
        // Of 28,000 ports and 65,000 ids hardly two are alike.
        #expect(Set(asked.map(\.port)).count >= 18)
        #expect(Set(asked.map(\.query.id)).count >= 18)
        try bench.stop()
    }

    @Test func anAnswerIsKeptForAsLongAsItIsGoodFor() throws {
        let server = try FakeNameServer(servers) {
            [$0.query.answer(["addr=\(address)"]).encoded()]
        }
        defer { server.stop() }
        let bench = try Bench(servers: [NameServer(loopback, port: server.port)], wanted: 2)
        try bench.want([endpoint(1)])
        while bench.soFar.isEmpty { sched_yield() }  // polls
        try bench.forget()
        #expect(try bench.all().count == 2)
        #expect(server.questions.count == 1, "told twice, asked once")
        try bench.stop()
    }

    @Test func withoutEgressItGoesOn() throws {
        let bench = try Bench(servers: nil)
        try bench.want([endpoint(1)])
        try bench.stop()
        #expect(bench.soFar.isEmpty)
    }

    @Test func itCanBeStoppedWhileAQuestionIsUnderWay() throws {
        let server = try FakeNameServer(servers) { _ in [] }
        defer { server.stop() }
        let bench = try Bench(servers: [NameServer(loopback, port: server.port)])
        try bench.want((1...20).map { endpoint($0) })
        while server.questions.isEmpty { sched_yield() }  // polls
        try bench.stop()
    }
}
