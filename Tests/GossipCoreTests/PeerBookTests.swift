// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import Testing

@Suite struct PeerBookTests {
    private static func at(_ seconds: UInt64) -> MonotonicInstant {
        MonotonicInstant(nanoseconds: seconds * 1_000_000_000)
    }

    private static func texts(_ book: PeerBook, _ number: Int = 1) -> [String] {
        book[endpoint(number)]?.addresses.map(\.text) ?? []
    }

    @Test func whatWorkedComesFirstAndIPv6BeforeIPv4() {
        var book = PeerBook()
        let all = ["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.4:1"]
        book.found(endpoint(1), addresses: all, by: .mdns, now: Self.at(1))
        #expect(Self.texts(book).first == "[2001:db8::1]:1")
        for (address, second) in [("192.0.2.1:1", UInt64(3)), ("192.0.2.2:1", 2)] {
            book.disconnected(
                endpoint(1), address: address, reason: .unreachable(address: address),
                now: Self.at(second))
        }
        for (address, trip) in [("192.0.2.3:1", 9), ("192.0.2.4:1", 4)] {
            book.connected(
                endpoint(1), address: address, roundTrip: .milliseconds(trip), now: Self.at(4))
        }
        let best = ["192.0.2.4:1", "192.0.2.3:1", "[2001:db8::1]:1", "192.0.2.2:1", "192.0.2.1:1"]
        #expect(Self.texts(book) == best)
        book.checkInvariants()
    }

    @Test func aConnectionThatIsOfNoUseAnyMoreIsNoFault() {
        var book = PeerBook()
        book.found(endpoint(1), addresses: ["a:1"], by: .mdns, now: Self.at(1))
        book.connected(endpoint(1), address: "a:1", roundTrip: nil, now: Self.at(2))
        book.released(endpoint(1))
        #expect(book[endpoint(1)]?.isConnected == false && book[endpoint(1)]?.reason == nil)
        #expect(book[endpoint(1)]?.addresses.first?.isFailing == false)
        book.checkInvariants()
    }

    /// Anybody on the link can say where a node is; what it has signed itself comes first and stays.
    @Test func whatSomebodyVouchesForIsNotCrowdedOut() {
        var book = PeerBook()
        book.found(endpoint(1), addresses: ["192.0.2.1:1"], by: .gossip, now: Self.at(1))
        let lies = (1...40).map { "[2001:db8::\($0)]:1" }
        book.found(endpoint(1), addresses: lies, by: .mdns, now: Self.at(2))
        #expect(Self.texts(book).first == "192.0.2.1:1")
        #expect(Self.texts(book).count == Limits.addressesMax)
        book.found(endpoint(1), addresses: [], by: .mdns, now: Self.at(3))
        #expect(Self.texts(book) == ["192.0.2.1:1"])
        book.checkInvariants()
    }

    @Test func sourcesAddUpAndTakeBackWhatTheyNameNoMore() {
        var book = PeerBook()
        book.found(endpoint(1), addresses: ["a:1", "b:1"], by: .mdns, now: Self.at(1))
        book.found(endpoint(1), addresses: ["b:1"], by: .manual, now: Self.at(1))
        #expect(book[endpoint(1)]?.sources.names == ["mdns", "manual"])
        book.connected(endpoint(1), address: "a:1", roundTrip: nil, now: Self.at(2))
        book.found(endpoint(1), addresses: ["c:1"], by: .mdns, now: Self.at(3))
        #expect(Self.texts(book) == ["a:1", "b:1", "c:1"], "what has worked stays")
        book.disconnected(
            endpoint(1), address: "a:1", reason: .unreachable(address: "a:1"), now: Self.at(4))
        book.found(endpoint(1), addresses: ["c:1"], by: .mdns, now: Self.at(5))
        #expect(Self.texts(book) == ["b:1", "c:1"])
        book.checkInvariants()
    }

