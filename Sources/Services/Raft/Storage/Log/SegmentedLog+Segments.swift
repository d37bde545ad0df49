// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import RaftCore

/// The work of making the next segment ready: it touches only files that the log does not use, so
/// another thread may do it while the log goes on.
package struct SegmentPreparation: Sendable {
    let disk: any Disk
    let generation: UInt64
    let byteCount: Int
    /// A discarded segment to use again; zeros are written to a new file otherwise.
    let spare: UInt64?

    /// What it takes of the disk.
    package var neededBytes: Int { spare == nil ? byteCount : 0 }

    /// Makes the file durable, its name included. Takes as long as writing `byteCount` bytes does.
    package func run() throws(StorageError) -> PreparedSegment {
        let name = SegmentName.log(generation)
        let file = try onDisk { () throws(DiskError) in
            if let spare {
                try disk.rename(SegmentName.spare(spare), to: name)
                let file = try disk.open(name, create: false)
                try fill(file)
                try disk.syncDirectory()
                return file
            }
            let unfinished = SegmentName.unfinished(generation)
            do throws(DiskError) {
                let file = try disk.open(unfinished, create: true)
                try fill(file)
                try disk.rename(unfinished, to: name)
                try disk.syncDirectory()
                return file
            } catch {
                // A full disk shall not be fuller for having been asked.
                try? disk.remove(unfinished)
                throw error
            }
        }
        return PreparedSegment(generation: generation, byteCount: byteCount, file: file)
    }

    /// Brings the file to its size. What a spare holds may stay: it is of another generation.
    private func fill(_ file: any DiskFile) throws(DiskError) {
        var offset = Int(try file.byteCount)
        guard offset != byteCount else { return }
        if offset > byteCount { try file.truncate(to: UInt64(byteCount)) }
        let zeros = [UInt8](repeating: 0, count: min(1 << 20, max(byteCount - offset, 0)))
        while offset < byteCount {
            let count = min(zeros.count, byteCount - offset)
            try file.write(
                count == zeros.count ? zeros : Array(zeros[..<count]), at: UInt64(offset))
            offset += count
        }
        try file.sync()
    }
}

/// What a preparation made.
package struct PreparedSegment: Sendable {
    let generation: UInt64
    let byteCount: Int
    let file: any DiskFile
}

extension SegmentedLog {
    /// False while the disk has no room for the next segment: then only what gives space back should
    /// be written, and the log be discarded as far as possible.
    package var isNextSegmentReady: Bool { prepared != nil }

    /// Prepares the next segment, if there is none and the current one is a quarter full. Takes tens
    /// of milliseconds. An error (a full disk) leaves the log as it was; call again later.
    package func prepareNextIfNeeded() throws(StorageError) {
        guard let preparation = preparation() else { return }
        do throws(StorageError) {
            adopt(try preparation.run())
        } catch {
            preparationFailed(preparation)
            throw error
        }
    }

    /// The same in two halves: run the result on any thread, then hand what it made to `adopt`, or
    /// call `preparationFailed`, on the log's thread. Nil if there is nothing to prepare.
    package func preparation() -> SegmentPreparation? {
        guard failure == nil, prepared == nil, !isPreparing, let current = map.segments.last,
            current.end * 4 >= configuration.segmentBytes
        else { return nil }
        isPreparing = true
        return makePreparation()
    }

    package func adopt(_ made: PreparedSegment) {
        isPreparing = false
        let segment = LogSegment(
            generation: made.generation, file: made.file, byteCount: made.byteCount)
        guard failure == nil else { return made.file.close() }
        if prepared != nil || made.generation < (map.segments.last?.generation ?? 0) {
            // The log could not wait. A lower generation is never used after a higher one.
            return leaveAsSpare(segment)
        }
        prepared = segment
    }

    package func preparationFailed(_ preparation: SegmentPreparation) {
        isPreparing = false
        guard let spare = preparation.spare else { return }
        // It has either name; the next opening finds it under both.
        if (try? disk.rename(SegmentName.log(preparation.generation), to: SegmentName.spare(spare)))
            != nil
        {
            spares.append(spare)
        }
    }

