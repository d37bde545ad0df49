// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire

/// Looks for the service on one link and remembers what is said of it (RFC 6762 sections 5, 7, 10).
///
/// Only what concerns the service is kept: instances that a PTR record names, their SRV and TXT
/// records, and the addresses of the hosts that those name.
struct Browser: Sendable {
    private static let askSoon = (Duration.milliseconds(20), Duration.milliseconds(120))
    private static let intervalMax = Duration.seconds(3600)
    /// Somebody else's question makes ours needless if it would have been asked within this time.
    private static let sameQuestion = Duration.seconds(1)
    private static let doubt = Duration.seconds(10)

    let interface: UInt32
    var payloadBytesMax: Int
    private(set) var instances: [DNSName: Instance] = [:]
    /// The keys of `instances`, ascending: every walk goes through this.
    private(set) var order: [DNSName] = []
    private(set) var hosts: [DNSName: Host] = [:]
    private var hostOrder: [DNSName] = []
    /// How many of `instances` each address has brought; asked for one address only.
    private var sources: [IPAddress: Int] = [:]
    private var newInPacket = 0
    private var nextBrowse: MonotonicInstant
    private var interval = Duration.seconds(1)
    private var hasAsked = false
    /// Something that `peers` depends on is another.
    var hasChanged = false

    init(
        interface: UInt32, payloadBytesMax: Int, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        self.interface = interface
        self.payloadBytesMax = payloadBytesMax
        nextBrowse = now + random.uniform(Self.askSoon.0, Self.askSoon.1)
    }

    var deadline: MonotonicInstant {
        var earliest = nextBrowse
        for place in instances.values.indices {
            earliest = min(earliest, instances.values[place].deadline)
        }
        for place in hosts.values.indices {
            if let instant = hosts.values[place].deadline { earliest = min(earliest, instant) }
        }
        return earliest
    }

    /// Whoever is completely known, in the order of names; the same endpoint may come several times.
    var peers: [(text: NodeText, port: UInt16, addresses: [IPAddress])] {
        order.compactMap { name in
            guard let instance = instances[name], let text = instance.text?.text,
                let service = instance.service, let host = hosts[service.host]
            else { return nil }
            // An address that has a meaning on one link only cannot be dialled without naming that.
            let addresses = host.addresses.map(\.address).filter { $0.isV4 || !$0.isLinkLocal }
            return addresses.isEmpty ? nil : (text, service.port, addresses)
        }
    }

    // MARK: - What is heard

    /// - Parameter own: the instance that is this node.
    mutating func response(
        _ message: DNSMessage, from source: IPAddress, own: DNSName?, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        let records = message.answers + message.additionals
        newInPacket = 0
        for record in records where record.class == DNSClass.internet {
            if case .pointer(let target) = record.data, record.name == MDNS.service, target != own {
                pointer(to: target, record.ttl, source, now, &random)
            }
        }
        for record in records where record.class == DNSClass.internet {
            switch record.data {
            case .service(_, _, let port, let host):
                service(record, port: port, host: host, now, &random)
            case .text(let strings): text(record, strings, now, &random)
            default: break
            }
        }
        for record in records where record.class == DNSClass.internet {
            if case .address(let address) = record.data {
                self.address(address, record, now, &random)
            }
        }
        for record in records where record.flushesCache && record.class == DNSClass.internet {
            if case .address(let address) = record.data {
                flush(record.name, isV4: address.isV4, now)
            }
        }
        dropUnusedHosts()
    }

    private mutating func pointer(
        to name: DNSName, _ ttl: UInt32, _ source: IPAddress, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        guard name.parent == MDNS.service else { return }
        if ttl == 0 {
            instances[name]?.pointer.end(at: now + .seconds(1))
            return
        }
        let lease = Lease(ttl: ttl, now, &random)
        if instances[name] != nil {
            instances[name]?.pointer = lease
            return
        }
        guard makeRoom(for: source) else { return }
        var instance = Instance(name: name, source: source, pointer: lease)
        // What belongs to it comes with it, as a rule.
        instance.nextResolve = now + random.uniform(Self.askSoon.0, Self.askSoon.1)
        instances[name] = instance
        order.insert(name, at: order.place(of: name))
        sources[source, default: 0] += 1
        newInPacket += 1
    }

