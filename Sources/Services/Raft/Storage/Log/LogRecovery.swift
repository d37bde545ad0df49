// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import RaftCore

/// Reads a log as some crash left it. Changes nothing on the disk.
///
/// The records form a chain, and the log is what the chain holds. Where it ends, one of three things
/// is behind:
///
/// - nothing, or records of an earlier use of the segment: a clean end;
/// - pieces of a batch that was never synced. Later sectors of it may be there while earlier ones are
///   missing, so valid records after a hole prove nothing by themselves;
/// - a hole in what had been synced, and may have been acknowledged.
///
/// The last two are told apart by `syncedTo`: each record names the offset below which the segment
/// was durable before that record was written. A hole below the `syncedTo` of any valid record
/// behind it is damage; a hole above all of them is a torn tail that nobody was told about. The mark
/// after each sync makes this hold for the last batch, too; it stands a block away, so that no one
/// bad block takes both, and each segment keeps the room for it. A segment counts as durable up to
/// the `previousEnd` that its successor names.
///
/// A torn tail is cut off, and the node is as good as ever; this must be so, because after a power
/// cut of all machines every log may end in one. After damage the log ends before the hole, and
/// `untrustedBelow` says how far it may have gone: the node neither votes nor acknowledges until a
/// leader has filled that in (protocol-aware recovery, Alagappan and others, FAST 2018). This is
/// remembered on disk until a write with `endsRepair`, so that a second restart does not make the
/// node forget what it lacks.
///
/// Rejected: to take any valid record behind a hole for damage (a plain power cut would silence a
/// whole cluster); to cut off every invalid tail (one flipped bit would silently lose acknowledged
/// entries, votes included).
///
/// Not detected: damage to the very last batch when power fails before its mark, which is not synced,
/// got to the disk. Should it hold a vote, the second copy of that is used all the same.
struct LogRecovery {
    struct Findings {
        /// Nil if there is no usable log.
        var replay: LogReplay?
        /// What a damaged place hides, nil without one.
        var damage: LogEvidence?
        /// Below this the last segment of the log had been synced.
        var syncedTo = 0
        /// The newest hard state behind the end of the log.
        var laterState = HardState()
        /// Generations cut off from the log by damage.
        var setAside: [UInt64] = []
        /// Segment files that hold nothing of the log.
        var unused: [UInt64] = []
        /// The highest generation and epoch that anything on the disk speaks of.
        var generationMax: UInt64 = 0
        var epochMax: UInt32 = 0
        /// The last segment of the log is of a format to which nothing new may be added.
        var isOfOlderVersion = false
    }

    private struct Candidate {
        let generation: UInt64
        let file: any DiskFile
        let byteCount: Int
        /// Nil if no copy of it is whole.
        let header: SegmentHeader?

        func content(in memory: SegmentMemory? = nil) throws(StorageError) -> SegmentContent {
            try onDisk { () throws(DiskError) in
                try SegmentContent(of: file, byteCount: byteCount, in: memory)
            }
        }
    }

    let disk: any Disk
    let acceptsRecycled: Bool

    func run() throws(StorageError) -> Findings {
        var findings = Findings()
        var candidates = try openSegments()
        findings.generationMax = candidates.last?.generation ?? 0
        guard let seed = candidates.last(where: { $0.header != nil })?.header?.seed else {
            for candidate in candidates { try refuseIfWritten(candidate) }
            findings.unused = candidates.map(\.generation)
            return findings
        }
        if let start = candidates.lastIndex(where: { $0.header?.isStart == true }) {
            let before = candidates[..<start].map(\.generation)
            // A log that began anew while it was damaged may still hold what nobody else has.
            if candidates[start].header?.untrustedBelow == .zero {
                findings.unused += before
            } else {
                findings.setAside += before
            }
            candidates.removeFirst(start)
        }
        let run = try link(candidates, seed: seed, &findings)
        try replay(run, seed: seed, &findings)
        return findings
    }

    private func openSegments() throws(StorageError) -> [Candidate] {
        var candidates: [Candidate] = []
        let names = try onDisk { () throws(DiskError) in try disk.list() }
        for name in names {
            guard let generation = SegmentName.generation(name, prefix: "log-") else { continue }
            let (file, byteCount, block) = try onDisk { () throws(DiskError) in
                let file = try disk.open(name, create: false)
                let block = try file.read(at: 0, count: SegmentHeader.byteCount)
                return (file, Int(try file.byteCount), block)
            }
            var header: SegmentHeader?
            switch SegmentHeader.read(block, generation: generation) {
            case .header(let found): header = found
            case .none: header = nil
            case .newerVersion(let version):
                throw .newerVersion(
                    "\(name) has format \(version), this program reads \(SegmentHeader.version): "
                        + "start a newer one")
            }
            candidates.append(
                Candidate(
                    generation: generation, file: file, byteCount: byteCount, header: header))
        }
        return candidates.sorted { $0.generation < $1.generation }
    }

    /// Without any header nothing can be told from anything. A log that has never been written to
    /// may be begun anew; one that has been must not be taken for empty.
    private func refuseIfWritten(_ candidate: Candidate) throws(StorageError) {
        let content = try candidate.content()
        let isUntouched = content.withBytes {
            $0.prefix(content.writtenEnd).dropFirst(SegmentHeader.byteCount).allSatisfy { $0 == 0 }
        }
        guard isUntouched else {
            throw .corrupt(
                "\(SegmentName.log(candidate.generation)) has lost its header, and no other segment "
                    + "says what it holds")
        }
    }

