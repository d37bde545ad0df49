// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import LinkCore
import RaftCore

/// One net daemon: the production connection policy, and a shell as thin as it gets.
final class SimNet {
    /// It owns this: a strong reference would keep both for ever.
    unowned let node: SimNode
    /// Names this start of the daemon; also what its peers know it by.
    let life: UInt64
    var machine: LinkMachine
    var random: RandomSource
    var inputs: [LinkInput] = []
    var isDriving = false
    var wakeAt: MonotonicInstant?
    /// What it says of the raft daemon beside it.
    var raft = ServiceState.unknown
    /// Whose control connection it holds, by life, and whether that one wants to hear events.
    var caller: UInt64?
    var isSubscribed = false
    /// Streams that wait for a connection.
    var waiting: [(peer: EndpointID, lane: Lane, request: UInt64)] = []

    init(node: SimNode, life: UInt64, machine: LinkMachine, random: RandomSource) {
        self.node = node
        self.life = life
        self.machine = machine
        self.random = random
    }
}

/// A connection between two nets, as each end sees it: ends learn of things at different times.
final class SimConnection {
    struct End {
        /// The net that holds it; zero while nobody does.
        var net: UInt64 = 0
        var isOpen = false
        var isProved = false
        /// Bytes of an unfinished notice.
        var unread: [UInt8] = []
        /// Streams of services in it.
        var streams = 0
    }

    let number: UInt64
    let dialler: Int
    let acceptor: Int
    /// Its lane for what nets tell each other.
    let lane: Int
    let givenUpAt: MonotonicInstant
    var attempts = 0
    var ends: (dialler: End, acceptor: End) = (End(), End())

    init(number: UInt64, dialler: Int, acceptor: Int, lane: Int, givenUpAt: MonotonicInstant) {
        self.number = number
        self.dialler = dialler
        self.acceptor = acceptor
        self.lane = lane
        self.givenUpAt = givenUpAt
    }

    var isOver: Bool { !ends.dialler.isOpen && !ends.acceptor.isOpen }

    func other(than node: Int) -> Int { node == dialler ? acceptor : dialler }
    func joins(_ one: Int, _ other: Int) -> Bool {
        (dialler, acceptor) == (one, other) || (dialler, acceptor) == (other, one)
    }

    subscript(node: Int) -> End {
        get { node == dialler ? ends.dialler : ends.acceptor }
        set { if node == dialler { ends.dialler = newValue } else { ends.acceptor = newValue } }
    }
}

/// A stream that one raft daemon has opened to another, for the messages of one lane.
struct SimStream {
    var number: UInt64
    var from: Int
    var to: Int
    var lane: Lane
    var connection: UInt64
}

/// What a raft daemon knows of its streams with one peer.
struct PeerStreams {
    enum Standing { case new, whole, broken, lost }

    enum Outgoing: Equatable {
        case idle
        case dialling
        case greeting(UInt64)
        case up(UInt64)
    }

    var outgoing = Lane.allCases.map { _ in Outgoing.idle }
    var failures = Lane.allCases.map { _ in 0 }
    /// The stream of each lane that the peer has opened and was answered on.
    var incoming: [UInt64?] = Lane.allCases.map { _ in nil }
    var standing = Standing.new
    /// Names the grace that runs.
    var grace: UInt64 = 0

    var isWhole: Bool {
        incoming.allSatisfy { $0 != nil }
            && outgoing.allSatisfy { if case .up = $0 { true } else { false } }
    }

    func isUp(_ lane: Lane) -> Bool {
        if case .up = outgoing[Int(lane.rawValue)] { true } else { false }
    }
}
