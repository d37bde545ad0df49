// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import RaftCore

/// What a damaged log still holds behind the damage.
///
/// Nothing is copied for it: what is behind a damaged place is never written over. The log goes on in
/// another segment, segments that the damage has cut off are set aside, and as long as the log is not
/// trusted no segment is given back. So salvage needs no file of its own that a power cut could tear,
/// and is found again at each opening until the repair is durably over.
///
/// Such an entry has its checksum (which begins from the salt of this log), and stands in a segment of
/// its own generation; what is missing is the chain. It may have been cut off by a leader, or never
/// have been synced: it is an entry all the same that some leader made, and it is for the core to
/// prove what it follows.
extension SegmentedLog {
    package func salvage(
        above applied: LogIndex, bytesMax: Int
    ) throws(StorageError) -> [Entry] {
        guard untrustedBelow != .zero else { return [] }
        var (found, byteCount) = ([Entry](), 0)
        for segment in map.segments {
            let content = try attempt { () throws(DiskError) in
                try SegmentContent(of: segment.file, byteCount: segment.byteCount)
            }
            collect(
                content, behind: segment.end, segment.generation, above: applied, bytesMax,
                &byteCount, &found)
        }
        for generation in setAside {
            guard let content = try setAsideContent(generation) else { continue }
            collect(
                content, behind: 0, generation, above: applied, bytesMax, &byteCount, &found)
        }
        // Last, for it is the least needed: who may lead has an intact part that is as good.
        if byteCount < bytesMax {
            let first = max(applied, map.base).next
            found += try read(
                from: first, upTo: max(first, lastIndex), bytesMax: bytesMax - byteCount)
        }
        return found
    }

    private func collect(
        _ content: SegmentContent, behind start: Int, _ generation: UInt64, above applied: LogIndex,
        _ bytesMax: Int, _ byteCount: inout Int, _ found: inout [Entry]
    ) {
        content.withBytes { bytes in
            LogEvidence.scan(
                bytes, until: content.writtenEnd, behind: start, generation: generation, epoch: 0,
                seed: seed
            ) { head, body in
                guard head.kind == .entry, head.index > applied,
                    let entry = EntryBody.read(head, body),
                    byteCount + entry.payload.count <= bytesMax
                else { return }
                byteCount += entry.payload.count
                found.append(entry)
            }
        }
    }

    /// Nil if the file is gone: then it held nothing of the log.
    private func setAsideContent(_ generation: UInt64) throws(StorageError) -> SegmentContent? {
        for name in [SegmentName.damaged(generation), SegmentName.log(generation)] {
            do throws(DiskError) {
                let file = try disk.open(name, create: false)
                defer { file.close() }
                return try SegmentContent(of: file, byteCount: Int(try file.byteCount))
            } catch {
                if error.kind != .notFound { throw StorageError(error) }
            }
        }
        return nil
    }
}
