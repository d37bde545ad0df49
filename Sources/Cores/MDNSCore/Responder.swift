// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import DNSWire

/// What this node says of itself on one link: first asks whether its names are free, then announces them,
/// then answers (RFC 6762 sections 6 to 8).
struct Responder: Sendable {
    enum Presence: Equatable, Sendable {
        case silent
        case probing(sent: Int, next: MonotonicInstant)
        case announcing(sent: Int, next: MonotonicInstant)
        case established
    }

    /// An answer to one asker alone.
    struct Unicast: Sendable {
        var due: MonotonicInstant
        var to: IPAddress
        var port: UInt16
        var places: [Int]
        /// The asker knows nothing of multicast DNS: its id, and its question.
        var legacy: (id: UInt16, question: DNSQuestion)?
    }

    static let probeInterval = Duration.milliseconds(250)
    static let probeCount = 3
    static let announceInterval = Duration.seconds(1)
    static let announceCount = 2
    /// Least time between two multicasts of one record on one link.
    static let spacing = Duration.seconds(1)
    /// The same when a probe asks, which does not wait longer.
    static let defenceSpacing = Duration.milliseconds(250)

    let interface: UInt32
    var payloadBytesMax: Int
    private(set) var presence = Presence.silent
    private(set) var own: OwnRecords?
    private var sentAt: [MonotonicInstant?] = []
    private var due: [MonotonicInstant?] = []
    /// Who asked for what is due; nil when several did.
    private var askers: [IPAddress?] = []
    private(set) var unicasts: [Unicast] = []

    init(interface: UInt32, payloadBytesMax: Int) {
        self.interface = interface
        self.payloadBytesMax = payloadBytesMax
    }

    var isHeard: Bool {
        switch presence {
        case .announcing, .established: true
        case .silent, .probing: false
        }
    }

    /// What it would tell whoever asks for the service.
    var pointer: DNSRecord? { isHeard ? own?.records[OwnRecords.pointerPlace] : nil }

    var deadline: MonotonicInstant? {
        var earliest: MonotonicInstant?
        func consider(_ instant: MonotonicInstant) { earliest = min(earliest ?? instant, instant) }
        switch presence {
        case .silent, .established: break
        case .probing(_, let next), .announcing(_, let next): consider(next)
        }
        for instant in due { if let instant { consider(instant) } }
        for unicast in unicasts { consider(unicast.due) }
        return earliest
    }

    // MARK: - What is announced

    /// Takes what is to be said from now on; nil: nothing.
    /// - Parameter mustProbe: also when the names are the same.
    mutating func set(
        _ records: OwnRecords?, mustProbe: Bool = false, after delay: Duration = .zero,
        _ now: MonotonicInstant, _ random: inout RandomSource, into effects: inout [MDNSEffect]
    ) {
        guard records != own || mustProbe else { return }
        if let own, isHeard, records?.names != own.names { sayGoodbye(own, into: &effects) }
        let hasNames = isHeard && own?.names == records?.names
        own = records
        let count = records?.records.count ?? 0
        sentAt = Array(repeating: nil, count: count)
        due = Array(repeating: nil, count: count)
        askers = Array(repeating: nil, count: count)
        unicasts = []
        if records == nil {
            presence = .silent
        } else if hasNames, !mustProbe {
            presence = .announcing(sent: 0, next: now)
        } else {
            let wait = random.uniform(.zero, Self.probeInterval)
            presence = .probing(sent: 0, next: now + delay + wait)
        }
    }

    private func sayGoodbye(_ own: OwnRecords, into effects: inout [MDNSEffect]) {
        var parting = own.announced.map { own.records[$0] }
        // That there is such a service is not this node's to deny.
        parting.remove(at: 1)
        for place in parting.indices { parting[place].ttl = 0 }
        send(parting, [], .group, into: &effects)
    }

    mutating func stop(into effects: inout [MDNSEffect]) {
        if let own, isHeard { sayGoodbye(own, into: &effects) }
        presence = .silent
        own = nil
        due = []
        unicasts = []
    }

    // MARK: - Time

    mutating func advance(_ now: MonotonicInstant, into effects: inout [MDNSEffect]) {
        guard let own else { return }
        switch presence {
        case .probing(let sent, let next) where next <= now:
            if sent < Self.probeCount {
                probe(own, into: &effects)
                presence = .probing(sent: sent + 1, next: now + Self.probeInterval)
            } else {
                presence = .announcing(sent: 0, next: now)
            }
        default: break
        }
        if case .announcing(let sent, let next) = presence, next <= now {
            announce(own, now, into: &effects)
            presence =
                sent + 1 < Self.announceCount
                ? .announcing(sent: sent + 1, next: now + Self.announceInterval) : .established
        }
        answer(own, now, into: &effects)
    }

