// SPDX-License-Identifier: GPL-2.0-or-later

import DNSWire
import Glibc

/// An interface as the kernel tells it.
package struct RouteInterface: Equatable, Sendable {
    package var index: UInt32
    package var name: String
    /// IFF_… of netdevice(7).
    package var flags: UInt32
    package var mtu: UInt32
    package var prefixes: [IPPrefix] = []

    package init(
        index: UInt32, name: String, flags: UInt32, mtu: UInt32, prefixes: [IPPrefix] = []
    ) {
        self.index = index
        self.name = name
        self.flags = flags
        self.mtu = mtu
        self.prefixes = prefixes
    }

    private func has(_ flag: Int) -> Bool { flags & UInt32(flag) != 0 }
    package var isUp: Bool { has(IFF_UP) && has(IFF_RUNNING) }
    package var isLoopback: Bool { has(IFF_LOOPBACK) }
    package var canMulticast: Bool { has(IFF_MULTICAST) }
    package var isPointToPoint: Bool { has(IFF_POINTOPOINT) }
}

/// What the kernel says of interfaces and addresses (rtnetlink(7)), put together.
package struct RouteTable: Equatable, Sendable {
    /// By index, ascending when listed.
    private var found: [UInt32: RouteInterface] = [:]

    /// Most interfaces and addresses of one that are remembered.
    package static let interfacesMax = 256
    package static let addressesMax = 64

    package init() {}

    package var interfaces: [RouteInterface] {
        found.values.map { interface in
            var interface = interface
            interface.prefixes.sort {
                ($0.address, $0.bitCount) < ($1.address, $1.bitCount)
            }
            return interface
        }.sorted { $0.index < $1.index }
    }

    private static let newLink: UInt16 = 16
    private static let deletedLink: UInt16 = 17
    private static let newAddress: UInt16 = 20
    private static let deletedAddress: UInt16 = 21
    private static let done: UInt16 = 3
    private static let error: UInt16 = 2

    /// Takes what one read has given. Messages that make no sense are skipped.
    /// - Returns: whether the end of what was asked for is among it.
    package mutating func take(_ bytes: [UInt8]) -> Bool {
        var isDone = false
        var place = 0
        while let length: UInt32 = Self.integer(bytes, place), length >= 16,
            bytes.count - place >= Int(length)
        {
            let type: UInt16 = Self.integer(bytes, place + 4) ?? 0
            let body = Array(bytes[place + 16..<place + Int(length)])
            switch type {
            case Self.done, Self.error: isDone = true
            case Self.newLink: link(body)
            case Self.deletedLink:
                if let index: UInt32 = Self.integer(body, 4) { found[index] = nil }
            case Self.newAddress: address(body, isNew: true)
            case Self.deletedAddress: address(body, isNew: false)
            default: break
            }
            place += (Int(length) + 3) & ~3
        }
        return isDone
    }

    /// struct ifinfomsg: family, pad, type, index, flags, change.
    private mutating func link(_ body: [UInt8]) {
        guard body.count >= 16, let index: UInt32 = Self.integer(body, 4),
            let flags: UInt32 = Self.integer(body, 8)
        else { return }
        var interface =
            found[index] ?? RouteInterface(index: index, name: "", flags: flags, mtu: 1500)
        interface.flags = flags
        for (type, value) in Self.attributes(body[16...]) {
            switch type {
            case 3: interface.name = String(decoding: value.prefix { $0 != 0 }, as: UTF8.self)
            case 4: interface.mtu = Self.integer(value, 0) ?? interface.mtu
            default: break
            }
        }
        if found[index] != nil || found.count < Self.interfacesMax { found[index] = interface }
    }

    /// struct ifaddrmsg: family, prefix length, flags, scope, index.
    private mutating func address(_ body: [UInt8], isNew: Bool) {
        guard body.count >= 8, let index: UInt32 = Self.integer(body, 4),
            var interface = found[index]
        else { return }
        var (own, peer): (IPAddress?, IPAddress?)
        for (type, value) in Self.attributes(body[8...]) {
            // IFA_ADDRESS is the other end of a point-to-point link; IFA_LOCAL is ours, for IPv4.
            if type == 1 { peer = IPAddress(bytes: value) }
            if type == 2 { own = IPAddress(bytes: value) }
        }
        guard let address = own ?? peer else { return }
        // One that is being probed for, or has been refused, is not ours yet (IFA_F_TENTATIVE,
        // IFA_F_DADFAILED): the kernel tells again when it is.
        let isUsable = body[2] & (0x40 | 0x08) == 0
        interface.prefixes.removeAll { $0.address == address }
        if isNew, isUsable, interface.prefixes.count < Self.addressesMax {
            interface.prefixes.append(IPPrefix(address, Int(body[1])))
        }
        found[index] = interface
    }

    private static func attributes(_ bytes: ArraySlice<UInt8>) -> [(type: UInt16, value: [UInt8])] {
        let bytes = Array(bytes)
        var result: [(UInt16, [UInt8])] = []
        var place = 0
        while let length: UInt16 = integer(bytes, place), length >= 4,
            bytes.count - place >= Int(length)
        {
            let type: UInt16 = integer(bytes, place + 2) ?? 0
            result.append((type & 0x3fff, Array(bytes[place + 4..<place + Int(length)])))
            place += (Int(length) + 3) & ~3
        }
        return result
    }

    /// The kernel writes numbers in the order of the machine.
    private static func integer<Value: FixedWidthInteger>(
        _ bytes: [UInt8], _ place: Int
    ) -> Value? {
        guard bytes.count - place >= MemoryLayout<Value>.size else { return nil }
        return bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: place, as: Value.self) }
    }
}
