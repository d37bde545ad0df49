// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import NIOCore
import Testing

@testable import QUIC

@Suite struct StreamTests {
    /// A server that echoes and a connection to it.
    static func withEcho(
        _ configure: @escaping (inout QUICConfiguration) -> Void = { _ in },
        _ body: (Loopback, QUICEndpoint, QUICConnection) async throws -> Void
    ) async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName], configure)
            let client = try await loopback.endpoint(configure)
            try await loopback.on { server.serveEcho() }
            try await body(loopback, server, try await loopback.connect(client, to: server))
        }
    }

    /// Sends `text` on a stream of its own and returns what comes back, or the code of a reset.
    static func exchange(
        _ connection: QUICConnection, _ text: String
    ) throws -> EventLoopFuture<String> {
        let stream = try connection.openStream()
        let done = connection.eventLoop.makePromise(of: String.self)
        var answer = ""
        stream.onData = { answer += String(buffer: $0) }
        stream.onEnd = { done.succeed(answer) }
        stream.onReset = { done.succeed("reset \($0)") }
        stream.write(ByteBuffer(string: text))
        stream.finish()
        return done.futureResult
    }

    /// Waits until the peer allows `count` more streams.
    static func streams(_ count: Int, of connection: QUICConnection) async throws {
        let promise = connection.eventLoop.makePromise(of: Void.self)
        try await connection.eventLoop.submit {
            @Sendable func look() {
                if connection.availableStreams >= count { return promise.succeed() }
                connection.onStreamsAvailable = look
                connection.isShortOfStreams = true
            }
            look()
        }.get()
        try await promise.futureResult.get()
    }

    @Test(arguments: [true, false])
    func twentyMegabytesArriveWhole(offload: Bool) async throws {
        try await Loopback.run { loopback in
            let configure: (inout QUICConfiguration) -> Void = {
                $0.useSegmentationOffload = offload
            }
            let server = try await loopback.endpoint(serves: [protocolName], configure)
            let client = try await loopback.endpoint(configure)
            let received = loopback.loop.makePromise(of: (Int, UInt32).self)
            try await loopback.on {
                server.onConnection = { connection in
                    connection.onStream = { stream in
                        var hash = CRC32C()
                        var count = 0
                        stream.onData = { data in
                            count += data.readableBytes
                            data.withUnsafeReadableBytes { hash.update($0) }
                        }
                        stream.onEnd = { received.succeed((count, hash.value)) }
                        stream.onReset = { received.fail(QUICError.connectionLost("\($0)")) }
                    }
                }
            }
            let connection = try await loopback.connect(client, to: server)
            let sent = try await loopback.on { try Producer(connection, bytes: 20 << 20) }
            let (count, hash) = try await received.futureResult.get()
            #expect(count == 20 << 20)
            try await loopback.on {
                #expect(hash == sent.hash.value)
                let high = connection.configuration.streamSendHighWater
                #expect(sent.unsentMax <= high + Producer.pieceBytes)
            }
        }
    }

    @Test func aThousandStreamsOneAfterTheOther() async throws {
        try await Self.withEcho { loopback, _, connection in
            for number in 0..<1000 {
                let answer = try await loopback.loop.flatSubmit {
                    do { return try Self.exchange(connection, "stream \(number)") } catch {
                        return loopback.loop.makeFailedFuture(error)
                    }
                }.get()
                #expect(answer == "stream \(number)")
            }
            // Both sides have forgotten them: at most the last one still awaits an acknowledgement.
            try await loopback.on { #expect(connection.streamCount <= 1) }
        }
    }

    @Test func sixtyFourStreamsAtATime() async throws {
        try await Self.withEcho { loopback, _, connection in
            for round in 0..<10 {
                try await Self.streams(64, of: connection)
                let answers = try await loopback.loop.flatSubmit {
                    do {
                        let futures = try (0..<64).map {
                            try Self.exchange(connection, "round \(round) stream \($0)")
                        }
                        return EventLoopFuture.whenAllSucceed(futures, on: loopback.loop)
                    } catch { return loopback.loop.makeFailedFuture(error) }
                }.get()
                #expect(answers == (0..<64).map { "round \(round) stream \($0)" })
            }
        }
    }

    @Test func streamLimitIsTypedAndRecovers() async throws {
        try await Self.withEcho { loopback, _, connection in
            let streams = try await loopback.on {
                var streams: [QUICStream] = []
                for _ in 0..<Limits.streamsPerConnectionMax {
                    streams.append(try connection.openStream())
                }
                #expect(throws: QUICError.tooManyStreams) { try connection.openStream() }
                return streams
            }
            let ended = loopback.loop.makePromise(of: Void.self)
            try await loopback.on {
                streams[0].onEnd = { ended.succeed() }
                streams[0].onData = { _ in }
                streams[0].write(ByteBuffer(string: "x"))
                streams[0].finish()
            }
            try await ended.futureResult.get()
            // The peer's permission for one more follows the end of the first.
            try await Self.streams(1, of: connection)
            try await loopback.on { _ = try connection.openStream() }
        }
    }

    @Test func aPausedReaderBoundsTheSender() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName]) {
                $0.streamWindow = 100_000
            }
            let client = try await loopback.endpoint {
                $0.streamSendHighWater = 50_000
                $0.streamSendLowWater = 20_000
            }
            let opened = loopback.loop.makePromise(of: QUICStream.self)
            let count = Box(0)
            let ended = loopback.loop.makePromise(of: Void.self)
            try await loopback.on {
                server.onConnection = { connection in
                    connection.onStream = { stream in
                        stream.pauseReading()
                        stream.onData = { count.value += $0.readableBytes }
                        stream.onEnd = { ended.succeed() }
                        opened.succeed(stream)
                    }
                }
            }
            let connection = try await loopback.connect(client, to: server)
            let producer = try await loopback.on { try Producer(connection, bytes: 1 << 20) }
            let inbound = try await opened.futureResult.get()
            // Until the sender has filled the window and its own buffer, and stands still.
            while try await loopback.on({ producer.stream.heldBytes < 100_000 }) == false,
                try await loopback.on({ producer.stream.unsentBytes < 50_000 })
            { await Task.yield() }
            try await Self.quiet(loopback)
            try await loopback.on {
                #expect(count.value == 0, "paused, and yet delivered")
                #expect(!producer.stream.isWritable)
                #expect(producer.stream.unsentBytes <= 50_000 + Producer.pieceBytes)
                #expect(producer.written <= 150_000 + 2 * Producer.pieceBytes)
                inbound.resumeReading()
            }
            try await ended.futureResult.get()
            try await loopback.on { #expect(count.value == 1 << 20) }
        }
    }

    /// Lets a hundred milliseconds of the event loop's time pass.
    static func quiet(_ loopback: Loopback) async throws {
        try await loopback.loop.scheduleTask(in: .milliseconds(100)) {}.futureResult.get()
    }

    @Test func resetCodesArrive() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let atServer = loopback.loop.makePromise(of: UInt64.self)
            try await loopback.on {
                server.onConnection = { connection in
                    connection.onStream = { stream in
                        stream.onData = { [unowned stream] data in
                            if String(buffer: data) == "reset me" {
                                stream.reset(code: 7)
                            } else {
                                stream.write(data)
                            }
                        }
                        stream.onReset = { atServer.succeed($0) }
                    }
                }
            }
            let connection = try await loopback.connect(client, to: server)
            let atClient = loopback.loop.makePromise(of: UInt64.self)
            try await loopback.on {
                let first = try connection.openStream()
                first.onReset = { atClient.succeed($0) }
                first.write(ByteBuffer(string: "reset me"))
                let second = try connection.openStream()
                second.onReset = { _ in Issue.record("our own reset is no news") }
                second.onData = { [unowned second] _ in second.reset(code: 9) }
                second.write(ByteBuffer(string: "something"))
            }
            #expect(try await atClient.futureResult.get() == 7)
            #expect(try await atServer.futureResult.get() == 9)
            try await Self.quiet(loopback)
            try await loopback.on { #expect(connection.streamCount == 0) }
        }
    }

    @Test func aFinishedSideStillReceives() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let ended = loopback.loop.makePromise(of: QUICStream.self)
            try await loopback.on {
                server.onConnection = { connection in
                    connection.onStream = { stream in
                        stream.onData = { _ in Issue.record("an end without bytes was sent") }
                        stream.onEnd = { [unowned stream] in ended.succeed(stream) }
                    }
                }
            }
            let connection = try await loopback.connect(client, to: server)
            let answer = loopback.loop.makePromise(of: String.self)
            try await loopback.on {
                let stream = try connection.openStream()
                var text = ""
                stream.onData = { text += String(buffer: $0) }
                stream.onEnd = { answer.succeed(text) }
                stream.finish()
                stream.write(ByteBuffer(string: "ignored: it comes after the end"))
            }
            let inbound = try await ended.futureResult.get()
            for piece in ["half ", "closed ", "is ", "not ", "closed"] {
                try await loopback.on { inbound.write(ByteBuffer(string: piece)) }
            }
            try await loopback.on { inbound.finish() }
            #expect(try await answer.futureResult.get() == "half closed is not closed")
        }
    }

    @Test func bothSidesMayOpenStreams() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let inbound = loopback.loop.makePromise(of: QUICConnection.self)
            try await loopback.on { server.onConnection = { inbound.succeed($0) } }
            let outbound = try await loopback.connect(client, to: server)
            let accepted = try await inbound.futureResult.get()
            // `onStream` is set late: the stream waits for it.
            let answer = try await loopback.loop.flatSubmit {
                do { return try Self.exchange(accepted, "from the server") } catch {
                    return loopback.loop.makeFailedFuture(error)
                }
            }.and(
                loopback.loop.flatScheduleTask(in: .milliseconds(20)) {
                    outbound.onStream = echo
                    return loopback.loop.makeSucceededVoidFuture()
                }.futureResult
            ).get().0
            #expect(answer == "from the server")
        }
    }
}

/// Writes numbered bytes on a new stream for as long as it is writable, then ends it.
// SAFETY: confined to the event loop of its connection.
final class Producer: @unchecked Sendable {
    static let pieceBytes = 10_000
    let stream: QUICStream
    private(set) var hash = CRC32C()
    private(set) var written = 0
    private(set) var unsentMax = 0
    private let total: Int

    init(_ connection: QUICConnection, bytes: Int) throws {
        total = bytes
        stream = try connection.openStream()
        stream.onWritable = { [unowned self] in write() }
        write()
    }

    private func write() {
        while stream.isWritable, written < total {
            let count = min(Self.pieceBytes, total - written)
            let start = written
            var piece = ByteBufferAllocator().buffer(capacity: count)
            piece.writeBytes((0..<count).map { UInt8(truncatingIfNeeded: (start + $0) &* 31 >> 3) })
            piece.withUnsafeReadableBytes { hash.update($0) }
            written += count
            stream.write(piece)
            unsentMax = max(unsentMax, stream.unsentBytes)
        }
        if written == total { stream.finish() }
    }
}
