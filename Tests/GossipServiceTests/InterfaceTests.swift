// SPDX-License-Identifier: GPL-2.0-or-later

import DNSWire
import Glibc
import GossipService
import MDNSCore
import Testing

private func prefix(_ text: String, _ bitCount: Int = 24) throws -> IPPrefix {
    IPPrefix(try #require(IPAddress(text)), bitCount)
}

private let up = UInt32(IFF_UP | IFF_RUNNING)
private let ethernet = up | UInt32(IFF_MULTICAST)
private let loopback = up | UInt32(IFF_LOOPBACK)

@Suite struct InterfaceChoiceTests {
    private func machine() throws -> [RouteInterface] {
        [
            RouteInterface(
                index: 1, name: "lo", flags: loopback, mtu: 65_536,
                prefixes: [try prefix("127.0.0.1", 8), try prefix("::1", 128)]),
            RouteInterface(
                index: 2, name: "eth0", flags: ethernet, mtu: 1500,
                prefixes: [try prefix("192.0.2.7"), try prefix("2001:db8::7", 64)]),
            RouteInterface(
                index: 3, name: "eth1", flags: ethernet, mtu: 9000,
                prefixes: [try prefix("198.51.100.7")]),
            RouteInterface(
                index: 4, name: "down", flags: UInt32(IFF_UP | IFF_MULTICAST),
                mtu: 1500, prefixes: [try prefix("203.0.113.7")]),
            RouteInterface(
                index: 5, name: "tunnel", flags: ethernet | UInt32(IFF_POINTOPOINT),
                mtu: 1400, prefixes: [try prefix("10.8.0.2", 32)]),
            RouteInterface(index: 6, name: "bare", flags: ethernet, mtu: 1500),
        ]
    }

    @Test func eachInterfaceTellsTheAddressesThatAreItsOwn() throws {
        let choice = InterfaceChoice(
            try machine(), advertised: ["192.0.2.7:7700", "[2001:db8::7]:7701"])
        #expect(choice.port == 7700)
        #expect(choice.interfaces.map(\.index) == [2, 3])
        #expect(choice.interfaces[0].announced.map(\.description) == ["192.0.2.7", "2001:db8::7"])
        #expect(choice.interfaces[1].announced.isEmpty, "there it only looks for others")
        #expect(choice.interfaces.map(\.payloadBytesMax) == [1452, 1452])
    }

    @Test func onLoopbackANodeKeepsToLoopback() throws {
        let choice = InterfaceChoice(try machine(), advertised: ["127.0.0.1:7701"])
        #expect(choice.interfaces.map(\.index) == [1] && choice.port == 7701)
        #expect(choice.interfaces[0].announced.map(\.description) == ["127.0.0.1"])
    }

    @Test func whoIsBehindATranslationTellsWhatTheLinkKnows() throws {
        let choice = InterfaceChoice(try machine(), advertised: ["203.0.113.99:7000"])
        #expect(choice.port == 7000 && choice.interfaces.map(\.index) == [2, 3])
        #expect(choice.interfaces[1].announced.map(\.description) == ["198.51.100.7"])
    }

    @Test func withoutAnAddressNothingIsAnnounced() throws {
        let choice = InterfaceChoice(try machine(), advertised: [])
        #expect(choice.port == nil && choice.interfaces.map(\.index) == [2, 3])
        #expect(InterfaceChoice([], advertised: ["192.0.2.7:7700"]).interfaces.isEmpty)
    }
}

/// Messages as the kernel writes them.
private struct Kernel {
    private static func bytes<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
        withUnsafeBytes(of: value) { Array($0) }
    }

    static func message(_ type: UInt16, _ body: [UInt8]) -> [UInt8] {
        let padding = [UInt8](repeating: 0, count: (4 - body.count % 4) % 4)
        return bytes(UInt32(16 + body.count)) + bytes(type) + bytes(UInt16(0)) + bytes(UInt64(0))
            + body + padding
    }

    static func attribute(_ type: UInt16, _ value: [UInt8]) -> [UInt8] {
        let padding = [UInt8](repeating: 0, count: (4 - value.count % 4) % 4)
        return bytes(UInt16(4 + value.count)) + bytes(type) + value + padding
    }

    static func link(_ index: UInt32, _ name: String, flags: UInt32, isNew: Bool = true) -> [UInt8]
    {
        message(
            isNew ? 16 : 17,
            [0, 0, 0, 0] + bytes(index) + bytes(flags) + bytes(UInt32(0))
                + attribute(3, Array(name.utf8) + [0]) + attribute(4, bytes(UInt32(1400))))
    }

    static func address(
        _ index: UInt32, _ text: String, _ bitCount: UInt8, flags: UInt8 = 0, isNew: Bool = true
    ) -> [UInt8] {
        let raw = IPAddress(text)?.bytes ?? []
        let family: UInt8 = raw.count == 4 ? 2 : 10
        var body = [family, bitCount, flags, 0] + bytes(index) + attribute(1, raw)
        if raw.count == 4 { body += attribute(2, raw) }
        return message(isNew ? 20 : 21, body)
    }

    static let done = message(3, [0, 0, 0, 0])
}

