// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// Times and sizes of the connection policy.
package struct LinkConfiguration: Sendable {
    /// This node's endpoint.
    package var own: EndpointID
    /// The first wait after a failed dial or a lost connection; each wait is drawn between half of
    /// the value and the value.
    package var backOffMin: Duration = .milliseconds(50)
    package var backOffMax: Duration = .seconds(2)
    /// Waits after the peer answered and said no: something has to change there first.
    package var refusedBackOffMin: Duration = .seconds(1)
    package var refusedBackOffMax: Duration = .seconds(5)
    /// Waits after a cookie that differs: somebody has to change a setting.
    package var cookieBackOffMin: Duration = .seconds(2)
    package var cookieBackOffMax: Duration = .seconds(30)
    /// Least time between two dials when somebody waits for a stream.
    package var wantedSpacing: Duration = .milliseconds(250)
    /// How much later the side with the greater id begins to dial, so that two nodes that start or
    /// lose each other at once seldom make two connections.
    package var courtesy: Duration = .milliseconds(20)
    /// Longest time between the proofs of two connections whose dials crossed: the connect timeout,
    /// the time for the proof, and a little for what is slow on one side only. A peer that
    /// dials later than that has no connection any more.
    package var crossingMax: Duration = Limits.connectTimeout + .seconds(5)
    /// How long a lost connection may take to come back before it is reported.
    package var redialGrace: Duration = Limits.redialGrace
    /// How long a superfluous connection must be without streams before its dialler closes it.
    package var retireAfter: Duration = .seconds(1)
    /// Most connections with one peer at a time.
    package var connectionsPerPeerMax = 3
    /// Most peers besides the members.
    package var peersMax = Limits.peersMax
    /// Most peers whose learned addresses are kept: members and strangers.
    package var learnedMax = Limits.votersMax + Limits.peersMax

    package init(own: EndpointID) { self.own = own }
}

/// A connection, as the shell numbers it; never used twice.
package struct LinkID: Hashable, Comparable, Sendable, CustomStringConvertible {
    package let rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (left: LinkID, right: LinkID) -> Bool { left.rawValue < right.rawValue }
    package var description: String { String(rawValue) }
}

/// What both ends of a connection call it, taken from its keys: nobody else can, and no two are alike.
package struct LinkName: Hashable, Comparable, Sendable {
    package let rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (left: LinkName, right: LinkName) -> Bool {
        left.rawValue < right.rawValue
    }

    /// Connections with one peer that are over, of which it is told: as many as may have been left
    /// behind at once, and one more.
    package static let overMax = 4
}

package struct LinkPeer: Equatable, Sendable {
    package var endpoint: EndpointID
    /// Where to dial; empty when only the peer can.
    package var addresses: [String]

    package init(endpoint: EndpointID, addresses: [String]) {
        self.endpoint = endpoint
        self.addresses = addresses
    }
}

/// What a net says of the service behind it.
package enum ServiceState: UInt8, Sendable, CaseIterable {
    /// Not seen since this net started: no reason to call it gone.
    case unknown = 0
    case serving = 1
    /// It was there, and its end was seen.
    case gone = 2
}

/// Why a dial came to nothing.
package enum DialFailure: Equatable, Sendable {
    /// No answer, no route, or broken off half-way.
    case unreachable(String)
    /// The peer answered and does not want us.
    case refused(String)
    /// One of the two cookies was not proved.
    case cookie(String)

    package var reason: String {
        switch self {
        case .unreachable(let reason), .refused(let reason), .cookie(let reason): reason
        }
    }
}

package enum LinkInput: Equatable, Sendable {
    /// The machine's `deadline` has come.
    case timeout
    /// The peers of the settings; replaces the former list. Beyond `peersMax` they are ignored.
    case configured([LinkPeer])
    /// The members; replaces the former list. While closed, nobody else is dialled or admitted.
    case members([LinkPeer], isClosed: Bool)
    /// Where peers are said to be; replaces the former list, beyond `learnedMax` ignored. It names
    /// nobody: who is dialled for another reason is dialled there as well.
    case learned([LinkPeer])
    /// A stream to this peer is wanted now.
    case wanted(EndpointID)
    /// Both sides have proved the cookie. `incarnation` is drawn by each net at its start.
    /// With `isInbound` false this answers a `dial`.
    case proved(
        LinkID, EndpointID, isInbound: Bool, incarnation: UInt64, service: ServiceState,
        name: LinkName)
    /// On a connection that was dialled here this node has shown its proof, and it has ended before
    /// the peer's came: the peer may take it for proved. Before `dialFailed`.
    case unanswered(EndpointID, LinkName)
    /// The peer's net says, on this connection, which others with it are over.
    case over(LinkID, [LinkName])
    /// Answers a `dial`.
    case dialFailed(EndpointID, DialFailure)
    /// The peer's net tells how its service is.
    case service(LinkID, ServiceState)
    /// Whether streams of services are open on a connection (assumed false at first).
    case carrying(LinkID, Bool)
    /// A proved connection has ended, for whatever reason.
    case closed(LinkID, reason: String)
}

/// Why a connection is to be closed.
package enum LinkClose: Equatable, Sendable {
    /// The peer has a newer connection and knows this one no more: it has restarted, or has lost it,
    /// or says that it is over.
    case superseded
    /// There is a better one, and this one has no streams left.
    case duplicate
    /// The peer is no member (any more).
    case notMember
    case tooManyPeers
}

package enum LinkEffect: Equatable, Sendable {
    /// Make a connection, if need be beside one that is being made to other addresses. Each is answered by
    /// `proved` or `dialFailed`, once.
    case dial(EndpointID, addresses: [String])
    /// `closed` need not be reported for it.
    case close(LinkID, LinkClose)
    /// New streams to this peer go here, or wait (nil).
    case primary(EndpointID, LinkID?)
    /// Connected, and the service there serves. Also after `serviceGone`, when it is back.
    case peerUp(EndpointID)
    /// Not reachable for the redial grace.
    case peerDown(EndpointID, reason: String)
    /// The peer's net lives and has seen its service end.
    case serviceGone(EndpointID)
}

/// What subscribers have been told of a peer.
package enum LinkStanding: Equatable, Sendable {
    /// Neither up nor, as yet, down: within the redial grace.
    case pending
    case up
    case serviceGone
    case down(reason: String)
}
