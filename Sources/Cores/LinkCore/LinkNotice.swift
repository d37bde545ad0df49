// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// What two nets say to each other on the first stream of a connection, as bytes: a length (u16 LE),
/// then a type and its fields. The first of each side is `proof`.
package enum LinkNotice: Equatable, Sendable {
    /// `incarnation` is drawn by a net when it starts: whether this is the net one knows, or its
    /// successor. `raft` is how its service is just now.
    case proof(mac: [UInt8], incarnation: UInt64, raft: ServiceState)
    /// The service by its number on the wire.
    case service(UInt8, ServiceState)
    /// From who dials, behind its proof: these connections with the receiver are over. One to
    /// `LinkName.overMax`, ascending.
    case over([LinkName])
    /// Of a later version; skipped.
    case unknown

    /// Largest notice without its length, in bytes.
    package static let bytesMax = 256
    /// A keyed hash.
    package static let proofByteCount = 32

    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .proof(let mac, let incarnation, let raft):
            precondition(mac.count == Self.proofByteCount, "a proof has its length")
            writer.byte(1)
            writer.raw(mac)
            writer.integer(incarnation)
            writer.byte(raft.rawValue)
        case .service(let name, let state):
            writer.byte(2)
            writer.byte(name)
            writer.byte(state.rawValue)
        case .over(let names):
            precondition((1...LinkName.overMax).contains(names.count), "some, and not many")
            writer.byte(3)
            writer.byte(UInt8(names.count))
            for name in names { writer.integer(name.rawValue) }
        case .unknown: preconditionFailure("not a notice to send")
        }
        var whole = ByteWriter(capacity: writer.bytes.count + 2)
        whole.integer(UInt16(writer.bytes.count))
        whole.raw(writer.bytes)
        return whole.bytes
    }

    /// - Parameter bytes: one notice without its length.
    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        switch try reader.byte("type") {
        case 1:
            let mac = Array(try reader.raw(Self.proofByteCount, "mac"))
            let incarnation: UInt64 = try reader.integer("incarnation")
            self = .proof(mac: mac, incarnation: incarnation, raft: try Self.state(&reader))
        case 2:
            let name = try reader.byte("service")
            self = .service(name, try Self.state(&reader))
        case 3: self = .over(try Self.names(&reader))
        default:
            self = .unknown
            return
        }
        try reader.end()
    }

    /// Takes the notices off the front of `bytes` that are complete.
    package static func take(from bytes: inout [UInt8]) throws(DecodeError) -> [LinkNotice] {
        var notices: [LinkNotice] = []
        var start = 0
        while bytes.count - start >= 2 {
            let count = Int(bytes[start]) | Int(bytes[start + 1]) << 8
            guard count <= bytesMax else { throw .outOfRange(field: "length") }
            guard bytes.count - start - 2 >= count else { break }
            notices.append(try LinkNotice(decoding: Array(bytes[start + 2..<start + 2 + count])))
            start += 2 + count
        }
        bytes.removeFirst(start)
        return notices
    }

    private static func names(_ reader: inout ByteReader) throws(DecodeError) -> [LinkName] {
        let count = try reader.byte("names")
        guard (1...LinkName.overMax).contains(Int(count)) else {
            throw .outOfRange(field: "names")
        }
        var names: [LinkName] = []
        for _ in 0..<count {
            let name = LinkName(try reader.integer("name"))
            if let last = names.last, last >= name { throw .malformed(field: "names") }
            names.append(name)
        }
        return names
    }

    private static func state(_ reader: inout ByteReader) throws(DecodeError) -> ServiceState {
        guard let state = ServiceState(rawValue: try reader.byte("state")) else {
            throw .unknown(field: "state")
        }
        return state
    }
}
