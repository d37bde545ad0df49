// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import AspenWire
import LinkCore
import NIOCore
import QUIC

/// One `aspen-raft` connection: the proof of the cookie on its first stream, then the notices of the
/// two nets there, and the streams of services beside it. Confined to the event loop.
final class PeerSession {
    enum Failure: Error {
        /// The other side showed a wrong proof: `ours` says whether we or they found out.
        case cookie(foundHere: Bool)
        case malformed(String)
        case timedOut
        case connection(QUICError)

        var dialFailure: DialFailure {
            switch self {
            case .cookie: .cookie("the cookie differs")
            case .malformed(let what): .unreachable("it does not keep to the protocol: \(what)")
            case .timedOut: .unreachable("the cookie was not proved in time")
            case .connection(let error) where error.isKeyRefused:
                .refused("it does not know this node as a member yet")
            case .connection(.handshakeRefused(let reason)): .refused(reason)
            case .connection(.identityMismatch(_, let found)):
                .refused("another node answers there: \(found)")
            case .connection(.closedByPeer(let code, let reason)):
                switch StreamErrorCode(rawValue: code) {
                case .cookie: .cookie("the cookie differs")
                case .refused: .refused(reason)
                default: .unreachable("closed by the peer: \(reason)")
                }
            case .connection(let error): .unreachable("\(error)")
            }
        }
    }

    let id: LinkID
    let connection: QUICConnection
    var endpoint: EndpointID { connection.remoteEndpoint }
    private(set) var isProved = false
    /// What the peer calls this connection, too; nil until this side shows its proof.
    private(set) var name: LinkName?

    /// Both sides have proved the cookie. Incarnation and service are the peer's.
    var onProved: (PeerSession, _ incarnation: UInt64, ServiceState) -> Void = { _, _, _ in }
    var onNotice: (PeerSession, ServiceName, ServiceState) -> Void = { _, _, _ in }
    /// Which connections with it are over for this side: told when it dials, behind the proof, and when
    /// one is found to be over while this one lives.
    var over: () -> [LinkName] = { [] }
    /// The peer says which are over for it.
    var onOver: (PeerSession, [LinkName]) -> Void = { _, _ in }
    /// A stream to join to a service, after the proof; its header is read.
    var onStream: (PeerSession, QUICStream, ServiceName, ByteBuffer) -> Void = { _, _, _, _ in }
    /// The session is over, by whatever side; not called after `close`.
    var onEnded: (PeerSession, Failure) -> Void = { _, _ in }
    /// Whether service streams are open.
    var onCarrying: (PeerSession, Bool) -> Void = { _, _ in }

    var proofTimeout = NetLimits.proofTimeout
    private let keys: CookieKeys
    private let incarnation: UInt64
    private let service: () -> ServiceState
    private var control: QUICStream?
    private var incoming = ByteBuffer()
    private var pace = TokenBucket()
    /// Set while the first stream is not read because it has said too much.
    private var rest: Scheduled<Void>?
    /// What the peer's net has said so far.
    private(set) var noticeCount = 0
    private var hasShownProof = false
    private var isOver = false
    private var waiting: [QUICStream] = []
    private var timer: Scheduled<Void>?
    private var loop: (any EventLoop)?
    private var streams = 0

    init(
        id: LinkID, connection: QUICConnection, keys: CookieKeys, incarnation: UInt64,
        service: @escaping () -> ServiceState
    ) {
        self.id = id
        self.connection = connection
        self.keys = keys
        self.incarnation = incarnation
        self.service = service
    }

    func start(on loop: any EventLoop) {
        self.loop = loop
        timer = loop.assumeIsolated().scheduleTask(in: TimeAmount(proofTimeout)) {
            [self] in end(.timedOut)
        }
        connection.onClosed = { [self] error in lost(error) }
        connection.onStream = { [self] stream in peerOpened(stream) }
        if !connection.isInbound { dial() }
    }

    /// Counts a service stream in, and out again when the returned closure is called.
    func carry() -> () -> Void {
        streams += 1
        if streams == 1 { onCarrying(self, true) }
        return { [self] in
            streams -= 1
            if streams == 0, !isOver { onCarrying(self, false) }
        }
    }