    /// When all places are taken, one that is not known completely is given up for the new one.
    private mutating func makeRoom(for source: IPAddress) -> Bool {
        guard newInPacket < MDNSLimits.newInstancesMax,
            sources[source, default: 0] < MDNSLimits.instancesPerSourceMax
        else { return false }
        if order.count < MDNSLimits.instancesMax { return true }
        let vague = order.first { instances[$0].map { !isComplete($0) } ?? true }
        guard let vague else {
            newInPacket = MDNSLimits.newInstancesMax
            return false
        }
        remove(vague)
        return true
    }

    private func isComplete(_ instance: Instance) -> Bool {
        guard let service = instance.service, instance.text != nil else { return false }
        return hosts[service.host]?.addresses.isEmpty == false
    }

    private mutating func service(
        _ record: DNSRecord, port: UInt16, host: DNSName, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        guard let former = instances[record.name] else { return }
        if record.ttl == 0 {
            instances[record.name]?.service?.lease.end(at: now + .seconds(1))
            return
        }
        guard port > 0 else { return }
        instances[record.name]?.service = (port, host, Lease(ttl: record.ttl, now, &random))
        instances[record.name]?.isDoubted = false
        if hosts[host] == nil {
            hosts[host] = Host()
            hostOrder.insert(host, at: hostOrder.place(of: host))
        }
        guard former.service?.port != port || former.service?.host != host else { return }
        if former.service?.host != host {
            instances[record.name]?.nextResolve =
                now + random.uniform(Self.askSoon.0, Self.askSoon.1)
        }
        hasChanged = true
    }

    private mutating func text(
        _ record: DNSRecord, _ strings: [[UInt8]], _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        guard let former = instances[record.name] else { return }
        if record.ttl == 0 {
            instances[record.name]?.text?.lease.end(at: now + .seconds(1))
            return
        }
        guard let text = NodeText(strings) else { return }
        instances[record.name]?.text = (text, Lease(ttl: record.ttl, now, &random))
        if former.text?.text != text { hasChanged = true }
    }

    private mutating func address(
        _ address: IPAddress, _ record: DNSRecord, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        guard let host = hosts[record.name], address.isUnicast else { return }
        let place = host.addresses.firstIndex { $0.address == address }
        if record.ttl == 0 {
            if let place { hosts[record.name]?.addresses[place].lease.end(at: now + .seconds(1)) }
            return
        }
        let lease = Lease(ttl: record.ttl, now, &random)
        if let place {
            hosts[record.name]?.addresses[place].lease = lease
        } else if host.addresses.count < MDNSLimits.addressesMax {
            hosts[record.name]?.addresses.append((address, lease))
            hasChanged = true
        }
    }

    /// Addresses of that family that were heard more than a second ago are no more (RFC 6762 section 10.2).
    private mutating func flush(_ name: DNSName, isV4: Bool, _ now: MonotonicInstant) {
        guard var host = hosts[name] else { return }
        for place in host.addresses.indices where host.addresses[place].address.isV4 == isV4 {
            if now - host.addresses[place].lease.heardAt > .seconds(1) {
                host.addresses[place].lease.end(at: now + .seconds(1))
            }
        }
        hosts[name] = host
    }

    /// Others ask what this node was about to ask (RFC 6762 section 7.3).
    mutating func query(
        _ message: DNSMessage, _ now: MonotonicInstant, _ random: inout RandomSource
    ) {
        let horizon = now + Self.sameQuestion
        // What the asker knows and we do not, nobody would tell us.
        var isNews: Bool?
        for question in message.questions
        where !question.wantsUnicast && question.class == DNSClass.internet {
            if question.name == MDNS.service, question.type == DNSType.ptr {
                let news = isNews ?? hasNews(message)
                isNews = news
                if !news, hasAsked, nextBrowse <= horizon { planBrowse(now) }
            } else if question.type == DNSType.srv || question.type == DNSType.txt {
                guard var instance = instances[question.name] else { continue }
                if let lease = instance.service?.lease, question.type == DNSType.srv,
                    lease.isRefreshDue(horizon)
                {
                    instance.service?.lease.refreshed(&random)
                }
                if let lease = instance.text?.lease, question.type == DNSType.txt,
                    lease.isRefreshDue(horizon)
                {
                    instance.text?.lease.refreshed(&random)
                }
                instances[question.name] = instance
            }
        }
    }

