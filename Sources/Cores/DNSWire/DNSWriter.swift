// SPDX-License-Identifier: GPL-2.0-or-later

extension DNSMessage {
    package enum Section: Int, Sendable { case questions, answers, authorities, additionals }

    /// The message as bytes.
    package func encoded(style: DNSWriter.Style = .multicast) -> [UInt8] {
        var writer = DNSWriter(id: id, flags: flags, style: style)
        for question in questions { writer.append(question) }
        for record in answers { writer.append(record, to: .answers) }
        for record in authorities { writer.append(record, to: .authorities) }
        for record in additionals { writer.append(record, to: .additionals) }
        return writer.finished()
    }
}

/// Writes one message, section after section, and says what still fits.
package struct DNSWriter {
    package enum Style: Sendable {
        /// Every name is compressed (RFC 6762 section 18.14).
        case multicast
        /// For those who know nothing of multicast DNS: targets of services are not (RFC 2782).
        case classic
    }

    private let style: Style
    private let bytesMax: Int
    private var bytes: [UInt8]
    private var counts = [0, 0, 0, 0]
    /// Where each ending of a name was written, by its folded bytes.
    private var places: [[UInt8]: Int] = [:]
    private var written: [[UInt8]] = []

    package init(
        id: UInt16 = 0, flags: DNSFlags, style: Style = .multicast, bytesMax: Int = .max
    ) {
        self.style = style
        self.bytesMax = bytesMax
        bytes = []
        short(id)
        short(flags.rawValue)
        for _ in 0..<4 { short(0) }
    }

    package var isEmpty: Bool { counts.allSatisfy { $0 == 0 } }
    package var recordCount: Int { counts[1] + counts[2] + counts[3] }

    /// The message so far.
    package func finished(adding flags: DNSFlags = []) -> [UInt8] {
        var all = bytes
        all[2] |= UInt8(flags.rawValue >> 8)
        all[3] |= UInt8(flags.rawValue & 0xff)
        for (place, count) in counts.enumerated() {
            all[4 + 2 * place] = UInt8(truncatingIfNeeded: count >> 8)
            all[5 + 2 * place] = UInt8(truncatingIfNeeded: count)
        }
        return all
    }

    /// - Returns: false, and nothing has changed, if there is no room for it.
    @discardableResult
    package mutating func append(_ question: DNSQuestion) -> Bool {
        attempt(.questions) {
            $0.name(question.name, isCompressed: true)
            $0.short(question.type)
            $0.short(question.class & 0x7fff | (question.wantsUnicast ? 0x8000 : 0))
        }
    }

    /// - Returns: false, and nothing has changed, if there is no room for it.
    @discardableResult
    package mutating func append(_ record: DNSRecord, to section: DNSMessage.Section) -> Bool {
        attempt(section) {
            $0.name(record.name, isCompressed: true)
            $0.short(record.data.type)
            $0.short(record.class & 0x7fff | (record.flushesCache ? 0x8000 : 0))
            $0.short(UInt16(record.ttl >> 16))
            $0.short(UInt16(record.ttl & 0xffff))
            let start = $0.bytes.count
            $0.short(0)
            $0.data(record.data)
            let length = $0.bytes.count - start - 2
            precondition(length <= 0xffff, "the data of a record has a length of 16 bits")
            $0.bytes[start] = UInt8(length >> 8)
            $0.bytes[start + 1] = UInt8(length & 0xff)
        }
    }

    private mutating func attempt(
        _ section: DNSMessage.Section, _ body: (inout DNSWriter) -> Void
    ) -> Bool {
        precondition(
            counts[(section.rawValue + 1)...].allSatisfy { $0 == 0 }, "sections have an order")
        let (length, names) = (bytes.count, written.count)
        body(&self)
        if bytes.count <= bytesMax, counts[section.rawValue] < 0xffff {
            counts[section.rawValue] += 1
            return true
        }
        bytes.removeLast(bytes.count - length)
        for key in written[names...] { places[key] = nil }
        written.removeLast(written.count - names)
        return false
    }

    private mutating func short(_ value: UInt16) {
        bytes.append(UInt8(value >> 8))
        bytes.append(UInt8(value & 0xff))
    }

    private mutating func name(_ name: DNSName, isCompressed: Bool) {
        var place = 0
        while name.wire[place] != 0 {
            let ending = Array(name.folded[place...])
            if isCompressed, let known = places[ending] {
                return short(0xc000 | UInt16(known))
            }
            if bytes.count < 0x4000, places[ending] == nil {
                places[ending] = bytes.count
                written.append(ending)
            }
            let next = place + 1 + Int(name.wire[place])
            bytes += name.wire[place..<next]
            place = next
        }
        bytes.append(0)
    }

    private mutating func data(_ data: DNSData) {
        let isCompressed = style == .multicast
        switch data {
        case .address(let address): bytes += address.bytes
        case .pointer(let target), .alias(let target): name(target, isCompressed: true)
        case .service(let priority, let weight, let port, let target):
            short(priority)
            short(weight)
            short(port)
            name(target, isCompressed: isCompressed)
        case .text(let strings):
            for string in strings.isEmpty ? [[]] : strings {
                precondition(string.count <= 255, "a string has a length of 8 bits")
                bytes.append(UInt8(string.count))
                bytes += string
            }
        case .exists(let next, let types):
            name(next, isCompressed: isCompressed)
            guard let last = types.last else { return }
            var map = [UInt8](repeating: 0, count: Int(last) / 8 + 1)
            for type in types { map[Int(type) / 8] |= 0x80 >> (type % 8) }
            bytes += [0, UInt8(map.count)] + map
        case .other(_, let raw): bytes += raw
        }
    }
}

extension DNSData {
    /// As compared when two hosts claim one name at the same time: without compression (RFC 6762
    /// section 8.2).
    package var canonicalBytes: [UInt8] {
        switch self {
        case .address(let address): return address.bytes
        case .pointer(let target), .alias(let target): return target.wire
        case .service(let priority, let weight, let port, let target):
            let numbers = [priority, weight, port].flatMap { [UInt8($0 >> 8), UInt8($0 & 0xff)] }
            return numbers + target.wire
        case .text(let strings):
            return (strings.isEmpty ? [[]] : strings).flatMap { [UInt8($0.count)] + $0 }
        case .exists(let next, let types): return next.wire + types
        case .other(_, let raw): return raw
        }
    }
}
