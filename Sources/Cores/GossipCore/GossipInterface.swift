// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes

/// A member, as the replicated membership names it.
package struct GossipMember: Equatable, Sendable {
    package var endpoint: EndpointID
    package var node: NodeID
    package init(endpoint: EndpointID, node: NodeID) {
        self.endpoint = endpoint
        self.node = node
    }
}

/// Which signature an answer belongs to.
package struct SignTicket: Hashable, Sendable {
    package let rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

package enum GossipInput: Equatable, Sendable {
    /// The machine's `deadline` has come.
    case timeout
    /// The wall clock, in milliseconds since 1970. Nothing is announced or believed before the
    /// first; the machine goes on with its own clock in between.
    case wallClock(milliseconds: UInt64)
    /// What this node is; announced at once when it differs. Nothing is announced before the first.
    case described(NodeDescription)
    /// The members; replaces the former list. They have places in the table and their node ids for
    /// themselves. Beyond `membersMax` they are ignored.
    case members([GossipMember])
    /// The caller knows addresses of this endpoint (mDNS, DNS, a setting, a ticket).
    case contact(EndpointID)
    /// There is a link: both sides have proved the cookie. Answers a `connect`, or the peer made it.
    /// Of a link that is up already: it is a new one, and nothing more comes from the former.
    case linkUp(EndpointID)
    case linkDown(EndpointID)
    /// Answers a `connect`.
    case connectFailed(EndpointID)
    /// One message, in the order in which they were sent. Between `pause` and `resume` it is not
    /// looked at.
    case received([UInt8], from: EndpointID)
    /// Answers a `sign`; nil: there is none now.
    case signed(SignTicket, signature: [UInt8]?)
}

/// What a node is thought to be.
package enum PeerStanding: Equatable, Sendable {
    case alive
    /// A rumour: silent, or not to be reached by somebody. It may refute this.
    case suspected(Suspicion)
    /// Silent for long, and nobody has a link with it; forgotten.
    case gone
}

package enum Suspicion: Equatable, Sendable {
    case silent
    case unreachable(by: EndpointID)
}

/// Why an announcement, or a whole message, was not taken.
package enum GossipRefusal: Hashable, Sendable {
    /// Bytes that are no message.
    case malformed
    /// Not hostile: somebody who goes over to another cookie may not have forgotten yet what was said
    /// under the former one.
    case wrongTopic
    /// The signature is not the announced endpoint's.
    case forged
    /// The timestamp is more than `futureMaxMilliseconds` ahead, or `ageMaxMilliseconds` behind.
    case futureDated
    case tooOld
    /// Older than what is known.
    case replayed
    /// As many strangers are known as may be, and none is gone.
    case tableFull
    /// Beyond a rate. Not hostile: only who goes on for `GossipLimits.floodMax` is shunned.
    case flooding

    /// Whether no honest node sends this, whatever it was told and whatever its clock says.
    var isHostile: Bool { self == .malformed || self == .forged }
}

package enum GossipEffect: Equatable, Sendable {
    /// Lost if there is no link any more.
    case send([UInt8], to: EndpointID)
    /// Make a link. Answered by `linkUp` or `connectFailed`, once.
    case connect(to: EndpointID)
    /// Read nothing more of this link, so that its sender has to wait. Ends with the link.
    case pause(EndpointID)
    /// Read it again, beginning with what was read already and not given to the machine.
    case resume(EndpointID)
    /// Gossip has no use for the link any more; what was sent before goes out first. Not answered.
    case disconnect(EndpointID)
    /// No link with this peer is wanted for a while, because of what it has sent; followed by
    /// `disconnect`. Also when it comes again too early.
    case shunned(EndpointID, GossipRefusal)
    /// Sign these bytes with the node's key. Answered by `signed`.
    case sign([UInt8], SignTicket)
    /// This node's epoch was not greater than at an earlier start: it is this now. To be kept.
    case epochRaised(UInt64)
    /// An announcement has brought something new: where the endpoint may be, as it says itself.
    /// Candidates, to be proved by connecting. `source`: the link over which it came.
    case learned(Announcement, source: EndpointID)
    /// First `alive` when it is learned.
    case standing(EndpointID, PeerStanding)
    /// Two endpoints call themselves by the same node id; `holder` keeps it.
    case conflict(NodeID, holder: EndpointID, claimant: EndpointID)
    /// Not each one: at first, and then at a rate.
    case refused(GossipRefusal, about: EndpointID?, from: EndpointID)
}

/// What has happened since the start.
package struct GossipCounters: Equatable, Sendable {
    package var verifications = 0
    package var accepted = 0
    package var announced = 0
    package var duplicates = 0
    package var grafts = 0
    package var prunes = 0
    /// Messages that were decoded, and their bytes.
    package var read = 0
    package var bytesRead = 0
    /// How often a link was not read for a while.
    package var pauses = 0
    /// Messages that came while their link was not to be read: not looked at; and of later versions.
    package var unread = 0
    package var refusals: [GossipRefusal: Int] = [:]
}

/// What one step may use besides the machine's own state, and where it leaves its effects.
struct GossipTurn {
    let now: MonotonicInstant
    var random: RandomSource
    var effects: [GossipEffect]

    mutating func emit(_ effect: GossipEffect) { effects.append(effect) }

    /// Removes and returns one of `list`; nil of none.
    mutating func draw(_ list: inout [EndpointID]) -> EndpointID? {
        list.isEmpty ? nil : list.remove(at: random.uniform(0..<list.count))
    }

    /// `count` of `list`, or all, in an order of chance.
    mutating func sample(_ list: [EndpointID], _ count: Int) -> [EndpointID] {
        var rest = list
        var chosen: [EndpointID] = []
        while chosen.count < count, let next = draw(&rest) { chosen.append(next) }
        return chosen
    }
}
