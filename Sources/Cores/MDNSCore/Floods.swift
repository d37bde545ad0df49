// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import DNSWire

/// How much is looked at: so many packets and bytes in a second, and a part of them from one address.
/// Beyond that a packet is not even decoded.
struct PacketBudget: Sendable {
    private struct Use: Sendable {
        var packets = 0
        var bytes = 0
    }

    private var windowEnds = MonotonicInstant.zero
    private var total = Use()
    /// Never walked through: only asked for one address, and emptied.
    private var sources: [IPAddress: Use] = [:]

    mutating func admits(_ source: IPAddress, byteCount: Int, _ now: MonotonicInstant) -> Bool {
        if now >= windowEnds {
            windowEnds = now + .seconds(1)
            total = Use()
            sources.removeAll(keepingCapacity: true)
        }
        var own = sources[source] ?? Use()
        guard total.packets < MDNSLimits.packetsPerSecondMax,
            own.packets < MDNSLimits.packetsPerSourceMax,
            total.bytes + byteCount <= MDNSLimits.bytesPerSecondMax,
            own.bytes + byteCount <= MDNSLimits.bytesPerSourceMax
        else { return false }
        total.packets += 1
        total.bytes += byteCount
        own.packets += 1
        own.bytes += byteCount
        sources[source] = own
        return true
    }
}

/// Knows what this node has just sent to the group, when it comes back: from its own socket, by a second
/// interface on the same link, or from a reflector. Other nodes on the machine have the same address, and
/// are told apart by what they say: every packet that matters holds a name of its sender.
struct SentPackets: Sendable {
    private static let countMax = 64
    private static let age = Duration.seconds(2)
    private var sent: [(digest: UInt64, at: MonotonicInstant)] = []

    mutating func note(_ bytes: [UInt8], _ now: MonotonicInstant) {
        if sent.count >= Self.countMax { sent.removeFirst() }
        sent.append((Self.digest(bytes), now))
    }

    func contains(_ bytes: [UInt8], _ now: MonotonicInstant) -> Bool {
        guard sent.contains(where: { now - $0.at < Self.age }) else { return false }
        let digest = Self.digest(bytes)
        return sent.contains { $0.digest == digest && now - $0.at < Self.age }
    }

    /// FNV-1a.
    private static func digest(_ bytes: [UInt8]) -> UInt64 {
        bytes.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    }
}