    /// For the log itself, when nobody has prepared a segment in time.
    func prepareNext() throws(StorageError) {
        let made = try makePreparation().run()
        prepared = LogSegment(
            generation: made.generation, file: made.file, byteCount: made.byteCount)
    }

    private func makePreparation() -> SegmentPreparation {
        defer { nextGeneration += 1 }
        return SegmentPreparation(
            disk: disk, generation: nextGeneration, byteCount: configuration.segmentBytes,
            spare: spares.popLast())
    }

    // MARK: - Giving back

    package func discard(upTo index: LogIndex, term: Term) throws(StorageError) {
        if let failure { throw failure }
        if let known = map.term(at: index) {
            precondition(known == term, "entry \(index) is of term \(known), not \(term)")
        }
        // Behind the damage in it there may be what nobody else has.
        guard untrustedBelow == .zero else { return }
        while let segment = map.removeFirstSegment(ifUpTo: index) {
            // First what makes it dispensable has to be durable: the header that the log then begins
            // with, the truncation that voids the entries here.
            try sync()
            try recycle(segment)
        }
        try removeSetAside()
    }

    /// Keeps the file for use again, or removes it. Needs no sync: if the name comes back after a
    /// power cut, nothing links to it any more.
    func recycle(_ segment: LogSegment) throws(StorageError) {
        segment.file.close()
        try giveBack(
            segment.generation, isUsable: segment.byteCount == configuration.segmentBytes)
    }

    private func giveBack(_ generation: UInt64, isUsable: Bool) throws(StorageError) {
        let name = SegmentName.log(generation)
        let isKept = isUsable && spares.count < configuration.sparesMax
        try attempt { () throws(DiskError) in
            if isKept {
                try disk.rename(name, to: SegmentName.spare(generation))
            } else {
                try disk.remove(name)
            }
        }
        if isKept { spares.append(generation) }
    }

    private func leaveAsSpare(_ segment: LogSegment) {
        segment.file.close()
        let name = SegmentName.spare(segment.generation)
        if (try? disk.rename(SegmentName.log(segment.generation), to: name)) != nil {
            spares.append(segment.generation)
        }
    }

    // MARK: - Opening

    /// Sorts out what else lies in the directory.
    func clean(unused: [UInt64]) throws(StorageError) {
        let names = try onDisk { () throws(DiskError) in try disk.list() }
        for name in names {
            if let generation = SegmentName.generation(name, prefix: "spare-") {
                nextGeneration = max(nextGeneration, generation + 1)
                spares.append(generation)
            } else if let generation = SegmentName.generation(name, prefix: "damaged-") {
                nextGeneration = max(nextGeneration, generation + 1)
                setAside.append(generation)
            } else if SegmentName.generation(name, prefix: "new-") != nil {
                try attempt { () throws(DiskError) in try disk.remove(name) }
            }
        }
        while spares.count > configuration.sparesMax {
            let name = SegmentName.spare(spares.removeLast())
            try attempt { () throws(DiskError) in try disk.remove(name) }
        }
        for generation in unused { try giveBack(generation, isUsable: true) }
    }

    /// Moves what damage has cut off out of the way, once the log has a new end.
    func putAside() throws(StorageError) {
        guard untrustedBelow != .zero else { return try removeSetAside() }
        for generation in setAside {
            do throws(DiskError) {
                try disk.rename(
                    SegmentName.log(generation), to: SegmentName.damaged(generation))
            } catch {
                // It was moved by an earlier opening.
                if error.kind != .notFound { throw StorageError(error) }
            }
        }
        if !setAside.isEmpty { try attempt { () throws(DiskError) in try disk.syncDirectory() } }
    }

    private func removeSetAside() throws(StorageError) {
        for generation in setAside {
            for name in [SegmentName.damaged(generation), SegmentName.log(generation)] {
                do throws(DiskError) {
                    try disk.remove(name)
                } catch {
                    if error.kind != .notFound { throw StorageError(error) }
                }
            }
        }
        setAside.removeAll()
    }
}
