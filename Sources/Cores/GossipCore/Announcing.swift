// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// What this node says of itself.
struct OwnAnnouncement: Sendable {
    var description: NodeDescription?
    var epoch: UInt64
    var lastTimestamp: UInt64 = 0
    var signed: SignedAnnouncement?
    /// Nil before there is a clock.
    var announceAt: MonotonicInstant?
    var pending: (ticket: SignTicket, announcement: Announcement, endsAt: MonotonicInstant)?
    var lastTicket: UInt64 = 0
    var bucket = TokenBucket()

    init(epoch: UInt64) {
        precondition((1...AnnouncementVersion.epochMax).contains(epoch), "epochs begin with 1")
        self.epoch = epoch
    }
}

extension GossipMachine {
    /// Milliseconds since 1970; nil before the shell has told.
    func wallClock(_ now: MonotonicInstant) -> UInt64? {
        guard let wall else { return nil }
        return wall.milliseconds &+ UInt64(max(0, (now - wall.at).milliseconds))
    }

    /// Not before others would take it.
    mutating func announceSoon(_ turn: GossipTurn) {
        guard let at = own.announceAt else { return }
        let next = own.bucket.availableAt(GossipLimits.ownAnnouncements, now: turn.now)
        own.announceAt = min(at, next)
    }

    mutating func describe(_ description: NodeDescription, _ turn: GossipTurn) {
        guard own.description != description else { return }
        own.description = description
        announceSoon(turn)
    }

    var announcementDueAt: MonotonicInstant? {
        if let pending = own.pending { return pending.endsAt }
        return own.description == nil ? nil : own.announceAt
    }

    mutating func settleAnnouncement(_ turn: inout GossipTurn) {
        if let pending = own.pending {
            guard pending.endsAt <= turn.now else { return }
            own.pending = nil
        }
        guard let description = own.description, let at = own.announceAt, at <= turn.now,
            let wall = wallClock(turn.now)
        else { return }
        // What is due by the interval may be early for the rate, after many changes.
        guard own.bucket.take(GossipLimits.ownAnnouncements, now: turn.now) else {
            own.announceAt = own.bucket.availableAt(GossipLimits.ownAnnouncements, now: turn.now)
            return
        }
        own.lastTimestamp = max(wall, own.lastTimestamp &+ 1)
        own.lastTicket += 1
        let announcement = Announcement(
            topic: configuration.topic, endpoint: configuration.own,
            version: AnnouncementVersion(epoch: own.epoch, timestamp: own.lastTimestamp),
            description, reports: reports(turn.now))
        let ticket = SignTicket(own.lastTicket)
        own.pending = (ticket, announcement, turn.now + configuration.requestTimeout)
        let jitter = configuration.announceInterval / 20
        own.announceAt =
            turn.now + configuration.announceInterval + turn.random.uniform(.zero - jitter, jitter)
        turn.emit(
            .sign(
                Announcement.signedText(announcement.encoded(), configuration.topic), ticket))
    }

    mutating func signed(
        _ ticket: SignTicket, _ signature: [UInt8]?, _ turn: inout GossipTurn
    ) {
        guard let pending = own.pending, pending.ticket == ticket else { return }
        own.pending = nil
        guard let signature, signature.count == SignedAnnouncement.signatureByteCount,
            pending.announcement.version.epoch == own.epoch
        else {
            own.announceAt = turn.now + .seconds(1)
            return
        }
        let signed = SignedAnnouncement(pending.announcement, signature: signature)
        let isFirst = own.signed == nil
        own.signed = signed
        counters.announced += 1
        shedLoad(&turn)
        broadcast(CarriedAnnouncement(signed, silence: 0), round: 0, except: nil, &turn)
        if isFirst {
            // Only now is there something to join with.
            wakeRepair(turn)
            wakeProbe(&turn)
            shuffleAt = turn.now + turn.random.uniform(.zero, configuration.shuffleInterval)
        }
    }

    /// Someone has an announcement of this node that is newer than its own: it was started with an
    /// epoch that it had used before.
    mutating func raiseEpoch(above version: AnnouncementVersion, _ turn: inout GossipTurn) {
        guard version.epoch >= own.epoch, version.epoch < AnnouncementVersion.epochMax,
            !configuration.has(.keepsItsEpoch)
        else { return }
        own.epoch = version.epoch + 1
        turn.emit(.epochRaised(own.epoch))
        announceSoon(turn)
    }
}
