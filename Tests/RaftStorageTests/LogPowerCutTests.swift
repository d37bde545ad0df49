// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage
import Testing

/// A random run of a log on a recorded disk, with notes of what was promised when.
private struct RecordedRun {
    let events: [WriteEvent]
    let steps: [LogOperation]
    let configuration: LogConfiguration

    /// What had been promised, and what had been begun, after the first `position` events: counts
    /// of steps.
    func promises(at position: Int) -> (durable: Int, begun: Int) {
        var result = (durable: 0, begun: 0)
        for event in events[..<position] {
            guard case .note(let text) = event else { continue }
            let words = text.split(separator: " ")
            guard words.count == 2, let count = Int(words[1]) else { continue }
            if words[0] == "durable" { result.durable = count }
            if words[0] == "begun" { result.begun = count }
        }
        return result
    }

    init(
        seed: UInt64, operationCount: Int = 60, omitsSync: Bool = false, reopens: Bool = true
    ) throws {
        var random = RandomSource(seed: seed)
        let recorder = WriteRecorder()
        let disk = RecordingDisk(MemoryDisk(), recorder: recorder)
        disk.omitsSync = omitsSync
        var configuration = LogConfiguration()
        configuration.segmentBytes = 16 << 10
        configuration.bufferBytesMax = random.chance(1, in: 2) ? 1000 : 1 << 20
        var log = try SegmentedLog(disk: disk, configuration: configuration, salt: seed)
        var model = LogModel()
        var steps: [LogOperation] = []
        for _ in 0..<operationCount {
            let operation = model.draw(&random)
            steps += operation.steps
            recorder.note("begun \(steps.count)")
            try operation.perform(on: log)
            model.apply(operation)
            if random.chance(1, in: 2) {
                try log.sync()
                recorder.note("durable \(steps.count)")
            }
            if reopens, random.chance(1, in: 12), log.firstIndex <= log.lastIndex {
                if random.chance(1, in: 2) {
                    try log.sync()
                } else {
                    // Killed: the kernel has what was written, the disk need not.
                    _ = try log.all()
                }
                log.close()
                log = try SegmentedLog(disk: disk, configuration: configuration, salt: seed)
                // What a node found when it started, it answers for.
                recorder.note("durable \(steps.count)")
            }
        }
        events = recorder.events
        self.steps = steps
        self.configuration = configuration
    }

    /// - Returns: what the log opened from the image has lost or made up; nil if nothing.
    func complaint(_ image: DiskImage, cutAt position: Int) throws -> String? {
        let (durable, begun) = promises(at: position)
        let log: SegmentedLog
        do throws(StorageError) {
            log = try SegmentedLog(
                disk: MemoryDisk(image: image), configuration: configuration, salt: 1)
        } catch {
            return "\(error)"
        }
        var model = LogModel()
        for step in steps[..<durable] { model.apply(step) }
        var complaints: [String] = []
        for count in durable...begun {
            if count > durable { model.apply(steps[count - 1]) }
            // Discarding needs no sync, so it may come early.
            var candidate = model
            for case .discard(let index, _) in steps[count..<begun] {
                candidate.discardedUpTo = min(
                    max(candidate.discardedUpTo, index), model.lastIndex)
            }
            let later = steps[count..<begun].compactMap(\.hardState)
            if let complaint = try candidate.disagreement(with: log.recovery, later: later)
                ?? candidate.disagreement(with: log)
            {
                complaints.append(complaint)
            } else {
                return nil
            }
        }
        return "after \(durable) of \(begun) steps: \(complaints.joined(separator: "; "))"
    }
}

/// Power cuts at random moments of random runs (DESIGN §6).
@Suite struct LogPowerCutTests {
    private static let seeds = UInt64(1)...300
    private static let imagesPerRun = 20

    private func complaints(omitsSync: Bool, seeds: ClosedRange<UInt64>) throws -> [String] {
        var result: [String] = []
        for seed in seeds {
            let run = try RecordedRun(seed: seed, omitsSync: omitsSync)
            var random = RandomSource(seed: seed &* 1_000_003)
            var replay = PowerCutReplay(events: run.events)
            let cuts = (0..<Self.imagesPerRun).map { _ in random.uniform(0..<run.events.count + 1) }
            for cut in cuts.sorted() {
                replay.advance(to: cut)
                let image = replay.image(using: &random)
                if let complaint = try run.complaint(image, cutAt: cut) {
                    result.append("seed \(seed), cut at \(cut): \(complaint)")
                }
            }
        }
        return result
    }

    @Test func losesNothingThatWasSynced() throws {
        let complaints = try complaints(omitsSync: false, seeds: Self.seeds)
        #expect(complaints.isEmpty, "\(complaints.count): \(complaints.first ?? "")")
    }

    @Test func aRemovedSyncIsFound() throws {
        let complaints = try complaints(omitsSync: true, seeds: 1...3)
        #expect(complaints.count > 20)
    }

    /// A power cut, then work, then another one: what the first left behind must not come back.
    @Test func survivesACutAfterACut() throws {
        for seed in UInt64(1)...150 {
            var random = RandomSource(seed: seed)
            let run = try RecordedRun(seed: seed, operationCount: 12, reopens: false)
            var replay = PowerCutReplay(events: run.events)
            let cut = random.uniform(0..<run.events.count + 1)
            replay.advance(to: cut)
            let image = replay.image(using: &random)
            guard try run.complaint(image, cutAt: cut) == nil else { continue }
            try cutAgain(image, run.configuration, seed: seed, &random)
        }
    }

    private func cutAgain(
        _ image: DiskImage, _ configuration: LogConfiguration, seed: UInt64,
        _ random: inout RandomSource
    ) throws {
        let recorder = WriteRecorder()
        let disk = RecordingDisk(MemoryDisk(image: image), recorder: recorder)
        let log = try SegmentedLog(disk: disk, configuration: configuration, salt: seed)
        var model = LogModel(recovered: log)
        model.entries = try log.all()
        var durable = model
        var positions = [(recorder.count, model)]
        var states: [HardState] = []
        for _ in 0..<8 {
            let operation = model.draw(&random)
            guard case .write = operation else { continue }
            for step in operation.steps {
                try step.perform(on: log)
                model.apply(step)
                positions.append((recorder.count, model))
                if let state = step.hardState { states.append(state) }
            }
            if random.chance(1, in: 3) {
                try log.sync()
                durable = model
                positions = [(recorder.count, model)]
                states = []
            }
        }
        var replay = PowerCutReplay(events: recorder.events)
        replay.advance(to: recorder.events.count)
        for _ in 0..<4 {
            let reopened = try SegmentedLog(
                disk: MemoryDisk(image: replay.image(using: &random)),
                configuration: configuration, salt: 1)
            let isKnown = try positions.contains { _, model in
                try model.disagreement(with: reopened) == nil
                    && model.disagreement(with: reopened.recovery, later: states) == nil
            }
            #expect(
                isKnown,
                "seed \(seed): \(reopened.lastIndex), \(durable.lastIndex) was durable")
        }
    }
}

extension LogOperation {
    fileprivate var hardState: HardState? {
        if case .write(let write) = self { write.hardState } else { nil }
    }
}

extension LogModel {
    fileprivate init(recovered log: SegmentedLog) {
        base = log.recovery.snapshotIndex
        baseTerm = log.recovery.snapshotTerm
        discardedUpTo = base
        hardState = log.recovery.hardState
    }
}
