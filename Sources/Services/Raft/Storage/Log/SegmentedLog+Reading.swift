// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import RaftCore

extension SegmentedLog {
    /// About how much is read at once.
    private static let windowByteCount = 256 << 10

    /// Reads entries of one segment, in windows of neighbouring records.
    ///
    /// - Returns: true if `bytesMax` was reached.
    func read(
        _ from: LogIndex, through last: LogIndex, in segment: LogSegment, bytesMax: Int,
        _ byteCount: inout Int, _ entries: inout [Entry]
    ) throws(StorageError) -> Bool {
        var index = from
        while index <= last {
            let window = min(Self.windowByteCount, max(bytesMax - byteCount, 0))
            let start = segment.offset(of: index)
            var end = index
            while end < last, endOffset(of: end, in: segment) - start < window {
                end = end.next
            }
            let count = endOffset(of: end, in: segment) - start
            let bytes = try onDisk { () throws(DiskError) in
                try segment.file.read(at: UInt64(start), count: count)
            }
            while index <= end {
                let place = segment.offset(of: index) - start
                guard let entry = bytes.withUnsafeBytes({ entry(index, $0, at: place, segment) })
                else {
                    throw .corrupt(
                        "entry \(index) in \(SegmentName.log(segment.generation)) at "
                            + "\(start + place) fails its checksum")
                }
                if !entries.isEmpty, byteCount + entry.payload.count > bytesMax { return true }
                byteCount += entry.payload.count
                entries.append(entry)
                index = index.next
            }
        }
        return false
    }

    /// Where the record is over at the latest: at the next entry, or where the segment's records end.
    private func endOffset(of index: LogIndex, in segment: LogSegment) -> Int {
        index == segment.lastEntry ? segment.end : segment.offset(of: index.next)
    }

    private func entry(
        _ index: LogIndex, _ bytes: UnsafeRawBufferPointer, at offset: Int, _ segment: LogSegment
    ) -> Entry? {
        guard var head = RecordHead.read(bytes, at: offset, salt: seed), head.kind == .entry else {
            return nil
        }
        #if ASPEN_TEST_BUILD
            if configuration.plantedBugs.contains(.acceptRecycledRecord) {
                head.generation = segment.generation
                head.index = index
                head.term = map.term(at: index) ?? head.term
            }
        #endif
        guard head.generation == segment.generation, head.index == index,
            head.term == map.term(at: index)
        else { return nil }
        let start = offset + RecordHead.byteCount
        return EntryBody.read(
            head, UnsafeRawBufferPointer(rebasing: bytes[start..<start + head.bodyByteCount]))
    }
}
