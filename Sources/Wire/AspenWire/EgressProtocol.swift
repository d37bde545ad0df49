// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// The frames of `egress.sock`: length (u32 LE), then a version byte, a type byte and its fields
/// (`ByteWriter`). A connection is for one request and its answer.
package enum EgressRequest: Equatable, Sendable {
    /// Which name servers this machine asks. Answers `nameServers`.
    case nameServers
    /// A connected socket to one of them, by its place in that list. Answers `connected`.
    case nameServer(place: UInt8, isStream: Bool)
}

package enum EgressReply: Equatable, Sendable {
    /// "192.0.2.1:53", "[2001:db8::1]:53"; the first is asked first.
    case nameServers([String])
    /// The socket comes with the first byte of this frame (SCM_RIGHTS). `address` is the server that it is
    /// connected to: the list may be another one since it was asked for.
    case connected(address: String)
    case failed(code: AspenErrorCode, message: String)
}

/// Limits of `egress.sock`.
package enum EgressLimits {
    /// Longest request and answer, in bytes.
    package static let requestBytesMax = 64
    package static let replyBytesMax = 4096
    /// From the moment that somebody has connected to the answer: waiting for the request, connecting.
    package static let timeout = Duration.seconds(5)
    /// Name servers of one machine.
    package static let nameServersMax = 4
    /// Requests that are carried out at a time, a process each.
    package static let processesMax = 32
    /// Of /etc/resolv.conf so many bytes are read.
    package static let resolverFileBytesMax = 65_536
}

private let addressBytesMax = 64
private let messageBytesMax = 1024

extension EgressRequest {
    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.byte(ProtocolVersion.egressSocket)
        switch self {
        case .nameServers: writer.byte(1)
        case .nameServer(let place, let isStream):
            writer.byte(2)
            writer.byte(place)
            writer.flag(isStream)
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        guard try reader.byte("version") == ProtocolVersion.egressSocket else {
            throw .unknown(field: "version")
        }
        switch try reader.byte("request") {
        case 1: self = .nameServers
        case 2:
            self = .nameServer(
                place: try reader.byte("place"), isStream: try reader.flag("isStream"))
        default: throw .unknown(field: "request")
        }
        try reader.end()
    }
}

extension EgressReply {
    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.byte(ProtocolVersion.egressSocket)
        switch self {
        case .nameServers(let list):
            let kept = list.prefix(EgressLimits.nameServersMax)
            writer.byte(1)
            writer.integer(UInt32(kept.count))
            for address in kept { writer.string(address) }
        case .connected(let address):
            writer.byte(2)
            writer.string(address)
        case .failed(let code, let message):
            writer.byte(3)
            writer.integer(code.rawValue)
            writer.blob(Array(message.utf8.prefix(messageBytesMax)))
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        guard try reader.byte("version") == ProtocolVersion.egressSocket else {
            throw .unknown(field: "version")
        }
        switch try reader.byte("reply") {
        case 1:
            let count = try reader.count(
                "nameServers", max: EgressLimits.nameServersMax, elementBytesMin: 4)
            var list: [String] = []
            for _ in 0..<count {
                list.append(try reader.string("address", max: addressBytesMax))
            }
            self = .nameServers(list)
        case 2: self = .connected(address: try reader.string("address", max: addressBytesMax))
        case 3:
            guard let code = AspenErrorCode(rawValue: try reader.integer("code")) else {
                throw .unknown(field: "code")
            }
            self = .failed(code: code, message: try reader.string("message", max: messageBytesMax))
        default: throw .unknown(field: "reply")
        }
        try reader.end()
    }
}
