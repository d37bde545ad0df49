// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore

/// The hash of a row once more, as its definition says and as slowly as it likes: replicas that run
/// different programs compare sums of these, so that it must never be another one.
struct RowHashAgain {
    private var state: UInt64
    private static let keys: [UInt64] = [
        0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3,
        0x5899_65cc_7537_4cc3,
    ]

    private init(table: UInt64, _ numbers: [UInt64] = []) {
        state = Self.fold(table ^ Self.keys[0], Self.keys[1])
        for number in numbers { add(number) }
    }

    private static func fold(_ left: UInt64, _ right: UInt64) -> UInt64 {
        let product = left.multipliedFullWidth(by: right)
        return product.high ^ product.low
    }

    private mutating func add(_ number: UInt64) {
        state = Self.fold(state ^ Self.keys[2], number ^ Self.keys[3]) ^ number
    }

    /// Sixteen bytes at a time, little-endian; then the rest, filled up with zeros.
    private mutating func add(_ bytes: [UInt8]) {
        func word(_ from: Int) -> UInt64 {
            var word: UInt64 = 0
            for offset in 0..<8 where from + offset < bytes.count {
                word += UInt64(bytes[from + offset]) << UInt64(8 * offset)
            }
            return word
        }
        let whole = bytes.count / 16 * 16
        var running = state ^ UInt64(bytes.count)
        for place in stride(from: 0, to: whole, by: 16) {
            running = Self.fold(word(place) ^ Self.keys[1], word(place + 8) ^ running)
        }
        let last = Self.fold(word(whole) ^ Self.keys[0], word(whole + 8) ^ running)
        state = last ^ UInt64(bytes.count)
    }

    private var value: UInt64 { Self.fold(state ^ Self.keys[1], Self.keys[0]) }

    static func of(_ row: StateRow) -> UInt64 {
        var hash: RowHashAgain
        switch row {
        case .version(let version):
            let row = version.row
            hash = RowHashAgain(
                table: 1, [row.change.rawValue, row.createRevision.rawValue, row.version])
            hash.add(version.key)
            if row.lease != .none { hash.add(row.lease.rawValue) }
        case .change(let change):
            let header = change.header
            hash = RowHashAgain(
                table: 2,
                [
                    header.number.rawValue, header.createRevision.rawValue, header.version,
                    header.previous.rawValue,
                ])
            hash.add(header.key)
            hash.add(change.value)
            if header.lease != .none { hash.add(header.lease.rawValue) }
        case .session(let session):
            hash = RowHashAgain(
                table: 3,
                [session.id.rawValue, session.lastActive.milliseconds, session.acknowledgedBelow])
            for answer in session.answers {
                hash.add(answer.number)
                hash.add(UInt64(answer.byteCount))
                if let bytes = answer.bytes { hash.add(bytes) }
            }
        case .answer(let answer):
            hash = RowHashAgain(table: 4, [answer.session.rawValue, answer.number])
            hash.add(answer.bytes)
        case .lease(let lease):
            hash = RowHashAgain(
                table: 6,
                [
                    lease.id.rawValue, lease.ttlMilliseconds, lease.deadline.milliseconds,
                    lease.keyCount,
                ])
        case .attachment(let attachment):
            hash = RowHashAgain(table: 7, [attachment.lease.rawValue])
            hash.add(attachment.key)
        }
        return hash.value
    }
}
