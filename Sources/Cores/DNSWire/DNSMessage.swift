// SPDX-License-Identifier: GPL-2.0-or-later

/// A message of DNS (RFC 1035 section 4), also as multicast DNS uses it (RFC 6762 section 18).
package struct DNSMessage: Equatable, Sendable {
    package var id: UInt16
    package var flags: DNSFlags
    package var questions: [DNSQuestion] = []
    package var answers: [DNSRecord] = []
    package var authorities: [DNSRecord] = []
    package var additionals: [DNSRecord] = []

    /// Longest message that is read, in bytes (RFC 6762 section 17).
    package static let bytesMax = 9000
    /// Most questions and records in one message; more of them is an error.
    package static let entriesMax = 512

    package init(id: UInt16 = 0, flags: DNSFlags = []) {
        self.id = id
        self.flags = flags
    }
}

/// The second 16 bits of the header.
package struct DNSFlags: OptionSet, Hashable, Sendable {
    package let rawValue: UInt16
    package init(rawValue: UInt16) { self.rawValue = rawValue }

    package static let response = DNSFlags(rawValue: 0x8000)
    package static let authoritative = DNSFlags(rawValue: 0x0400)
    package static let truncated = DNSFlags(rawValue: 0x0200)
    package static let recursionDesired = DNSFlags(rawValue: 0x0100)

    /// 0 for a query.
    package var opcode: UInt16 { rawValue >> 11 & 0xf }
    package var responseCode: UInt16 { rawValue & 0xf }
}

/// The types that are understood (RFC 1035, 2782, 3596, 4034); all others are bytes.
package enum DNSType {
    package static let a: UInt16 = 1
    package static let ns: UInt16 = 2
    package static let cname: UInt16 = 5
    package static let soa: UInt16 = 6
    package static let ptr: UInt16 = 12
    package static let txt: UInt16 = 16
    package static let aaaa: UInt16 = 28
    package static let srv: UInt16 = 33
    package static let nsec: UInt16 = 47
    package static let any: UInt16 = 255
}

package enum DNSClass {
    package static let internet: UInt16 = 1
    package static let any: UInt16 = 255
}

package struct DNSQuestion: Hashable, Sendable {
    package var name: DNSName
    package var type: UInt16
    /// 15 bits.
    package var `class` = DNSClass.internet
    /// An answer to the asker alone will do (RFC 6762 section 5.4).
    package var wantsUnicast = false

    package init(_ name: DNSName, _ type: UInt16, wantsUnicast: Bool = false) {
        self.name = name
        self.type = type
        self.wantsUnicast = wantsUnicast
    }

    /// Whether a record answers it.
    package func matches(_ record: DNSRecord) -> Bool {
        (type == DNSType.any || type == record.data.type)
            && (self.class == DNSClass.any || self.class == record.class) && name == record.name
    }
}

package struct DNSRecord: Hashable, Sendable {
    package var name: DNSName
    /// 15 bits.
    package var `class` = DNSClass.internet
    /// All that there is of this name, type and class is in this message (RFC 6762 section 10.2).
    package var flushesCache = false
    /// Seconds.
    package var ttl: UInt32
    package var data: DNSData

    package init(_ name: DNSName, ttl: UInt32, _ data: DNSData, flushesCache: Bool = false) {
        self.name = name
        self.ttl = ttl
        self.data = data
        self.flushesCache = flushesCache
    }

    /// Of the same name, type, class and content, whatever their times to live.
    package func isSame(as other: DNSRecord) -> Bool {
        self.class == other.class && data == other.data && name == other.name
    }
}

package enum DNSData: Hashable, Sendable {
    /// A or AAAA.
    case address(IPAddress)
    case pointer(DNSName)
    /// CNAME.
    case alias(DNSName)
    case service(priority: UInt16, weight: UInt16, port: UInt16, target: DNSName)
    /// Strings of at most 255 bytes; none of them is written as an empty one (RFC 6763 section 6.1).
    case text([[UInt8]])
    /// Of the types 1 to 255, ascending, those that the name has (RFC 6762 section 6.1).
    case exists(next: DNSName, types: [UInt8])
    /// As it came: a name in it may be compressed, and means nothing outside its message.
    case other(type: UInt16, [UInt8])

    package var type: UInt16 {
        switch self {
        case .address(let address): address.isV4 ? DNSType.a : DNSType.aaaa
        case .pointer: DNSType.ptr
        case .alias: DNSType.cname
        case .service: DNSType.srv
        case .text: DNSType.txt
        case .exists: DNSType.nsec
        case .other(let type, _): type
        }
    }
}
