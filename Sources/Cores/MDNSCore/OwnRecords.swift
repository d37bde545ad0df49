// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import DNSWire

/// What a node calls itself: the instance of the service, and the host that its addresses belong to.
struct OwnNames: Equatable, Sendable {
    let instance: DNSName
    let host: DNSName

    /// - Parameter number: 1 at first; the next one after each conflict that was lost.
    init(endpoint: EndpointID, number: Int) {
        var label = String(endpoint.description.prefix(MDNS.labelCount))
        if number > 1 { label += "-\(number)" }
        guard let instance = MDNS.service.child(Array(label.utf8)) else {
            preconditionFailure("sixteen characters and a number are a label")
        }
        self.instance = instance
        host = MDNS.name("aspen-\(label).local")
    }
}

/// What is announced on one link. A record keeps its place as long as nothing changes.
struct OwnRecords: Equatable, Sendable {
    /// RFC 6762 section 10: 120 s for what holds a host's name or address, else 75 minutes.
    static let hostTTL: UInt32 = 120
    static let otherTTL: UInt32 = 4500

    let names: OwnNames
    private(set) var records: [DNSRecord]
    /// The last two, which say what else there is not; they are never announced.
    let denials: Range<Int>

    /// The first two are shared with other hosts, the others are this node's alone.
    static let sharedCount = 2
    static let pointerPlace = 0

    init(
        _ names: OwnNames, _ configuration: MDNSConfiguration, port: UInt16,
        _ addresses: [IPAddress]
    ) {
        self.names = names
        let text = [
            "id=\(configuration.endpoint)", "node=\(configuration.node)", "v=\(MDNS.version)",
        ].map { Array($0.utf8) }
        records = [
            DNSRecord(MDNS.service, ttl: Self.otherTTL, .pointer(names.instance)),
            DNSRecord(MDNS.services, ttl: Self.otherTTL, .pointer(MDNS.service)),
            DNSRecord(
                names.instance, ttl: Self.hostTTL,
                .service(priority: 0, weight: 0, port: port, target: names.host),
                flushesCache: true),
            DNSRecord(names.instance, ttl: Self.otherTTL, .text(text), flushesCache: true),
        ]
        for address in addresses.sorted() {
            records.append(
                DNSRecord(names.host, ttl: Self.hostTTL, .address(address), flushesCache: true))
        }
        denials = records.count..<records.count + 2
        var families: [UInt8] = []
        if addresses.contains(where: \.isV4) { families.append(UInt8(DNSType.a)) }
        if addresses.contains(where: { !$0.isV4 }) { families.append(UInt8(DNSType.aaaa)) }
        let both = [UInt8(DNSType.txt), UInt8(DNSType.srv)]
        for (name, types) in [(names.instance, both), (names.host, families)] {
            records.append(
                DNSRecord(
                    name, ttl: Self.hostTTL, .exists(next: name, types: types), flushesCache: true))
        }
    }

    var announced: Range<Int> { 0..<denials.lowerBound }
    /// Those that no other host may have, and that are asked for before they are used.
    var unique: Range<Int> { Self.sharedCount..<denials.lowerBound }

    func isShared(_ place: Int) -> Bool { place < Self.sharedCount }

    /// The places of the records that answer a question.
    func answers(to question: DNSQuestion) -> [Int] {
        let found = announced.filter { question.matches(records[$0]) }
        guard found.isEmpty,
            question.class == DNSClass.internet || question.class == DNSClass.any
        else { return found }
        return denials.filter { records[$0].name == question.name }
    }

    /// Whether somebody else's record says of a name of ours what we do not.
    func conflicts(with other: DNSRecord) -> Bool {
        guard other.class == DNSClass.internet, other.ttl > 0 else { return false }
        guard other.name == names.instance || other.name == names.host else { return false }
        var isOurType = false
        for place in unique where records[place].name == other.name {
            if records[place].data.type == other.data.type { isOurType = true }
            if records[place].isSame(as: other) { return false }
        }
        return isOurType
    }

    /// What a probe says of one name, in the order of RFC 6762 section 8.2.
    func claims(_ name: DNSName) -> [[UInt8]] {
        Self.claims(unique.map { records[$0] }.filter { $0.name == name })
    }

    static func claims(_ records: [DNSRecord]) -> [[UInt8]] {
        records.map { record in
            let numbers = [record.class, record.data.type]
            return numbers.flatMap { [UInt8($0 >> 8), UInt8($0 & 0xff)] }
                + record.data.canonicalBytes
        }.sorted { $0.lexicographicallyPrecedes($1) }
    }
}
