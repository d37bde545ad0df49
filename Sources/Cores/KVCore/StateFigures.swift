// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// How much there is, kept with every change: what compaction is decided by.
package struct StateFigures: Equatable, Sendable {
    /// What a row costs besides its key (which lies in two tables) and its value.
    package static let rowBytes: UInt64 = 64

    /// Changes kept, and their bytes.
    package var changeCount: UInt64 = 0
    package var changeBytes: UInt64 = 0
    /// Of these, the ones that are the present value of a key.
    package var liveCount: UInt64 = 0
    package var liveBytes: UInt64 = 0

    package init() {}

    /// Changes that only a reader of the past can see, tombstones included.
    package var historyCount: UInt64 { changeCount - liveCount }
    package var historyBytes: UInt64 { changeBytes - liveBytes }

    package static func bytes(keyBytes: Int, valueBytes: Int) -> UInt64 {
        UInt64(2 * keyBytes + valueBytes) + rowBytes
    }

    /// - Parameter replaced: size of the value that the key had until now; nil: it did not exist.
    /// - Returns: false if there cannot have been one.
    mutating func inserted(_ change: Change, replaced: Int?) -> Bool {
        let keyBytes = change.header.key.count
        let bytes = Self.bytes(keyBytes: keyBytes, valueBytes: change.value.count)
        changeCount += 1
        changeBytes += bytes
        if let replaced {
            let replacedBytes = Self.bytes(keyBytes: keyBytes, valueBytes: replaced)
            guard liveCount > 0, liveBytes >= replacedBytes else { return false }
            liveCount -= 1
            liveBytes -= replacedBytes
        }
        if !change.header.isTombstone {
            liveCount += 1
            liveBytes += bytes
        }
        return true
    }

    /// Only what is history is ever swept.
    /// - Returns: false if there is none.
    mutating func swept(keyBytes: Int, valueBytes: Int) -> Bool {
        let bytes = Self.bytes(keyBytes: keyBytes, valueBytes: valueBytes)
        guard historyCount > 0, historyBytes >= bytes else { return false }
        changeCount -= 1
        changeBytes -= bytes
        return true
    }

    func encode(into writer: inout ByteWriter) {
        writer.integer(changeCount)
        writer.integer(changeBytes)
        writer.integer(liveCount)
        writer.integer(liveBytes)
    }

    init(from reader: inout ByteReader) throws(DecodeError) {
        changeCount = try reader.integer("figures.changeCount")
        changeBytes = try reader.integer("figures.changeBytes")
        liveCount = try reader.integer("figures.liveCount")
        liveBytes = try reader.integer("figures.liveBytes")
        guard liveCount <= changeCount, liveBytes <= changeBytes else {
            throw .outOfRange(field: "figures.live")
        }
    }
}