    /// Tells the peer's net about a service here.
    func notify(_ name: ServiceName, _ state: ServiceState) {
        guard hasShownProof, !isOver else { return }
        control?.write(ControlMessage.service(name, state).encoded())
    }

    /// `notify`, to see whether it arrives.
    /// - Returns: what the peer has acknowledged by then.
    func ask(_ name: ServiceName, _ state: ServiceState) -> UInt64 {
        notify(name, state)
        return control?.writtenBytes ?? 0
    }

    /// Whether what was asked has arrived. A packet that only comes in says less: it may have been on its
    /// way already, and be the last one.
    func hasAnswered(_ mark: UInt64) -> Bool { (control?.acknowledgedBytes ?? 0) >= mark }

    /// Tells the peer's net which connections with it are over for this side.
    func tellOver() {
        guard isProved, !isOver else { return }
        let over = over()
        if !over.isEmpty { control?.write(ControlMessage.over(over).encoded()) }
    }

    /// Ends the connection without `onEnded`.
    func close(_ code: StreamErrorCode, _ reason: String) {
        guard !isOver else { return }
        release()
        connection.close(code: code.rawValue, reason: reason)
    }

    // MARK: - The proof

    private var ownSide: CookieKey.Side { connection.isInbound ? .acceptor : .dialler }
    private var otherSide: CookieKey.Side { connection.isInbound ? .dialler : .acceptor }

    private func dial() {
        do throws(QUICError) {
            let stream = try connection.openStream()
            stream.write(StreamHeader.bytes(for: .cookie))
            adopt(stream)
            try showProof(under: keys.own)
        } catch {
            end(.connection(error))
        }
    }

    private func adopt(_ stream: QUICStream) {
        control = stream
        stream.onEnd = { [self] in end(.malformed("the first stream was ended")) }
        stream.onReset = { [self] code in
            // When the connection is lost, its own reason follows and says more.
            if code != QUICStream.connectionLostCode {
                end(.malformed("the first stream was given up"))
            }
        }
        stream.onData = { [self] data in receivedControl(data) }
        stream.resumeReading()
    }

    private func exported() throws(QUICError) -> [UInt8] {
        try connection.exporter(label: CookieKey.exporterLabel, context: [], length: 32)
    }

    private func showProof(under key: CookieKey) throws(QUICError) {
        let mac = key.proof(of: ownSide, exported: try exported())
        let bytes = try connection.exporter(label: CookieKey.nameLabel, context: [], length: 8)
        name = LinkName(bytes.reduce(0) { $0 << 8 | UInt64($1) })
        hasShownProof = true
        control?.write(
            ControlMessage.proof(mac: mac, incarnation: incarnation, raft: service()).encoded())
        let over = connection.isInbound ? [] : over()
        if !over.isEmpty { control?.write(ControlMessage.over(over).encoded()) }
    }

    private func receivedControl(_ data: ByteBuffer) {
        var data = data
        incoming.writeBuffer(&data)
        takeControl()
    }

    private func takeControl() {
        do {
            while !isOver, rest == nil, let message = try ControlMessage.next(in: &incoming) {
                noticeCount += 1
                pace.spend(NetLimits.notices, now: .now)
                try handle(message)
                if !pace.has(NetLimits.notices, now: .now) { pause() }
            }
            incoming.discardReadBytes()
        } catch let error as QUICError {
            end(.connection(error))
        } catch {
            end(.malformed("\(error)"))
        }
    }

    /// The peer's net says more than one does: what it goes on to say waits, here as far as it has
    /// come and then at its own end.
    private func pause() {
        guard !isOver else { return }
        control?.pauseReading()
        let at = pace.availableAt(
            NetLimits.notices, count: NetLimits.notices.burst / 10, now: .now)
        rest = loop?.assumeIsolated().scheduleTask(deadline: .uptimeNanoseconds(at.nanoseconds)) {
            [self] in
            rest = nil
            control?.resumeReading()
            takeControl()
        }
    }

