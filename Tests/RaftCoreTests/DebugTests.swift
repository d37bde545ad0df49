import AspenMachine
import AspenTypes
import RaftCore
import Testing
import Glibc

@Suite struct DebugTests {
    @Test func debugSeed() {
        guard let text = getenv("SEED"), let seed = UInt64(String(cString: text)) else { return }
        let fuzz = Fuzz(seed: seed, withDamage: getenv("DAMAGE") != nil)
        fuzz.run(steps: 4000)
        func dump(_ title: String) {
            print("DBG", title, fuzz.world.violations)
            for n in fuzz.world.nodes {
                guard let c = n.core else { print("DBG", n.id, "down"); continue }
                print("DBG", n.id, c.standing.role, "term", c.term, "leader", c.standing.leader as Any, "last", c.lastIndex, c.lastTerm, "commit", c.commitIndex, "applied", n.appliedIndex, "first", c.firstIndex, "durable", c.durableIndex, "m", c.membership.map { "\($0.voters)+\($0.votersOutgoing)/\($0.learners)@\(c.membershipIndex)" } as Any, "trusted", c.isTailTrusted, "dl", c.deadline.map { ($0 - fuzz.world.now).milliseconds } as Any)
                for p in c.peerStatus { print("DBG    ", p.node, p.state, p.match, p.next, p.isVoter, p.isRegressed, p.isRepairing) }
            }
        }
        dump("end of run")
        if getenv("VERBOSE") != nil { fuzz.world.onEffect = { id, e in print("DBG", id, "\(e)".replacing("RaftCore.", with: "").replacing("AspenTypes.", with: "").prefix(260)) } }
        fuzz.heal()
        dump("healed")
    }
}