    private func hasNews(_ message: DNSMessage) -> Bool {
        message.answers.contains { record in
            guard case .pointer(let target) = record.data else { return false }
            return record.name == MDNS.service && instances[target] == nil
        }
    }

    /// Somebody cannot reach it.
    mutating func doubt(
        _ endpoint: EndpointID, _ now: MonotonicInstant, _ random: inout RandomSource
    ) {
        for name in order where instances[name]?.text?.text.endpoint == endpoint {
            guard let service = instances[name]?.service,
                service.lease.expires > now + Self.doubt
            else { continue }
            instances[name]?.service?.lease.end(at: now + Self.doubt)
            instances[name]?.isDoubted = true
            instances[name]?.nextResolve = now + random.uniform(Self.askSoon.0, Self.askSoon.1)
        }
    }

    // MARK: - Time

    /// - Parameter own: what this node says when it is asked; named as known, it keeps us from answering
    ///   ourselves, and makes our question differ from everybody else's.
    mutating func advance(
        own: DNSRecord?, _ now: MonotonicInstant, _ random: inout RandomSource,
        into effects: inout [MDNSEffect]
    ) {
        expire(now)
        var questions: [DNSQuestion] = []
        var asksForAll = nextBrowse <= now
        for name in order {
            guard var instance = instances[name] else { continue }
            if instance.pointer.isRefreshDue(now) {
                instance.pointer.refreshed(&random)
                asksForAll = true
            }
            questions += resolve(&instance, now, &random)
            instances[name] = instance
        }
        for name in hostOrder { questions += refresh(name, now, &random) }
        if asksForAll {
            // Never with the wish to be answered alone: port 5353 is shared with other responders of this
            // machine, and only multicast comes to all of them (RFC 6762 section 15.1).
            questions.insert(DNSQuestion(MDNS.service, DNSType.ptr), at: 0)
            if nextBrowse <= now { planBrowse(now) }
            hasAsked = true
        }
        if !questions.isEmpty {
            ask(questions, known: asksForAll ? known(own, now) : [], into: &effects)
        }
    }

    /// The process was stopped for a while: who knows what it has missed.
    mutating func beginAnew(_ now: MonotonicInstant, _ random: inout RandomSource) {
        interval = .seconds(1)
        nextBrowse = now + random.uniform(Self.askSoon.0, Self.askSoon.1)
    }

    /// Asks after 1, 2, 4 … 3600 s.
    private mutating func planBrowse(_ now: MonotonicInstant) {
        nextBrowse = now + interval
        interval = min(interval * 2, Self.intervalMax)
    }

    private mutating func resolve(
        _ instance: inout Instance, _ now: MonotonicInstant, _ random: inout RandomSource
    ) -> [DNSQuestion] {
        var questions: [DNSQuestion] = []
        if isComplete(instance), !instance.isDoubted {
            instance.resolved()
        } else if instance.nextResolve == nil {
            instance.nextResolve = now + random.uniform(Self.askSoon.0, Self.askSoon.1)
        } else if let next = instance.nextResolve, next <= now {
            if instance.service == nil || instance.isDoubted {
                questions.append(DNSQuestion(instance.name, DNSType.srv))
            }
            if instance.text == nil { questions.append(DNSQuestion(instance.name, DNSType.txt)) }
            if let service = instance.service, hosts[service.host]?.addresses.isEmpty ?? true {
                questions.append(DNSQuestion(service.host, DNSType.a))
                questions.append(DNSQuestion(service.host, DNSType.aaaa))
            }
            instance.asked(now)
        }
        if instance.service?.lease.isRefreshDue(now) == true {
            instance.service?.lease.refreshed(&random)
            questions.append(DNSQuestion(instance.name, DNSType.srv))
        }
        if instance.text?.lease.isRefreshDue(now) == true {
            instance.text?.lease.refreshed(&random)
            questions.append(DNSQuestion(instance.name, DNSType.txt))
        }
        return questions
    }

