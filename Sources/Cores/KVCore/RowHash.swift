// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// A 64-bit hash of one row by folded multiplication, the same on every machine. Against accidents
/// (flipped bits, replicas that diverge), not against an attacker.
///
/// The content hash of the state is the sum, modulo 2^64, of the hashes of all rows: it does not
/// depend on their order, and adding or removing a row changes it in constant time.
package struct RowHash {
    private var state: UInt64

    private static let k0: UInt64 = 0xa076_1d64_78bd_642f
    private static let k1: UInt64 = 0xe703_7ed1_a0b4_28db
    private static let k2: UInt64 = 0x8ebc_6af0_9c88_c6e3
    private static let k3: UInt64 = 0x5899_65cc_7537_4cc3

    /// - Parameter table: a number of its own for each table, so that equal bytes in two tables are
    ///   different rows.
    package init(table: UInt64) { state = Self.fold(table ^ Self.k0, Self.k1) }

    @inline(__always)
    private static func fold(_ left: UInt64, _ right: UInt64) -> UInt64 {
        let product = left.multipliedFullWidth(by: right)
        return product.high ^ product.low
    }

    package mutating func add(_ value: UInt64) {
        state = Self.fold(state ^ Self.k2, value ^ Self.k3) ^ value
    }

    package mutating func add(_ bytes: [UInt8]) {
        bytes.withUnsafeBytes { add($0) }
    }

    package mutating func add(_ bytes: UnsafeRawBufferPointer) {
        var position = 0
        var state = state ^ UInt64(bytes.count)
        while position + 16 <= bytes.count {
            let low = bytes.loadUnaligned(fromByteOffset: position, as: UInt64.self).littleEndian
            let high = bytes.loadUnaligned(fromByteOffset: position + 8, as: UInt64.self)
                .littleEndian
            state = Self.fold(low ^ Self.k1, high ^ state)
            position += 16
        }
        var low: UInt64 = 0
        var high: UInt64 = 0
        var shift: UInt64 = 0
        while position < bytes.count {
            if shift < 64 {
                low |= UInt64(bytes[position]) << shift
            } else {
                high |= UInt64(bytes[position]) << (shift - 64)
            }
            shift += 8
            position += 1
        }
        self.state = Self.fold(low ^ Self.k0, high ^ state) ^ UInt64(bytes.count)
    }

    package var value: UInt64 { Self.fold(state ^ Self.k1, Self.k0) }
}

extension RowHash {
    package static func of(_ row: StateRow) -> UInt64 {
        switch row {
        case .version(let version): of(version.key, version.row)
        case .change(let change): of(change)
        case .session(let session): of(session)
        case .answer(let answer): of(answer)
        case .lease(let lease): of(lease)
        case .attachment(let attachment): of(attachment)
        }
    }

    package static func of(_ key: [UInt8], _ row: VersionRow) -> UInt64 {
        var hash = RowHash(table: 1)
        hash.add(row.change.rawValue)
        hash.add(row.createRevision.rawValue)
        hash.add(row.version)
        hash.add(key)
        // Rows without a lease hash as they did before there were leases. The size of the value is
        // left out: the change says it.
        if row.lease != .none { hash.add(row.lease.rawValue) }
        return hash.value
    }

    package static func of(_ change: Change) -> UInt64 {
        var hash = RowHash(table: 2)
        hash.add(change.header.number.rawValue)
        hash.add(change.header.createRevision.rawValue)
        hash.add(change.header.version)
        hash.add(change.header.previous.rawValue)
        hash.add(change.header.key)
        hash.add(change.value)
        if change.header.lease != .none { hash.add(change.header.lease.rawValue) }
        return hash.value
    }

    /// The sum of both rows of a change.
    package static func ofRows(_ change: Change) -> UInt64 {
        of(change) &+ of(change.header.key, change.versionRow)
    }

    package static func of(_ session: SessionRow) -> UInt64 {
        var hash = RowHash(table: 3)
        hash.add(session.id.rawValue)
        hash.add(session.lastActive.milliseconds)
        hash.add(session.acknowledgedBelow)
        for answer in session.answers {
            hash.add(answer.number)
            hash.add(UInt64(answer.byteCount))
            if let bytes = answer.bytes { hash.add(bytes) }
        }
        return hash.value
    }

    package static func of(_ answer: AnswerRow) -> UInt64 {
        var hash = RowHash(table: 4)
        hash.add(answer.session.rawValue)
        hash.add(answer.number)
        hash.add(answer.bytes)
        return hash.value
    }

    package static func of(_ lease: LeaseRow) -> UInt64 {
        var hash = RowHash(table: 6)
        hash.add(lease.id.rawValue)
        hash.add(lease.ttlMilliseconds)
        hash.add(lease.deadline.milliseconds)
        hash.add(lease.keyCount)
        return hash.value
    }

    package static func of(_ attachment: AttachmentRow) -> UInt64 {
        var hash = RowHash(table: 7)
        hash.add(attachment.lease.rawValue)
        hash.add(attachment.key)
        return hash.value
    }
}