    @Test func itSaysWhyThereIsNoConnection() {
        var book = PeerBook()
        func reason() -> DisconnectionReason? { book[endpoint(1)]?.reason }
        book.found(endpoint(1), addresses: [], by: .ticket, now: Self.at(1))
        #expect(reason() == .neverSeen)
        book.announced(announced(1, node: 7).announcement, node: NodeID(7), now: Self.at(2))
        #expect(reason() == nil && book.entry(of: NodeID(7))?.version == "1.0.0")
        for wanted: DisconnectionReason in [
            .wrongCookie, .refusedKey(address: "a:1"), .unreachable(address: "a:1"),
            .version("9.0"), .clock, .noAddress,
        ] {
            book.disconnected(endpoint(1), address: nil, reason: wanted, now: Self.at(3))
            #expect(reason() == wanted && !wanted.text.isEmpty)
        }
        book.connected(endpoint(1), address: nil, roundTrip: nil, now: Self.at(4))
        #expect(reason() == nil && book[endpoint(1)]?.isConnected == true)
        book.isGone(endpoint(1))
        #expect(reason() == nil, "who is connected is not gone")
        book.disconnected(endpoint(1), address: nil, reason: .wrongCookie, now: Self.at(5))
        book.isGone(endpoint(1))
        #expect(reason() == .gone)
        book.seen(endpoint(1), now: Self.at(6))
        #expect(reason() == nil)
        book.checkInvariants()
    }

    /// Where the connection is comes first, whatever was faster once, and whether anybody named it or not.
    @Test func theAddressInUseComesFirst() {
        var book = PeerBook()
        let names = (0..<Limits.addressesMax).map { "192.0.2.\($0):1" }
        book.found(endpoint(1), addresses: names, by: .mdns, now: Self.at(1))
        book.inUse(endpoint(1), address: names[3], roundTrip: .milliseconds(1), now: Self.at(2))
        #expect(book[endpoint(1)]?.addresses.first?.roundTrip == nil, "there is no connection")
        book.connected(endpoint(1), address: nil, roundTrip: nil, now: Self.at(3))
        book.inUse(endpoint(1), address: names[3], roundTrip: .milliseconds(1), now: Self.at(3))
        #expect(Self.texts(book).first == names[3])
        book.inUse(
            endpoint(1), address: "203.0.113.7:1", roundTrip: .milliseconds(9), now: Self.at(4))
        #expect(Self.texts(book).prefix(2) == ["203.0.113.7:1", names[3]])
        #expect(book[endpoint(1)]?.addresses.first?.roundTrip == .milliseconds(9))
        #expect(Self.texts(book).count == Limits.addressesMax)
        book.checkInvariants()
        // Crowded by new ones, the one in use stays.
        let others = (0..<Limits.addressesMax).map { "[2001:db8::\($0)]:1" }
        book.found(endpoint(1), addresses: others, by: .gossip, now: Self.at(5))
        #expect(Self.texts(book).first == "203.0.113.7:1")
        book.released(endpoint(1))
        #expect(Self.texts(book).first == names[3], "the faster one of those that have worked")
        book.checkInvariants()
    }

    /// A stranger that calls itself by a member's number has none.
    @Test func aNumberIsWhatTheTableSaysItIs() {
        var book = PeerBook()
        book.announced(announced(1, node: 7).announcement, node: NodeID(7), now: Self.at(1))
        book.announced(announced(2, node: 7).announcement, node: nil, now: Self.at(2))
        #expect(book.entry(of: NodeID(7))?.endpoint == endpoint(1))
        #expect(book[endpoint(2)]?.node == nil)
    }

    @Test func itIsBounded() {
        var book = PeerBook()
        book.found(endpoint(1), addresses: [], by: .manual, now: Self.at(0))
        book.found(endpoint(2), addresses: [], by: .mdns, now: Self.at(0))
        book.connected(endpoint(2), address: nil, roundTrip: nil, now: Self.at(0))
        for number in 3...1000 {
            book.found(endpoint(number), addresses: [], by: .gossip, now: Self.at(UInt64(number)))
            book.seen(endpoint(number), now: Self.at(UInt64(number)))
        }
        #expect(book.all.count == PeerBook.entriesMax)
        #expect(book[endpoint(1)] != nil && book[endpoint(2)] != nil && book[endpoint(3)] == nil)
        #expect(book[endpoint(1000)] != nil)
        book.found(
            endpoint(1), addresses: (0..<40).map { "192.0.2.\($0):1" }, by: .mdns, now: Self.at(9))
        #expect(Self.texts(book).count == Limits.addressesMax)
        book.checkInvariants()
        var named = PeerBook()
        for number in 0..<PeerBook.entriesMax {
            named.found(endpoint(number), addresses: [], by: .manual, now: Self.at(1))
        }
        let hasFound = named.found(endpoint(999), addresses: [], by: .mdns, now: Self.at(2))
        #expect(!hasFound)
    }
}