    /// What was said within the last second follows when that is over.
    private mutating func announce(
        _ own: OwnRecords, _ now: MonotonicInstant, into effects: inout [MDNSEffect]
    ) {
        var places: [Int] = []
        for place in own.announced {
            if let last = sentAt[place], now - last < Self.spacing {
                due[place] = last + Self.spacing
            } else {
                places.append(place)
            }
        }
        if !places.isEmpty { multicast(places, own, now, into: &effects) }
    }

    private func probe(_ own: OwnRecords, into effects: inout [MDNSEffect]) {
        var message = DNSMessage()
        // As for the browser's questions: an answer to this host alone might go to another program.
        message.questions = [own.names.instance, own.names.host].map {
            DNSQuestion($0, DNSType.any)
        }
        message.authorities = own.unique.map { own.records[$0] }
        for place in message.authorities.indices { message.authorities[place].flushesCache = false }
        effects.append(.send(message.encoded(), interface: interface, to: .group))
    }

    private mutating func answer(
        _ own: OwnRecords, _ now: MonotonicInstant, into effects: inout [MDNSEffect]
    ) {
        let places = due.indices.filter { due[$0].map { $0 <= now } ?? false }
        if !places.isEmpty { multicast(places, own, now, into: &effects) }
        let ready = unicasts.filter { $0.due <= now }
        guard !ready.isEmpty else { return }
        unicasts.removeAll { $0.due <= now }
        for unicast in ready { send(unicast, own, into: &effects) }
    }

    /// - Parameter places: ascending.
    private mutating func multicast(
        _ places: [Int], _ own: OwnRecords, _ now: MonotonicInstant,
        into effects: inout [MDNSEffect]
    ) {
        let further = additions(to: places, own).filter { place in
            sentAt[place].map { now - $0 >= Self.spacing } ?? true
        }
        for place in places + further {
            sentAt[place] = now
            due[place] = nil
            askers[place] = nil
        }
        send(
            places.map { own.records[$0] }, further.map { own.records[$0] }, .group, into: &effects)
    }

    /// What the asker will want next (RFC 6763 section 12).
    private func additions(to places: [Int], _ own: OwnRecords) -> [Int] {
        let isWanted = places.contains { place in
            switch own.records[place].data {
            case .pointer(let target): target == own.names.instance
            case .service: true
            default: false
            }
        }
        return isWanted ? own.unique.filter { !places.contains($0) } : []
    }

    private func send(
        _ answers: [DNSRecord], _ additions: [DNSRecord], _ destination: MDNSDestination,
        into effects: inout [MDNSEffect]
    ) {
        let flags: DNSFlags = [.response, .authoritative]
        var writer = DNSWriter(flags: flags, bytesMax: payloadBytesMax)
        for record in answers where !writer.append(record, to: .answers) {
            effects.append(.send(writer.finished(), interface: interface, to: destination))
            writer = DNSWriter(flags: flags, bytesMax: payloadBytesMax)
            writer.append(record, to: .answers)
        }
        for record in additions { writer.append(record, to: .additionals) }
        effects.append(.send(writer.finished(), interface: interface, to: destination))
    }

    /// RFC 6762 section 6.7: no more than ten seconds, nothing that only multicast DNS knows.
    private func send(_ unicast: Unicast, _ own: OwnRecords, into effects: inout [MDNSEffect]) {
        let destination = MDNSDestination.one(unicast.to, port: unicast.port)
        let answers = unicast.places.map { own.records[$0] }
        let further = additions(to: unicast.places, own).map { own.records[$0] }
        guard let legacy = unicast.legacy else {
            return send(answers, further, destination, into: &effects)
        }
        func plain(_ record: DNSRecord) -> DNSRecord {
            var record = record
            record.flushesCache = false
            record.ttl = min(record.ttl, 10)
            return record
        }
        var writer = DNSWriter(
            id: legacy.id, flags: [.response, .authoritative], style: .classic, bytesMax: 512)
        writer.append(legacy.question)
        for record in answers { writer.append(plain(record), to: .answers) }
        for record in further { writer.append(plain(record), to: .additionals) }
        effects.append(.send(writer.finished(), interface: interface, to: destination))
    }

    // MARK: - What others say

    mutating func query(
        _ message: DNSMessage, from packet: MDNSPacket, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        guard let own else { return }
        if !message.authorities.isEmpty { compare(message, own, now) }
        guard isHeard else { return }
        let isProbe = !message.authorities.isEmpty
        if message.questions.isEmpty { return withdraw(message.answers, packet.source, own) }
        if packet.sourcePort != MDNS.port { return legacy(message, packet, own, now, &random) }
        let isKnown = own.records.map { Self.isKnown($0, message.answers) }
        var alone: [Int] = []
        for question in message.questions {
            for place in own.answers(to: question) where !isKnown[place] {
                if question.wantsUnicast, !isProbe, wasHeard(place, own, now) {
                    if !alone.contains(place) { alone.append(place) }
                    continue
                }
                let isTruncated = message.flags.contains(.truncated)
                let wait = Self.wait(own.isShared(place), isTruncated, &random)
                schedule(place, packet.source, after: wait, isProbe: isProbe, now)
            }
        }
        guard !alone.isEmpty, unicasts.count < MDNSLimits.unicastsMax else { return }
        let wait = Self.wait(alone.contains { own.isShared($0) }, false, &random)
        unicasts.append(
            Unicast(due: now + wait, to: packet.source, port: packet.sourcePort, places: alone))
    }

