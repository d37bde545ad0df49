// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// A 64-bit digest of everything that happened, in order. Two runs of one seed must end with the
/// same value; it is no checksum and keeps no secrets.
package struct TraceHash: Equatable, Sendable {
    package private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    package init() {}

    package mutating func fold(_ word: UInt64) {
        var mixed = (value ^ word) &* 0x9e37_79b9_7f4a_7c15
        mixed ^= mixed >> 32
        value = mixed &* 0xd6e8_feb8_6659_fd93
    }

    /// Folds the bytes eight at a time, then their number.
    package mutating func fold(_ bytes: [UInt8]) {
        bytes.withUnsafeBytes { raw in
            var offset = 0
            while offset + 8 <= raw.count {
                fold(
                    UInt64(littleEndian: raw.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
                )
                offset += 8
            }
            var rest: UInt64 = 0
            while offset < raw.count {
                rest = rest << 8 | UInt64(raw[offset])
                offset += 1
            }
            fold(rest)
            fold(UInt64(raw.count))
        }
    }

    /// 16 hexadecimal digits, lower case.
    package var hex: String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}

/// Records a run: every event goes into the hash, and, when somebody reads along, becomes a line.
package struct Trace {
    package private(set) var hash = TraceHash()
    private let sink: ((String) -> Void)?

    package init(sink: ((String) -> Void)? = nil) { self.sink = sink }

    package var isRead: Bool { sink != nil }

    /// One event: when, what kind, whom it concerns.
    package mutating func event(_ time: MonotonicInstant, kind: UInt8, subject: Int) {
        hash.fold(time.nanoseconds)
        hash.fold(UInt64(kind) << 32 | UInt64(UInt32(truncatingIfNeeded: subject)))
    }

    package mutating func fold(_ word: UInt64) { hash.fold(word) }
    package mutating func fold(_ bytes: [UInt8]) { hash.fold(bytes) }

    /// A line for people. Costs nothing unless somebody reads.
    package func line(_ time: MonotonicInstant, _ text: @autoclosure () -> String) {
        guard let sink else { return }
        let microseconds = time.nanoseconds / 1000
        let fraction = String(microseconds % 1_000_000 + 1_000_000).dropFirst()
        sink("\(microseconds / 1_000_000).\(fraction) \(text())")
    }
}