@Suite struct RouteTableTests {
    @Test func interfacesAndAddressesComeAndGo() throws {
        var table = RouteTable()
        let isEnd = [
            Kernel.link(2, "eth0", flags: ethernet),
            Kernel.link(1, "lo", flags: loopback) + Kernel.done,
        ].map { table.take($0) }
        #expect(isEnd == [false, true])
        let addresses =
            Kernel.address(2, "192.0.2.7", 24) + Kernel.address(2, "fe80::7", 64)
            + Kernel.address(1, "127.0.0.1", 8) + Kernel.address(9, "192.0.2.9", 24)
        _ = table.take(addresses + Kernel.done)
        #expect(table.interfaces.map(\.name) == ["lo", "eth0"])
        #expect(table.interfaces[1].mtu == 1400 && table.interfaces[1].isUp)
        #expect(
            table.interfaces[1].prefixes == [try prefix("192.0.2.7"), try prefix("fe80::7", 64)])
        _ = table.take(Kernel.address(2, "192.0.2.7", 24, isNew: false))
        _ = table.take(Kernel.link(1, "lo", flags: loopback, isNew: false))
        #expect(table.interfaces.map(\.prefixes) == [[try prefix("fe80::7", 64)]])
        // An interface that goes down keeps its addresses.
        _ = table.take(Kernel.link(2, "eth0", flags: 0))
        #expect(!table.interfaces[0].isUp && table.interfaces[0].prefixes.count == 1)
    }

    @Test func anAddressCountsOnceItIsTheMachines() throws {
        var table = RouteTable()
        _ = table.take(Kernel.link(2, "eth0", flags: ethernet))
        _ = table.take(Kernel.address(2, "2001:db8::7", 64, flags: 0x40))
        #expect(table.interfaces[0].prefixes.isEmpty, "tentative")
        _ = table.take(Kernel.address(2, "2001:db8::7", 64, flags: 0x80))
        #expect(table.interfaces[0].prefixes == [try prefix("2001:db8::7", 64)])
        _ = table.take(Kernel.address(2, "2001:db8::7", 64, flags: 0x08))
        #expect(table.interfaces[0].prefixes.isEmpty, "somebody else has it")
    }

    @Test func whatTheKernelSaysIsBounded() {
        var table = RouteTable()
        for index in 1...UInt32(RouteTable.interfacesMax + 5) {
            _ = table.take(Kernel.link(index, "e\(index)", flags: ethernet))
        }
        for number in 1...(RouteTable.addressesMax + 5) {
            _ = table.take(Kernel.address(1, "10.0.0.\(number)", 24))
        }
        #expect(table.interfaces.count == RouteTable.interfacesMax)
        #expect(table.interfaces[0].prefixes.count == RouteTable.addressesMax)
    }

    @Test func messagesThatMakeNoSenseAreSkipped() {
        let whole =
            Kernel.link(2, "eth0", flags: ethernet) + Kernel.address(2, "192.0.2.7", 24)
            + Kernel.done
        for count in 0..<whole.count {
            var table = RouteTable()
            _ = table.take(Array(whole[..<count]))
            for place in [0, 4, 16, 20, 32, 34] where place < count {
                var broken = Array(whole[..<count])
                broken[place] ^= 0xff
                _ = table.take(broken)
            }
        }
    }
}
