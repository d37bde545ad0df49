// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import LinkCore
import NIOCore
import TokenCore

/// What the nets of two nodes say to each other, on the first stream of each `aspen-raft`
/// connection, which the dialler opens and which stays open as long as the connection.
///
/// Each message is a length (u16 LE) and that many bytes: a type and its fields. The first message
/// of each side is `proof`; the acceptor's comes after it has checked the dialler's. Unknown types
/// are skipped after the proof, so that later versions can say more.
enum ControlMessage: Equatable, Sendable {
    /// `incarnation` is drawn by a net when it starts: whether this is the net one knows, or its
    /// successor. `raft` is how its service is just now.
    case proof(mac: [UInt8], incarnation: UInt64, raft: ServiceState)
    case service(ServiceName, ServiceState)
    /// These connections with the receiver are over; from who dials, behind its proof.
    case over([LinkName])
    case unknown

    /// Largest message, in bytes.
    static let bytesMax = LinkNotice.bytesMax

    func encoded() -> ByteBuffer {
        switch self {
        case .proof(let mac, let incarnation, let raft):
            ByteBuffer(
                bytes: LinkNotice.proof(mac: mac, incarnation: incarnation, raft: raft).encoded())
        case .service(let name, let state):
            ByteBuffer(bytes: LinkNotice.service(name.rawValue, state).encoded())
        case .over(let names): ByteBuffer(bytes: LinkNotice.over(names).encoded())
        case .unknown: preconditionFailure("not a message to send")
        }
    }

    init(decoding bytes: [UInt8]) throws(DecodeError) {
        switch try LinkNotice(decoding: bytes) {
        case .proof(let mac, let incarnation, let raft):
            self = .proof(mac: mac, incarnation: incarnation, raft: raft)
        case .service(let number, let state):
            self = ServiceName(rawValue: number).map { .service($0, state) } ?? .unknown
        case .over(let names): self = .over(names)
        case .unknown: self = .unknown
        }
    }

    /// Takes the next whole message off the front of `buffer`.
    /// - Returns: nil when it is not complete yet.
    static func next(in buffer: inout ByteBuffer) throws(DecodeError) -> ControlMessage? {
        guard
            let length = buffer.getInteger(
                at: buffer.readerIndex, endianness: .little, as: UInt16.self)
        else { return nil }
        guard length <= bytesMax else { throw .outOfRange(field: "length") }
        guard buffer.readableBytes >= 2 + Int(length) else { return nil }
        buffer.moveReaderIndex(forwardBy: 2)
        return try ControlMessage(decoding: buffer.readBytes(length: Int(length)) ?? [])
    }
}

/// How every stream begins, from whoever opened it: version and service; in version 2 a token chain
/// (u32 length, bytes) follows.
struct StreamHeader: Equatable {
    static let byteCount = 2

    var service: ServiceName
    /// Version 2 only.
    var tokenChain: [UInt8]?

    static func bytes(for service: ServiceName) -> ByteBuffer {
        ByteBuffer(bytes: [ProtocolVersion.stream, service.rawValue])
    }

    func encoded() -> ByteBuffer {
        guard let tokenChain else { return Self.bytes(for: service) }
        var buffer = ByteBuffer(bytes: [ProtocolVersion.streamWithToken, service.rawValue])
        buffer.writeInteger(UInt32(tokenChain.count), endianness: .little)
        buffer.writeBytes(tokenChain)
        return buffer
    }

    /// Takes the header off the front of `buffer`.
    /// - Returns: nil when it is not complete yet.
    static func read(from buffer: inout ByteBuffer) throws(DecodeError) -> StreamHeader? {
        let start = buffer.readerIndex
        guard buffer.readableBytes >= byteCount,
            let version = buffer.getInteger(at: start, as: UInt8.self),
            let raw = buffer.getInteger(at: start + 1, as: UInt8.self)
        else { return nil }
        guard let service = ServiceName(rawValue: raw) else { throw .unknown(field: "service") }
        switch version {
        case ProtocolVersion.stream:
            buffer.moveReaderIndex(forwardBy: byteCount)
            return StreamHeader(service: service)
        case ProtocolVersion.streamWithToken:
            guard
                let length = buffer.getInteger(
                    at: start + byteCount, endianness: .little, as: UInt32.self)
            else { return nil }
            guard length <= TokenLimits.bytesMax else { throw .outOfRange(field: "token") }
            guard buffer.readableBytes >= byteCount + 4 + Int(length) else { return nil }
            buffer.moveReaderIndex(forwardBy: byteCount + 4)
            return StreamHeader(
                service: service, tokenChain: buffer.readBytes(length: Int(length)) ?? [])
        default: throw .unknown(field: "version")
        }
    }
}
