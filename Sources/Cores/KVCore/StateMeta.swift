// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// What the state machine knows besides rows; stored in one row, written with each batch.
package struct StateMeta: Equatable, Sendable {
    package var appliedIndex: LogIndex = .zero
    package var appliedTerm: Term = .zero
    package var time: ClusterTime = .zero
    package var revision: Revision = .zero
    /// The oldest revision that can still be read; what was before it is gone or going.
    package var compacted: Revision = .zero
    /// History up to this change has been swept.
    package var swept: ChangeNumber = .zero
    package var activeVersion: UInt8 = KVVersion.first
    package var sessionCount: UInt64 = 0
    /// Bytes in the table of answers.
    package var storedAnswerBytes: UInt64 = 0
    /// The entry that carried `membership`; zero when there was none yet.
    package var membershipIndex: LogIndex = .zero
    /// In the encoding of that entry's payload.
    package var membership: [UInt8] = []
    /// The sum of the hashes of all rows.
    package var rowHash: UInt64 = 0
    package var leaseCount: UInt64 = 0
    package var figures = StateFigures()
    /// Comes from bytes of version 1, which had no figures: whoever read it counts the rows.
    package var needsCounting = false

    package init() {}

    /// There is history left that no readable revision can see.
    package var isSweeping: Bool {
        compacted > .zero && swept < ChangeNumber.last(of: compacted)
    }

    /// The hash over every table, this one included. Up to `activeVersion` 1 it is the hash that
    /// programs of that version take.
    package var contentHash: UInt64 {
        var copy = self
        copy.rowHash = 0
        var hash = RowHash(table: 5)
        hash.add(copy.encoded(version: activeVersion))
        return rowHash &+ hash.value
    }

    /// - Parameter version: 1 leaves out what state-machine version 1 did not know.
    package func encoded(version: UInt8 = KVVersion.supported) -> [UInt8] {
        var writer = ByteWriter(capacity: 144 + membership.count)
        writer.integer(appliedIndex.rawValue)
        writer.integer(appliedTerm.rawValue)
        writer.integer(time.milliseconds)
        writer.integer(revision.rawValue)
        writer.integer(compacted.rawValue)
        writer.integer(swept.rawValue)
        writer.byte(activeVersion)
        writer.integer(sessionCount)
        writer.integer(storedAnswerBytes)
        writer.integer(membershipIndex.rawValue)
        writer.integer(rowHash)
        writer.blob(membership)
        if version >= KVVersion.leases {
            writer.integer(leaseCount)
            figures.encode(into: &writer)
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        appliedIndex = LogIndex(try reader.integer("meta.appliedIndex"))
        appliedTerm = Term(try reader.integer("meta.appliedTerm"))
        time = ClusterTime(milliseconds: try reader.integer("meta.time"))
        revision = Revision(try reader.integer("meta.revision"))
        compacted = Revision(try reader.integer("meta.compacted"))
        swept = ChangeNumber(try reader.integer("meta.swept"))
        activeVersion = try reader.byte("meta.activeVersion")
        sessionCount = try reader.integer("meta.sessionCount")
        storedAnswerBytes = try reader.integer("meta.storedAnswerBytes")
        membershipIndex = LogIndex(try reader.integer("meta.membershipIndex"))
        rowHash = try reader.integer("meta.rowHash")
        membership = try reader.blob("meta.membership", max: KVLimits.membershipBytesMax)
        if reader.remaining > 0 {
            leaseCount = try reader.integer("meta.leaseCount")
            figures = try StateFigures(from: &reader)
        } else {
            needsCounting = true
        }
        try reader.end()
        guard revision.rawValue < 1 << (63 - ChangeNumber.placeBits) else {
            throw .outOfRange(field: "meta.revision")
        }
        guard compacted <= revision else { throw .outOfRange(field: "meta.compacted") }
    }
}
