// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import NIOCore
import RaftCore
import RaftStorage

/// One frame between raft daemons. Streams are one-way but for `hello` and the answers to requests:
/// each node opens its own to each peer, one a lane.
enum PeerFrame: Sendable {
    case hello(PeerHello)
    /// Instead of a hello: why the stream is not accepted. The stream is closed after it.
    case refused(AspenErrorCode, String)
    case message(Message)
    /// A `ClientRequest` for the peer itself (status, or a membership change for the leader).
    case request(id: UInt64, [UInt8])
    case response(id: UInt64, [UInt8])
    /// How much room the sender's disk has; sent when that changes, and while it is short.
    case space(SpaceLevel)
}

extension PeerFrame {
    /// Largest text in `refused`, in bytes.
    static let refusalBytesMax = 1024

    init(decoding frame: ByteBuffer) throws(DecodeError) {
        let bytes = Array(buffer: frame)
        var reader = ByteReader(bytes)
        guard let kind = PeerFrameKind(rawValue: try reader.byte("kind")) else {
            throw .unknown(field: "kind")
        }
        switch kind {
        case .hello:
            self = .hello(try PeerHello(from: &reader))
        case .message:
            self = .message(try Message.decode(&reader))
        case .request:
            let id: UInt64 = try reader.integer("id")
            self = .request(id: id, Array(try reader.raw(reader.remaining, "request")))
        case .response:
            let id: UInt64 = try reader.integer("id")
            self = .response(id: id, Array(try reader.raw(reader.remaining, "response")))
        case .space:
            guard let level = SpaceLevel(rawValue: try reader.byte("level")) else {
                throw .unknown(field: "level")
            }
            self = .space(level)
        case .refused:
            let code = AspenErrorCode(rawValue: try reader.integer("code")) ?? .internal
            self = .refused(code, try reader.string("text", max: Self.refusalBytesMax))
        }
        try reader.end()
    }

    func write(to buffer: inout ByteBuffer) {
        switch self {
        case .hello(let hello):
            var writer = ByteWriter(capacity: 40)
            writer.byte(PeerFrameKind.hello.rawValue)
            hello.encode(into: &writer)
            buffer.writeBytes(writer.bytes)
        case .message(let message):
            var writer = ByteWriter(capacity: 1 + message.byteCountEstimate)
            writer.byte(PeerFrameKind.message.rawValue)
            message.encode(into: &writer)
            buffer.writeBytes(writer.bytes)
        case .request(let id, let bytes):
            buffer.writeInteger(PeerFrameKind.request.rawValue)
            buffer.writeInteger(id, endianness: .little)
            buffer.writeBytes(bytes)
        case .response(let id, let bytes):
            buffer.writeInteger(PeerFrameKind.response.rawValue)
            buffer.writeInteger(id, endianness: .little)
            buffer.writeBytes(bytes)
        case .space(let level):
            buffer.writeInteger(PeerFrameKind.space.rawValue)
            buffer.writeInteger(level.rawValue)
        case .refused(let code, let text):
            var writer = ByteWriter(capacity: 64)
            writer.byte(PeerFrameKind.refused.rawValue)
            writer.integer(code.rawValue)
            writer.string(String(text.prefix(200)))
            buffer.writeBytes(writer.bytes)
        }
    }
}
