// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore

/// The newest membership entry that this log has ever held, kept apart from the entry itself.
///
/// Damage cuts the log off before the damaged place, and membership entries behind it with it. A node
/// that then went by an older membership could elect itself in a cluster that has long grown beyond
/// it (see Repair.swift in RaftCore). So a copy stands a block behind each such entry, where no one
/// bad block takes both, and at the beginning of each segment; a recovery from damage looks for
/// entries and copies behind the damaged place, too. One that a leader has cut off again is found as
/// well: it makes the node more careful than it need be, until it is repaired.
struct KeptMembership: Equatable {
    var index: LogIndex
    var term: Term
    var payload: [UInt8]

    /// The body: index and term (u64 each), payload.
    private static let fixedByteCount = 16

    var byteCount: Int { Self.fixedByteCount + payload.count }

    init(_ entry: Entry) {
        (index, term, payload) = (entry.index, entry.term, entry.payload)
    }

    /// - Returns: nil if it is too short.
    init?(_ body: UnsafeRawBufferPointer) {
        guard body.count >= Self.fixedByteCount else { return nil }
        func load(_ offset: Int) -> UInt64 {
            UInt64(littleEndian: body.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
        }
        (index, term) = (LogIndex(load(0)), Term(load(8)))
        payload = Array(body[Self.fixedByteCount...])
    }

    func write(to target: UnsafeMutableRawBufferPointer) {
        target.storeBytes(of: index.rawValue.littleEndian, toByteOffset: 0, as: UInt64.self)
        target.storeBytes(of: term.rawValue.littleEndian, toByteOffset: 8, as: UInt64.self)
        payload.withUnsafeBytes {
            UnsafeMutableRawBufferPointer(rebasing: target[Self.fixedByteCount...])
                .copyMemory(from: $0)
        }
    }

    /// Of the later term; of the higher index in the same term.
    func isNewer(than other: KeptMembership?) -> Bool {
        guard let other else { return true }
        return term != other.term ? term > other.term : index > other.index
    }

    /// - Throws: `.corrupt` if the membership cannot be decoded although its checksum holds.
    func decoded() throws(StorageError) -> NewestMembership {
        guard let membership = Membership(payload: payload) else {
            throw .corrupt("the copy of the membership of entry \(index) cannot be read")
        }
        return NewestMembership(index: index, term: term, membership: membership)
    }
}
