// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// Who is silent, and what that means.
///
/// A node is suspected after a silence of a few intervals, or when another one has lost its link
/// with it and cannot make another: that one says so in its own announcement, and the suspect has a
/// moment to answer by a newer one before anybody shows it as suspected. Suspicion has no
/// consequence but that others try to reach it. It is gone only after a long silence, and not while
/// anybody who is heard says that he has a link with it.
extension GossipMachine {
    /// What goes into this node's next announcement. Links first: they keep somebody known.
    func reports(_ now: MonotonicInstant) -> [PeerReport] {
        var linked: [PeerReport] = []
        var cut: [PeerReport] = []
        for endpoint in table.order {
            guard let record = table[endpoint] else { continue }
            if links[endpoint] != nil {
                // In time for those who are about to call it silent.
                if now - record.heardAt > configuration.announceInterval * 2 {
                    linked.append(
                        PeerReport(subject: endpoint, kind: .linked, version: record.version))
                }
            } else if let version = unreachable[endpoint] {
                cut.append(
                    PeerReport(subject: endpoint, kind: .unreachable, version: version))
            }
        }
        return Array((linked + cut).prefix(GossipLimits.reportsMax))
    }

    /// The link is lost and there is no other: worth telling, once for each version.
    mutating func noteUnreachable(
        _ endpoint: EndpointID, _ version: AnnouncementVersion, _ turn: GossipTurn
    ) {
        guard let record = table[endpoint], record.version == version else { return }
        unreachable[endpoint] = version
        noteRumour(endpoint, by: configuration.own, turn)
        announceSoon(turn)
    }

    private mutating func noteRumour(
        _ endpoint: EndpointID, by reporter: EndpointID, _ turn: GossipTurn
    ) {
        table.noteRumour(
            endpoint, by: reporter, now: turn.now, delay: configuration.rumourDelay,
            pause: configuration.rumourPause)
    }

    mutating func hear(_ report: PeerReport, by reporter: EndpointID, _ turn: GossipTurn) {
        guard report.kind == .unreachable, report.subject != reporter else { return }
        if report.subject == configuration.own {
            // Refute it, unless what is newer is on its way.
            let version = own.pending?.announcement.version ?? own.signed?.announcement.version
            if report.version == version { announceSoon(turn) }
            return
        }
        // Of what is known here: older has been refuted, and newer would be a way to lie at will.
        guard links[report.subject] == nil, let record = table[report.subject],
            record.version == report.version
        else { return }
        noteRumour(report.subject, by: reporter, turn)
    }

    mutating func settleStandings(_ turn: inout GossipTurn) {
        guard let due = table.dueAt, due <= turn.now else { return }
        for endpoint in table.order {
            guard let record = table[endpoint] else { continue }
            if record.standing == .alive {
                if record.heardAt + configuration.suspectAfter <= turn.now {
                    suspect(endpoint, .silent, &turn)
                } else if let rumour = record.rumour, rumour.dueAt <= turn.now {
                    suspect(endpoint, .unreachable(by: rumour.by), &turn)
                }
            } else if max(record.heardAt + configuration.goneAfter, record.nextGoneCheck ?? .zero)
                <= turn.now
            {
                let isLinked = links[endpoint] != nil || table.isVouchedFor(endpoint)
                if isLinked, !configuration.has(.buriesTheLinked) {
                    table.setNextGoneCheck(endpoint, turn.now + configuration.announceInterval)
                } else {
                    table.bury(endpoint, until: turn.now + configuration.tombstoneKept)
                    turn.emit(.standing(endpoint, .gone))
                }
            }
        }
        forgetBuried()
        table.expireTombstones(turn.now)
        table.schedule(
            suspectAfter: configuration.suspectAfter, goneAfter: configuration.goneAfter)
    }

    private mutating func suspect(
        _ endpoint: EndpointID, _ suspicion: Suspicion, _ turn: inout GossipTurn
    ) {
        table.suspect(endpoint, suspicion)
        turn.emit(.standing(endpoint, .suspected(suspicion)))
        wakeProbe(&turn)
    }

    /// What hangs on records that are there no more.
    mutating func forgetBuried() {
        passiveView.removeAll { table[$0] == nil }
        if !unreachable.isEmpty { unreachable = unreachable.filter { table[$0.key] != nil } }
        for neighbor in activeView {
            guard let subjects = lazySubjects[neighbor] else { continue }
            lazySubjects[neighbor] = subjects.filter {
                $0 == configuration.own || table[$0] != nil
            }
        }
    }
}