    private func handle(_ message: ControlMessage) throws {
        switch message {
        case .proof(let mac, let incarnation, let raft):
            guard !isProved else { throw DecodeError.unknown(field: "type") }
            let exported = try exported()
            // Who was shown one key answers with that. Who dials shows his own: he has to know only that.
            let possible = connection.isInbound ? keys.all : [keys.own]
            guard
                let shared = possible.first(where: {
                    $0.verifies(mac, of: otherSide, exported: exported)
                })
            else { return end(.cookie(foundHere: true)) }
            if connection.isInbound { try showProof(under: shared) }
            isProved = true
            timer?.cancel()
            connection.trust()
            onProved(self, incarnation, raft)
            let held = waiting
            waiting = []
            for stream in held where !isOver { readHeader(of: stream) }
        case .service(let name, let state):
            guard isProved else { throw DecodeError.unknown(field: "type") }
            onNotice(self, name, state)
        case .over(let names):
            guard isProved else { throw DecodeError.unknown(field: "type") }
            onOver(self, names)
        case .unknown:
            guard isProved else { throw DecodeError.unknown(field: "type") }
        }
    }

    // MARK: - Streams of the peer

    private func peerOpened(_ stream: QUICStream) {
        guard !isOver else { return stream.reset(code: StreamErrorCode.refused.rawValue) }
        if isProved { return readHeader(of: stream) }
        if connection.isInbound, control == nil { return expectControl(stream) }
        // The acceptor may be ahead of us: its proof can be in a later packet than its first stream.
        guard !connection.isInbound, waiting.count < NetLimits.streamsBeforeProofMax else {
            return end(.malformed("a stream before the proof"))
        }
        waiting.append(stream)
    }

    private func expectControl(_ stream: QUICStream) {
        control = stream
        InboundHeader.read(stream) { [self] result in
            guard !isOver else { return }
            switch result {
            case .success((let header, let rest))
            where header == StreamHeader(service: .cookie):
                adopt(stream)
                receivedControl(rest)
            case .success: end(.malformed("the first stream must prove the cookie"))
            case .failure(let error): end(.malformed("\(error)"))
            }
        }
    }

    private func readHeader(of stream: QUICStream) {
        InboundHeader.read(stream) { [self] result in
            guard !isOver else { return }
            switch result {
            // Who has proved the cookie shows no token.
            case .success((let header, let rest)) where header.tokenChain == nil:
                onStream(self, stream, header.service, rest)
            case .success, .failure: stream.reset(code: StreamErrorCode.malformed.rawValue)
            }
        }
    }

    // MARK: - The end

    private func lost(_ error: QUICError) {
        guard !isOver else { return }
        release()
        onEnded(self, .connection(error))
    }

    private func end(_ failure: Failure) {
        guard !isOver else { return }
        let (code, text): (StreamErrorCode, String) =
            switch failure {
            case .cookie: (.cookie, "cookie")
            case .malformed(let what): (.malformed, what)
            case .timedOut: (.cookie, "the cookie was not proved in time")
            case .connection: (.none, "")
            }
        release()
        connection.close(code: code.rawValue, reason: text)
        onEnded(self, failure)
    }

    private func release() {
        isOver = true
        timer?.cancel()
        timer = nil
        rest?.cancel()
        rest = nil
        control?.onData = nil
        control?.onEnd = nil
        control?.onReset = nil
        control = nil
        waiting = []
    }
}

/// Reads the header of a stream that the peer opened.
enum InboundHeader {
    /// - Parameter done: called once, with the header and what came after it; the stream is paused
    ///   then. Not called when the stream is reset before.
    static func read(
        _ stream: QUICStream,
        done: @escaping (Result<(StreamHeader, ByteBuffer), DecodeError>) -> Void
    ) {
        var buffer = ByteBuffer()
        stream.onReset = { _ in clear(stream) }
        stream.onEnd = {
            clear(stream)
            stream.reset(code: StreamErrorCode.malformed.rawValue)
        }
        stream.onData = { data in
            var data = data
            buffer.writeBuffer(&data)
            do throws(DecodeError) {
                guard let header = try StreamHeader.read(from: &buffer) else { return }
                stream.pauseReading()
                clear(stream)
                done(.success((header, buffer)))
            } catch {
                clear(stream)
                done(.failure(error))
            }
        }
    }

    private static func clear(_ stream: QUICStream) {
        stream.onData = nil
        stream.onEnd = nil
        stream.onReset = nil
    }
}
