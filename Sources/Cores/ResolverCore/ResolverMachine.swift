// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import DNSWire

/// A stub resolver (RFC 1034 section 5.3.1): asks recursive servers, one after the other, and remembers
/// what they say for as long as they allow.
///
/// An answer counts only if its id, its question and its sender are those of the exchange that it came
/// by; anything else is ignored and the wait goes on. The random source must be seeded from the
/// system's randomness: the id is one of the things that keep strangers from answering.
package struct ResolverMachine: Machine {
    package typealias Input = ResolverInput
    package typealias Effect = ResolverEffect

    struct Key: Hashable, Sendable {
        let name: DNSName
        let type: UInt16
    }

    private struct Question: Sendable {
        let key: Key
        var callers: [LookUpID]
        var exchange: ExchangeID
        var id: UInt16
        var server: ResolverServer
        var isStream = false
        var attempts = 1
        var wait = ResolverLimits.waitMin
        var ends: MonotonicInstant
        /// Somebody has answered, though not with what was asked for.
        var wasRefused = false
    }

    private struct Kept: Sendable {
        var result: LookUpResult
        var heardAt: MonotonicInstant
        var expires: MonotonicInstant
    }

    private var servers: [ResolverServer] = []
    /// In the order in which they were first asked.
    private var questions: [Question] = []
    private var kept: [Key: Kept] = [:]
    /// The keys of `kept`, the oldest first.
    private var keptOrder: [Key] = []
    private var nextExchange: UInt64 = 1

    package init() {}

    package mutating func step(
        _ input: consuming ResolverInput, now: MonotonicInstant, random: inout RandomSource,
        into effects: inout [ResolverEffect]
    ) {
        switch input {
        case .timeout: break
        case .servers(let list): servers = Array(list.prefix(ResolverLimits.serversMax))
        case .lookUp(let id, let name, let type):
            lookUp(id, Key(name: name, type: type), now, &random, &effects)
        case .cancel(let id): cancel(id, &effects)
        case .received(let exchange, let bytes, let sender):
            received(exchange, bytes, sender, now, &random, &effects)
        case .failed(let exchange):
            guard let place = questions.firstIndex(where: { $0.exchange == exchange }) else {
                break
            }
            askNext(place, now, &random, &effects)
        }
        while let place = questions.firstIndex(where: { $0.ends <= now }) {
            effects.append(.close(questions[place].exchange))
            askNext(place, now, &random, &effects)
        }
    }

    package var deadline: MonotonicInstant? { questions.map(\.ends).min() }

    /// Answers that are kept, for tests and figures.
    package var keptCount: Int { kept.count }

    // MARK: - Callers

    private mutating func lookUp(
        _ id: LookUpID, _ key: Key, _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [ResolverEffect]
    ) {
        if let known = known(key, now) {
            effects.append(.answer(id, known))
            return
        }
        let waiting = questions.reduce(0) { $0 + $1.callers.count }
        guard waiting < ResolverLimits.lookUpsMax else {
            effects.append(.answer(id, .failed(.tooMany)))
            return
        }
        if let place = questions.firstIndex(where: { $0.key == key }) {
            questions[place].callers.append(id)
            return
        }
        guard let server = servers.first else {
            effects.append(.answer(id, .failed(.noServer)))
            return
        }
        guard questions.count < ResolverLimits.questionsMax else {
            effects.append(.answer(id, .failed(.tooMany)))
            return
        }
        questions.append(
            Question(
                key: key, callers: [id], exchange: ExchangeID(0), id: 0, server: server, ends: now))
        send(questions.count - 1, now, &random, &effects)
    }

    private mutating func cancel(_ id: LookUpID, _ effects: inout [ResolverEffect]) {
        guard let place = questions.firstIndex(where: { $0.callers.contains(id) }) else { return }
        questions[place].callers.removeAll { $0 == id }
        guard questions[place].callers.isEmpty else { return }
        effects.append(.close(questions[place].exchange))
        questions.remove(at: place)
    }

    /// What is kept, with the times that are left.
    private mutating func known(_ key: Key, _ now: MonotonicInstant) -> LookUpResult? {
        guard let entry = kept[key] else { return nil }
        guard entry.expires > now else {
            kept[key] = nil
            keptOrder.removeAll { $0 == key }
            return nil
        }
        guard case .records(var records) = entry.result else { return entry.result }
        let age = UInt32(clamping: (now - entry.heardAt).nanoseconds / 1_000_000_000)
        for place in records.indices { records[place].ttl -= min(records[place].ttl, age) }
        return .records(records)
    }

    // MARK: - Servers

    private mutating func send(
        _ place: Int, _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [ResolverEffect]
    ) {
        var question = questions[place]
        question.exchange = ExchangeID(nextExchange)
        nextExchange += 1
        question.id = UInt16(truncatingIfNeeded: random.next() >> 32)
        question.ends = now + (question.isStream ? ResolverLimits.streamTimeout : question.wait)
        questions[place] = question
        var message = DNSMessage(id: question.id, flags: .recursionDesired)
        message.questions = [DNSQuestion(question.key.name, question.key.type)]
        effects.append(
            .ask(
                question.exchange, message.encoded(style: .classic), question.server,
                overStream: question.isStream))
    }

    /// The next server, or the same one when there is no other.
    private mutating func askNext(
        _ place: Int, _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [ResolverEffect]
    ) {
        guard questions[place].attempts < ResolverLimits.attemptsMax, !servers.isEmpty else {
            let failure: LookUpResult.Failure =
                questions[place].wasRefused ? .refused : .noAnswer
            return finish(place, .failed(failure), &effects)
        }
        let last = servers.firstIndex(of: questions[place].server) ?? -1
        questions[place].server = servers[(last + 1) % servers.count]
        questions[place].attempts += 1
        questions[place].isStream = false
        // A round of all servers, then more patience.
        if questions[place].attempts > servers.count {
            questions[place].wait = min(questions[place].wait * 2, ResolverLimits.waitMax)
        }
        send(place, now, &random, &effects)
    }

    private mutating func finish(
        _ place: Int, _ result: LookUpResult, _ effects: inout [ResolverEffect]
    ) {
        for id in questions[place].callers { effects.append(.answer(id, result)) }
        questions.remove(at: place)
    }

    private mutating func received(
        _ exchange: ExchangeID, _ bytes: [UInt8], _ sender: ResolverServer,
        _ now: MonotonicInstant, _ random: inout RandomSource, _ effects: inout [ResolverEffect]
    ) {
        guard let place = questions.firstIndex(where: { $0.exchange == exchange }) else { return }
        let question = questions[place]
        guard sender == question.server, let message = try? DNSMessage(decoding: bytes),
            message.flags.contains(.response), message.flags.opcode == 0,
            message.id == question.id,
            message.questions == [DNSQuestion(question.key.name, question.key.type)]
        else { return }
        effects.append(.close(exchange))
        if message.flags.contains(.truncated), !question.isStream {
            questions[place].isStream = true
            return send(place, now, &random, &effects)
        }
        switch message.flags.responseCode {
        case 0, 3:
            let (result, keptFor) = Self.meaning(of: message, for: question.key)
            keep(question.key, result, for: keptFor, now)
            finish(place, result, &effects)
        default:
            questions[place].wasRefused = true
            askNext(place, now, &random, &effects)
        }
    }

    /// What an answer says, and how long it may be kept.
    private static func meaning(of message: DNSMessage, for key: Key) -> (LookUpResult, Duration) {
        var name = key.name
        var seconds = UInt32.max
        for _ in 0...ResolverLimits.aliasesMax {
            let found = message.answers.filter {
                $0.name == name && $0.class == DNSClass.internet && $0.data.type == key.type
            }
            if !found.isEmpty {
                let records = Array(found.prefix(ResolverLimits.recordsMax))
                seconds = records.reduce(seconds) { min($0, $1.ttl) }
                return (.records(records), min(.seconds(Int64(seconds)), ResolverLimits.keptMax))
            }
            var target: DNSName?
            for record in message.answers where record.name == name {
                guard case .alias(let next) = record.data else { continue }
                target = next
                seconds = min(seconds, record.ttl)
            }
            guard let target else { break }
            name = target
        }
        // RFC 2308 section 5: the last field of the SOA record, and no longer than that record itself.
        for record in message.authorities {
            guard case .other(DNSType.soa, let raw) = record.data, raw.count >= 20 else { continue }
            let minimum = raw.suffix(4).reduce(0) { $0 << 8 | UInt32($1) }
            let time = Duration.seconds(Int64(min(minimum, record.ttl, seconds)))
            return (.absent, min(time, ResolverLimits.absentMax))
        }
        return (.absent, .zero)
    }

    private mutating func keep(
        _ key: Key, _ result: LookUpResult, for time: Duration, _ now: MonotonicInstant
    ) {
        guard time > .zero else { return }
        if kept[key] != nil {
            keptOrder.removeAll { $0 == key }
        } else if kept.count >= ResolverLimits.cachedMax {
            kept[keptOrder.removeFirst()] = nil
        }
        kept[key] = Kept(result: result, heardAt: now, expires: now + time)
        keptOrder.append(key)
    }

    package func checkInvariants() {
        precondition(kept.count == keptOrder.count, "each answer that is kept has its place")
        precondition(kept.count <= ResolverLimits.cachedMax, "the cache is bounded")
        precondition(questions.count <= ResolverLimits.questionsMax, "questions are bounded")
        precondition(questions.allSatisfy { !$0.callers.isEmpty }, "somebody waits for each")
        precondition(
            questions.allSatisfy { $0.attempts <= ResolverLimits.attemptsMax },
            "nothing is asked for ever")
    }
}