    private mutating func refresh(
        _ name: DNSName, _ now: MonotonicInstant, _ random: inout RandomSource
    ) -> [DNSQuestion] {
        guard var host = hosts[name] else { return [] }
        var types: Set<UInt16> = []
        for place in host.addresses.indices where host.addresses[place].lease.isRefreshDue(now) {
            host.addresses[place].lease.refreshed(&random)
            types.insert(host.addresses[place].address.isV4 ? DNSType.a : DNSType.aaaa)
        }
        hosts[name] = host
        return types.sorted().map { DNSQuestion(name, $0) }
    }

    private mutating func expire(_ now: MonotonicInstant) {
        var gone: [DNSName] = []
        for name in order {
            guard let instance = instances[name] else { continue }
            if instance.pointer.expires <= now {
                gone.append(name)
                continue
            }
            if let service = instance.service, service.lease.expires <= now {
                instances[name]?.service = nil
                hasChanged = true
            }
            if let text = instance.text, text.lease.expires <= now {
                instances[name]?.text = nil
                hasChanged = true
            }
        }
        for name in gone { remove(name) }
        for name in hostOrder {
            guard let host = hosts[name],
                host.addresses.contains(where: { $0.lease.expires <= now })
            else { continue }
            hosts[name]?.addresses.removeAll { $0.lease.expires <= now }
            hasChanged = true
        }
        dropUnusedHosts()
    }

    private mutating func remove(_ name: DNSName) {
        guard let instance = instances.removeValue(forKey: name) else { return }
        hasChanged = true
        order.remove(at: order.place(of: name) - 1)
        let others = sources[instance.source, default: 1] - 1
        sources[instance.source] = others > 0 ? others : nil
    }

    private mutating func dropUnusedHosts() {
        let used = Set(order.compactMap { instances[$0]?.service?.host })
        guard used.count != hosts.count else { return }
        for name in hostOrder where !used.contains(name) { hosts[name] = nil }
        hostOrder.removeAll { hosts[$0] == nil }
    }

    // MARK: - Questions

    private func known(_ own: DNSRecord?, _ now: MonotonicInstant) -> [DNSRecord] {
        var records: [DNSRecord] = own.map { [$0] } ?? []
        for name in order {
            guard let lease = instances[name]?.pointer, lease.isNamedAsKnown(now) else { continue }
            records.append(
                DNSRecord(MDNS.service, ttl: lease.secondsLeft(now), .pointer(name)))
        }
        return records
    }

    /// Known answers that do not fit follow in packets of their own (RFC 6762 section 7.2).
    private func ask(
        _ questions: [DNSQuestion], known: [DNSRecord], into effects: inout [MDNSEffect]
    ) {
        func send(_ writer: DNSWriter, _ flags: DNSFlags = []) {
            let bytes = writer.finished(adding: flags)
            effects.append(.send(bytes, interface: interface, to: .group))
        }
        var writer = DNSWriter(flags: [], bytesMax: payloadBytesMax)
        // The question that has known answers is the first: the others go into packets before it.
        var rest = questions[...]
        let last = known.isEmpty ? nil : rest.popFirst()
        for question in rest where !writer.append(question) {
            send(writer)
            writer = DNSWriter(flags: [], bytesMax: payloadBytesMax)
            writer.append(question)
        }
        if let last, !writer.append(last) {
            send(writer)
            writer = DNSWriter(flags: [], bytesMax: payloadBytesMax)
            writer.append(last)
        }
        for record in known where !writer.append(record, to: .answers) {
            send(writer, .truncated)
            writer = DNSWriter(flags: [], bytesMax: payloadBytesMax)
            writer.append(record, to: .answers)
        }
        send(writer)
    }

    func checkInvariants() {
        precondition(order.count == instances.count, "each instance has its place")
        precondition(sources.values.reduce(0, +) == order.count, "each instance has a source")
        precondition(hostOrder.count == hosts.count, "each host has its place")
        precondition(instances.count <= MDNSLimits.instancesMax, "instances are bounded")
        precondition(hosts.count <= MDNSLimits.instancesMax, "a host is some instance's")
        precondition(
            hosts.values.allSatisfy { $0.addresses.count <= MDNSLimits.addressesMax },
            "addresses are bounded")
    }
}

extension [DNSName] {
    /// Of an ascending array: behind all that are not greater.
    func place(of name: DNSName) -> Int {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if name < self[middle] { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