    /// Shared records are answered by several at once if nobody waits (RFC 6762 section 6); an asker
    /// who will tell more of what he knows is waited for (section 7.2).
    private static func wait(
        _ isShared: Bool, _ isTruncated: Bool, _ random: inout RandomSource
    ) -> Duration {
        if isTruncated { return random.uniform(.milliseconds(400), .milliseconds(500)) }
        return isShared ? random.uniform(.milliseconds(20), .milliseconds(120)) : .zero
    }

    private mutating func schedule(
        _ place: Int, _ asker: IPAddress, after wait: Duration, isProbe: Bool,
        _ now: MonotonicInstant
    ) {
        let spacing = isProbe ? Self.defenceSpacing : Self.spacing
        var at = now + wait
        if let last = sentAt[place] { at = max(at, last + spacing) }
        if let earlier = due[place] {
            due[place] = min(earlier, at)
            if askers[place] != asker { askers[place] = nil }
        } else {
            due[place] = at
            askers[place] = asker
        }
    }

    /// Whether all on the link have heard it lately, so that one asker may be answered alone.
    private func wasHeard(_ place: Int, _ own: OwnRecords, _ now: MonotonicInstant) -> Bool {
        guard let last = sentAt[place] else { return false }
        return now - last < .seconds(Int64(own.records[place].ttl) / 4)
    }

    private static func isKnown(_ record: DNSRecord, _ known: [DNSRecord]) -> Bool {
        known.contains { $0.isSame(as: record) && $0.ttl >= record.ttl / 2 }
    }

    /// The rest of what an asker knows, which did not fit into one packet.
    private mutating func withdraw(
        _ known: [DNSRecord], _ asker: IPAddress, _ own: OwnRecords
    ) {
        for place in due.indices where due[place] != nil && askers[place] == asker {
            guard Self.isKnown(own.records[place], known) else { continue }
            due[place] = nil
            askers[place] = nil
        }
    }

    private mutating func legacy(
        _ message: DNSMessage, _ packet: MDNSPacket, _ own: OwnRecords, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        guard message.questions.count == 1, unicasts.count < MDNSLimits.unicastsMax else { return }
        var question = message.questions[0]
        let places = own.answers(to: question)
        guard !places.isEmpty else { return }
        question.wantsUnicast = false
        let wait = Self.wait(places.contains { own.isShared($0) }, false, &random)
        unicasts.append(
            Unicast(
                due: now + wait, to: packet.source, port: packet.sourcePort, places: places,
                legacy: (message.id, question)))
    }

    /// Two that probe for one name at once: the one whose records come first gives way for a second
    /// (RFC 6762 section 8.2).
    private mutating func compare(
        _ message: DNSMessage, _ own: OwnRecords, _ now: MonotonicInstant
    ) {
        guard case .probing = presence else { return }
        for name in [own.names.instance, own.names.host] {
            let theirs = OwnRecords.claims(message.authorities.filter { $0.name == name })
            let ours = own.claims(name)
            guard !theirs.isEmpty, theirs != ours else { continue }
            let oursIsFirst = ours.lexicographicallyPrecedes(theirs) {
                $0.lexicographicallyPrecedes($1)
            }
            if oursIsFirst { presence = .probing(sent: 0, next: now + .seconds(1)) }
        }
    }

    /// - Returns: whether one of the records contradicts ours.
    mutating func response(_ message: DNSMessage, _ now: MonotonicInstant) -> Bool {
        guard let own else { return false }
        var isConflict = false
        for record in message.answers + message.additionals {
            if own.conflicts(with: record) { isConflict = true }
            // Somebody else has just said it: once is enough (RFC 6762 section 7.4).
            for place in 0..<OwnRecords.sharedCount
            where own.records[place].isSame(as: record) && record.ttl >= own.records[place].ttl {
                sentAt[place] = now
                due[place] = nil
                askers[place] = nil
            }
        }
        return isConflict
    }

    func checkInvariants() {
        let count = own?.records.count ?? 0
        precondition(due.count == count || own == nil, "each record has its place")
        precondition(unicasts.count <= MDNSLimits.unicastsMax, "answers that wait are bounded")
        precondition((own == nil) == (presence == .silent), "who is silent has nothing to say")
    }
}
