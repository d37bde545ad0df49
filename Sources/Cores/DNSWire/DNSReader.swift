// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes

extension DNSMessage {
    /// Total, and its work is bounded by the length: a compressed name goes back in the message with
    /// each of at most `DNSReader.pointersMax` steps. Bytes behind the last record are ignored.
    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        guard bytes.count <= Self.bytesMax else { throw .outOfRange(field: "message") }
        var reader = DNSReader(bytes)
        id = try reader.short("id")
        flags = DNSFlags(rawValue: try reader.short("flags"))
        var counts: [Int] = []
        for _ in 0..<4 { counts.append(Int(try reader.short("count"))) }
        guard counts.reduce(0, +) <= Self.entriesMax else { throw .outOfRange(field: "count") }
        for _ in 0..<counts[0] { questions.append(try reader.question()) }
        answers = try reader.records(counts[1])
        authorities = try reader.records(counts[2])
        additionals = try reader.records(counts[3])
    }
}

/// Reads one message from its beginning.
struct DNSReader {
    /// Most steps back in one name: as many as it can have labels.
    static let pointersMax = 127

    let bytes: [UInt8]
    var position = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    mutating func byte(_ field: StaticStringName) throws(DecodeError) -> UInt8 {
        guard position < bytes.count else { throw .truncated(field: field) }
        defer { position += 1 }
        return bytes[position]
    }

    mutating func short(_ field: StaticStringName) throws(DecodeError) -> UInt16 {
        guard bytes.count - position >= 2 else { throw .truncated(field: field) }
        defer { position += 2 }
        return UInt16(bytes[position]) << 8 | UInt16(bytes[position + 1])
    }

    mutating func name(_ field: StaticStringName) throws(DecodeError) -> DNSName {
        var wire: [UInt8] = []
        var place = position
        /// Where the name goes on behind; known at the first step back.
        var end: Int?
        /// Where the part that is being read began: the next one must begin before.
        var start = position
        var pointers = 0
        while true {
            guard place < bytes.count else { throw .truncated(field: field) }
            let length = Int(bytes[place])
            switch length >> 6 {
            case 0:
                guard bytes.count - place > length else { throw .truncated(field: field) }
                guard wire.count + length + 1 <= DNSName.bytesMax else {
                    throw .outOfRange(field: field)
                }
                wire += bytes[place..<place + length + 1]
                place += length + 1
                guard length > 0 else {
                    position = end ?? place
                    return DNSName(wire: wire)
                }
            case 3:
                guard place + 1 < bytes.count else { throw .truncated(field: field) }
                end = end ?? place + 2
                place = (length & 0x3f) << 8 | Int(bytes[place + 1])
                pointers += 1
                guard place < start, pointers <= Self.pointersMax else {
                    throw .malformed(field: field)
                }
                start = place
            default: throw .unknown(field: field)
            }
        }
    }

    mutating func question() throws(DecodeError) -> DNSQuestion {
        var question = DNSQuestion(try name("question"), try short("type"))
        let word = try short("class")
        question.class = word & 0x7fff
        question.wantsUnicast = word & 0x8000 != 0
        return question
    }

    mutating func records(_ count: Int) throws(DecodeError) -> [DNSRecord] {
        var found: [DNSRecord] = []
        for _ in 0..<count { found.append(try record()) }
        return found
    }

    private mutating func record() throws(DecodeError) -> DNSRecord {
        let name = try name("record")
        let type = try short("type")
        let word = try short("class")
        let ttl = UInt32(try short("ttl")) << 16 | UInt32(try short("ttl"))
        let length = Int(try short("length"))
        guard bytes.count - position >= length else { throw .truncated(field: "data") }
        let end = position + length
        let data = try data(type, until: end)
        guard position == end else { throw .malformed(field: "data") }
        var record = DNSRecord(name, ttl: ttl, data, flushesCache: word & 0x8000 != 0)
        record.class = word & 0x7fff
        return record
    }

    private mutating func data(_ type: UInt16, until end: Int) throws(DecodeError) -> DNSData {
        switch type {
        case DNSType.a, DNSType.aaaa:
            guard end - position == (type == DNSType.a ? 4 : 16),
                let address = IPAddress(bytes: bytes[position..<end])
            else { throw .outOfRange(field: "address") }
            position = end
            return .address(address)
        case DNSType.ptr: return .pointer(try self.name("pointer"))
        case DNSType.cname: return .alias(try self.name("alias"))
        case DNSType.srv:
            return .service(
                priority: try short("priority"), weight: try short("weight"),
                port: try short("port"), target: try self.name("target"))
        case DNSType.txt: return .text(try strings(until: end))
        case DNSType.nsec:
            return .exists(next: try self.name("next"), types: try types(until: end))
        default:
            defer { position = end }
            return .other(type: type, Array(bytes[position..<end]))
        }
    }

    private mutating func strings(until end: Int) throws(DecodeError) -> [[UInt8]] {
        var found: [[UInt8]] = []
        while position < end {
            let next = position + 1 + Int(bytes[position])
            guard next <= end else { throw .truncated(field: "text") }
            found.append(Array(bytes[position + 1..<next]))
            position = next
        }
        return found == [[]] ? [] : found
    }

    /// The first window of the map; others are checked for their form alone.
    private mutating func types(until end: Int) throws(DecodeError) -> [UInt8] {
        var found: [UInt8] = []
        var last = -1
        while position < end {
            let window = Int(try byte("window"))
            let count = Int(try byte("window"))
            guard window > last, (1...32).contains(count), end - position >= count else {
                throw .malformed(field: "window")
            }
            last = window
            if window == 0 {
                for place in 0..<count * 8 where place > 0 {
                    if bytes[position + place / 8] & (0x80 >> (place % 8)) != 0 {
                        found.append(UInt8(place))
                    }
                }
            }
            position += count
        }
        return found
    }
}