    /// The segments that go on from each other, up to the newest. What does not belong to them has
    /// been discarded, or set aside by an earlier recovery, or never got further than its name.
    private func link(
        _ candidates: [Candidate], seed: UInt32, _ findings: inout Findings
    ) throws(StorageError) -> [Candidate] {
        let chain = chain(candidates)
        var run: [Candidate] = []
        for candidate in candidates {
            guard let header = candidate.header else {
                let evidence = try evidence(candidate, behind: 0, epoch: 0, seed: seed)
                findings.epochMax = max(findings.epochMax, evidence.epoch)
                if evidence.provesLoss {
                    run.append(candidate)
                } else {
                    findings.unused.append(candidate.generation)
                }
                continue
            }
            findings.epochMax = max(findings.epochMax, header.epoch)
            if let first = chain.min(), candidate.generation > first,
                !chain.contains(candidate.generation)
            {
                // Cut off by damage; others of them may have their new names already.
                findings.setAside.append(candidate.generation)
                continue
            }
            if let previous = run.lastIndex(where: { $0.generation == header.previousGeneration }) {
                findings.setAside += run[(previous + 1)...].map(\.generation)
                run.removeSubrange((previous + 1)...)
            } else {
                // Removals reach the disk in any order: a gap is a discarded segment.
                findings.unused += run.map(\.generation)
                run.removeAll()
            }
            run.append(candidate)
        }
        while run.count > 1, run[0].header == nil {
            findings.setAside.append(run.removeFirst().generation)
        }
        return run
    }

    /// The newest segment, and those that it goes on from, as far back as they are there.
    private func chain(_ candidates: [Candidate]) -> Set<UInt64> {
        var chain: Set<UInt64> = []
        var next = candidates.last { $0.header != nil }
        while let candidate = next, chain.insert(candidate.generation).inserted {
            next = candidates.first { $0.generation == candidate.header?.previousGeneration }
        }
        return chain
    }

    private func replay(
        _ run: [Candidate], seed: UInt32, _ findings: inout Findings
    ) throws(StorageError) {
        var memory: SegmentMemory?
        for (position, candidate) in run.enumerated() {
            let rest = run[(position + 1)...]
            guard let header = candidate.header else {
                let own = try evidence(candidate, behind: 0, epoch: 0, seed: seed)
                findings.setAside.append(candidate.generation)
                findings.damage = try damage(own, rest, seed: seed, &findings)
                break
            }
            var replay = findings.replay ?? LogReplay(header)
            replay.acceptsRecycled = acceptsRecycled
            replay.enter(header)
            let segment = LogSegment(
                generation: candidate.generation, file: candidate.file,
                byteCount: candidate.byteCount)
            let next = rest.first?.header
            let content = try candidate.content(in: memory)
            memory = content.reusable
            content.withBytes { bytes in
                let limit = min(bytes.count, next.map { Int($0.previousEnd) } ?? bytes.count)
                replay.replay(segment, UnsafeRawBufferPointer(rebasing: bytes[..<limit]))
            }
            findings.replay = replay
            findings.isOfOlderVersion = header.version < SegmentHeader.version
            findings.epochMax = max(findings.epochMax, replay.epoch)
            if let next, Int(next.previousEnd) == segment.end, next.chain == replay.chain {
                continue
            }
            let found = LogEvidence(
                content, behind: segment.end, generation: candidate.generation,
                epoch: replay.epoch, seed: seed)
            findings.epochMax = max(findings.epochMax, found.epoch)
            findings.laterState = found.hardState
            findings.syncedTo = max(replay.syncedTo, found.syncedTo)
            if !rest.isEmpty || found.provesLoss {
                findings.damage = try damage(found, rest, seed: seed, &findings)
            }
            break
        }
    }

    /// Gathers what the segments behind a damaged place say about what the log once held.
    private func damage(
        _ first: LogEvidence, _ rest: ArraySlice<Candidate>, seed: UInt32,
        _ findings: inout Findings
    ) throws(StorageError) -> LogEvidence {
        var sum = first
        for candidate in rest {
            if let header = candidate.header { sum.add(header) }
            sum.add(try evidence(candidate, behind: 0, epoch: 0, seed: seed))
            findings.setAside.append(candidate.generation)
        }
        findings.epochMax = max(findings.epochMax, sum.epoch)
        // Where the disk was full before the record of a term, an entry alone tells of it, and a start
        // since then has put it in force.
        sum.add(HardState(term: sum.lastTerm))
        findings.laterState = sum.hardState
        return sum
    }

    private func evidence(
        _ candidate: Candidate, behind hole: Int, epoch: UInt32, seed: UInt32
    ) throws(StorageError) -> LogEvidence {
        LogEvidence(
            try candidate.content(), behind: hole, generation: candidate.generation, epoch: epoch,
            seed: seed)
    }
}

extension StorageError {
    init(_ error: DiskError) {
        self = error.kind == .locked ? .locked(error.operation) : .disk(error.description)
    }
}

/// Carries out disk calls, with their errors as storage errors.
func onDisk<Result>(
    _ body: () throws(DiskError) -> Result
) throws(StorageError) -> Result {
    do throws(DiskError) { return try body() } catch { throw StorageError(error) }
}
