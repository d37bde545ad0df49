// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// The limits of gossip; those of encodings are part of their format (see Protocols.md).
package enum GossipLimits {
    /// Bytes of one message on a link.
    package static let messageBytesMax = 16_384
    /// Bytes of a signed announcement.
    package static let announcementBytesMax = 2048
    /// Bytes of one address in an announcement.
    package static let addressBytesMax = 64
    /// Services that an announcement names.
    package static let servicesMax = 32
    /// Bytes of a program version in an announcement.
    package static let versionBytesMax = 32
    /// What one announcement says of other nodes.
    package static let reportsMax = 8
    /// Announcements that one IHAVE names, and endpoints in a SHUFFLE.
    package static let idsPerMessageMax = 64
    package static let shuffleMax = 16
    /// Members named by the caller, who have places of their own in the table.
    package static let membersMax = Limits.votersMax + Limits.learnersMax
    /// Announcements in the table, and so in a DIGEST: members, strangers, and the node's own.
    package static let recordsMax = membersMax + Limits.peersMax + 1
    /// Those who are gone and not to come back by an old announcement.
    package static let tombstonesMax = 256
    /// Endpoints that the caller has found and that have not announced themselves yet.
    package static let contactsMax = 64
    /// Links that are up, and connections under way.
    package static let linksMax = 64
    package static let dialsMax = 16
    /// Link peers whose rates are remembered.
    package static let metersMax = 256
    /// Message ids that are remembered as seen.
    package static let seenMax = 1024
    /// Announcements that somebody has and that have not come, of all and of one neighbour.
    package static let missingMax = 256
    package static let missingPerPeerMax = 64
    /// How far a timestamp may be ahead of, and behind, the wall clock here.
    package static let futureMaxMilliseconds: UInt64 = 60_000
    package static let ageMaxMilliseconds: UInt64 = 300_000

    // MARK: Rates, each with a burst

    /// Frames that are read of one link peer, and their bytes. At once there may come all that a peer
    /// knows, in the largest announcements (`recordsMax` times `announcementBytesMax`), and what
    /// it passes on meanwhile. A link that has used this up is not read until there is room for
    /// `framesPerTurn` and `bytesPerTurn` again: its sender waits, and loses nothing.
    package static let frames = Rate(perSecond: 200, burst: 1000)
    package static let bytes = Rate(perSecond: 128 * 1024, burst: 1024 * 1024)
    package static let framesPerTurn = 20
    package static let bytesPerTurn = 2 * messageBytesMax
    /// How long a peer may send as fast as it is read, without half of the burst being there again in
    /// between. Then its link ends, and it is not listened to for `GossipConfiguration.quarantine`.
    package static let floodMax = Duration.seconds(30)
    /// Signatures that are verified for one link peer.
    package static let verifications = Rate(perSecond: 50, burst: 300)
    /// Signatures of all endpoints in the table, and of all that are not.
    package static let knownVerifications = Rate(perSecond: 200, burst: 1000)
    package static let unknownVerifications = Rate(perSecond: 20, burst: 300)
    /// Announcements of one endpoint.
    package static let announcements = Rate(every: .seconds(2), burst: 8)
    /// A node's own announcements: fewer than others take.
    package static let ownAnnouncements = Rate(every: .seconds(3), burst: 4)
    /// DIGESTs of one link peer that are answered; JOINs likewise.
    package static let digests = Rate(every: .seconds(5), burst: 4)
    package static let joins = Rate(every: .seconds(10), burst: 3)
    /// Refusals that are reported, of one link peer.
    package static let reportsOfRefusals = Rate(every: .seconds(10), burst: 3)
}

/// Times and sizes of the overlay and of the table; the defaults are those of Protocols.md.
package struct GossipConfiguration: Sendable {
    /// This node's endpoint.
    package var own: EndpointID
    package var topic: GossipTopic
    /// Announcements for these are believed as well: while a cluster goes over to another cookie.
    package var acceptedTopics: [GossipTopic] = []
    /// Greater than at every earlier start of this node: a number that is kept, or the wall clock.
    package var epoch: UInt64
    /// Time between two announcements; each wait is drawn between 95 and 105 % of it.
    package var announceInterval: Duration = .seconds(10)
    /// Silence after which a node is suspected.
    package var suspectAfter: Duration = .seconds(35)
    /// How long a node has to answer another's word that it cannot be reached (longer than it may have
    /// to wait for its own rate), and how long no other such word counts.
    package var rumourDelay: Duration = .seconds(5)
    package var rumourPause: Duration = .seconds(30)
    /// Silence after which a node that nobody has a link with is gone.
    package var goneAfter: Duration = .seconds(300)
    /// How long the gone are remembered.
    package var tombstoneKept: Duration = .seconds(600)
    /// HyParView: sizes of the two views, lengths of the walks, and what a shuffle carries.
    package var activeMax = 5
    package var passiveMax = 30
    package var activeWalkLength: UInt8 = 6
    package var passiveWalkLength: UInt8 = 3
    package var shuffleInterval: Duration = .seconds(60)
    package var shuffleActiveCount = 3
    package var shufflePassiveCount = 4
    /// Waits between attempts to fill the active view; doubled up to the greatest.
    package var repairDelayMin: Duration = .milliseconds(200)
    package var repairDelayMax: Duration = .seconds(30)
    /// Waits between attempts to reach somebody of whom nothing is heard.
    package var probeDelayMin: Duration = .seconds(2)
    package var probeDelayMax: Duration = .seconds(60)
    /// How long a connection, an answer and a signature may take.
    package var requestTimeout: Duration = .seconds(10)
    /// How long a link outside of the active view stays without use.
    package var linkIdleAfter: Duration = .seconds(15)
    /// Plumtree: how long lazy pushes are gathered, how long to wait for what was announced (once to
    /// three times this), how long for what was asked for, and how many hops a better path must save.
    package var lazyDelay: Duration = .milliseconds(100)
    package var missingTimeout: Duration = .milliseconds(300)
    package var graftTimeout: Duration = .milliseconds(250)
    package var optimisationHops: UInt8 = 7
    /// From how many others on an inner node sheds load, and how much at each of its announcements.
    package var sheddingFrom = 16
    package var shedAtOnceMax = 16
    /// How long somebody who sent what no honest node sends, or sent too much for too long, is not
    /// listened to.
    package var quarantine: Duration = .seconds(60)
    /// Honoured in test builds only.
    package var plantedBug: GossipPlantedBug?

    package init(own: EndpointID, topic: GossipTopic, epoch: UInt64) {
        self.own = own
        self.topic = topic
        self.epoch = epoch
    }

    /// False unless this is a test build.
    @inline(__always)
    func has(_ bug: GossipPlantedBug) -> Bool {
        #if ASPEN_TEST_BUILD
            plantedBug == bug
        #else
            false
        #endif
    }
}

/// Faults that the gossip of a test build can be told to have, so that the checks can be checked.
package enum GossipPlantedBug: String, Sendable, CaseIterable {
    /// Any signature will do.
    case believesUnsigned = "gossip-believes-unsigned"
    /// Silence alone makes a node go, whoever has a link with it.
    case buriesTheLinked = "gossip-buries-the-linked"
    /// A neighbour more than there are places for makes nobody go.
    case keepsNeighbours = "gossip-keeps-every-neighbour"
    /// A node goes on with its epoch although its peers know of a later one.
    case keepsItsEpoch = "gossip-keeps-its-epoch"
}
