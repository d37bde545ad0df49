// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import SimKit

/// Bad luck, by the rates of the scenario.
extension World {
    func beginTrouble() {
        part = .trouble
        troubleBegan = step
        newestCommit.at = now
        note("trouble begins")
        for number in scenario.rates.indices { planTrouble(number) }
        if let interval = scenario.operatorInterval { schedule(.operate, after: interval) }
        planUpgrades()
    }

    private func planTrouble(_ number: Int) {
        let interval = scenario.rates[number].interval
        schedule(.trouble(number), after: fate.uniform(interval / 5, interval * 2))
    }

    func strike(_ number: Int) throws(Violation) {
        guard part == .trouble else { return }
        planTrouble(number)
        statistics.troubles += 1
        let victim = nodes[drawVictim()]
        let downtime = fate.uniform(.milliseconds(5), scenario.downtimeMax)
        let duration = fate.uniform(.milliseconds(10), scenario.troubleMax)
        let kind = scenario.rates[number].trouble
        note("trouble: \(kind.rawValue) n\(victim.id)")
        switch kind {
        case .killRaft where lightFuse(victim, cutsPower: false): break
        case .killRaft: killRaft(victim, restartAfter: downtime)
        case .killNet: killNet(victim, restartAfter: min(downtime, .milliseconds(400)))
        case .killNode: killNode(victim, restartAfter: downtime)
        case .restart:
            killNode(victim, restartAfter: fate.uniform(.zero, scenario.redialGrace / 5))
        case .cutPower where lightFuse(victim, cutsPower: true): break
        case .cutPower: try losePower(victim)
        case .cutAllPower:
            let spread = fate.chance(1, in: 2) ? Duration.zero : Duration.milliseconds(20)
            for node in nodes {
                schedule(.loosePower(node: node.index), after: fate.uniform(.zero, spread))
            }
        case .partition: partition(around: victim.index, for: duration)
        case .flap: flap(around: victim.index, for: duration)
        case .clog: clog(around: victim.index, for: duration)
        case .reset:
            let other = fate.uniform(0..<nodes.count)
            if other != victim.index {
                note("n\(victim.id) x n\(nodes[other].id) reset")
                cut(
                    victim.index, other,
                    noticeAfter: fate.uniform(.microseconds(100), .milliseconds(10)))
            }
        case .pause: pause(victim, for: duration)
        case .slowDisk:
            victim.isDiskSlow = true
            schedule(.quickDisk(node: victim.index), after: duration)
        case .failSync:
            if let database = victim.database, fate.chance(1, in: 2) {
                database.disk.failure = .nextSync
            } else {
                victim.disk.failure = .nextSync
            }
        case .fullDisk:
            victim.disk.failure = .full
            victim.database?.disk.failure = .full
            schedule(.spaciousDisk(node: victim.index), after: duration)
        case .wipe: wipe(victim)
        case .rot: rot(victim)
        case .decay: try rotEverywhere()
        }
    }

    private func pause(_ node: SimNode, for duration: Duration) {
        node.pausedUntil = max(node.pausedUntil, now + duration)
        node.pauseEnds.insert(node.pausedUntil)
    }

    private func drawVictim() -> Int {
        let any = fate.uniform(0..<nodes.count)
        guard fate.chance(scenario.leaderHuntPercent, in: 100), let leader else { return any }
        return leader.node.index
    }

    private func partition(around victim: Int, for duration: Duration) {
        let blocked = drawBlockade(around: victim)
        note("blocked \(blocked.map { "n\($0.from + 1)>n\($0.to + 1)" }.joined(separator: " "))")
        block(blocked)
        schedule(.heal(blocks: blocked), after: duration)
    }

    /// The last of it ends when a partition would have ended.
    private func flap(around victim: Int, for duration: Duration) {
        let blocked = drawBlockade(around: victim)
        let times = fate.uniform(2..<9)
        note("flaps \(times) times")
        for turn in 0..<times {
            let began = duration / times * turn
            schedule(.block(blocks: blocked), after: began)
            schedule(
                .heal(blocks: blocked),
                after: began + fate.uniform(.milliseconds(1), duration / times))
        }
    }

    private func clog(around victim: Int, for duration: Duration) {
        let delay = fate.uniform(.milliseconds(5), scenario.heartbeatInterval * 2)
        let isInbound = fate.chance(1, in: 2)
        note("clogged \(isInbound ? "to" : "from") n\(victim + 1): \(delay)")
        for peer in nodes.indices where peer != victim {
            let (from, to) = isInbound ? (peer, victim) : (victim, peer)
            network.clog(from: from, to: to, by: delay)
            schedule(.unclog(from: from, to: to), after: duration)
        }
    }

    private func drawBlockade(around victim: Int) -> [(from: Int, to: Int)] {
        var blocked: [(from: Int, to: Int)] = []
        switch fate.uniform(0..<5) {
        case 0:
            for peer in nodes.indices where peer != victim {
                blocked += [(victim, peer), (peer, victim)]
            }
        case 1: for peer in nodes.indices where peer != victim { blocked.append((victim, peer)) }
        case 2: for peer in nodes.indices where peer != victim { blocked.append((peer, victim)) }
        case 3:
            let isLeft = nodes.map { $0.index == victim || fate.chance(1, in: 2) }
            for one in nodes.indices {
                for other in nodes.indices where isLeft[one] != isLeft[other] {
                    blocked.append((one, other))
                }
            }
        default:
            let peer = fate.uniform(0..<nodes.count)
            if peer != victim { blocked.append((victim, peer)) }
        }
        return blocked
    }
}
