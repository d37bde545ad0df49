// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import RaftCore
import RaftStorage

/// Backups of single nodes, taken while all goes on, and restored at once to a store of their own. The
/// file and what is made of it are those of production; the streams between client and daemon are not
/// here.
extension World {
    private static let backupsMax = 6

    /// Before a checkpoint.
    func backUpIfDue(_ shell: RaftShell) throws(Violation) {
        guard part == .trouble, shell.state.membership != nil,
            lookRandom.chance(1, in: 3), statistics.backups < Self.backupsMax
        else { return }
        statistics.backups += 1
        note("n\(shell.node.id) is backed up at \(shell.state.appliedIndex)")
        do {
            let (header, restored) = try restore(try backUp(shell), shell)
            try observer.restored(shell.index, header, restored, from: shell.state)
        } catch let violation as Violation {
            throw violation
        } catch {
            throw Violation(
                .safety, "a backup can be restored", "of n\(shell.node.id) it cannot: \(error)")
        }
    }

    private func backUp(_ shell: RaftShell) throws -> [UInt8] {
        let state = shell.state
        let isMixed = scenario.planted.contains(.backupMixesMoments)
        let described = isMixed ? shell.node.checkpoint : state
        let header = BackupHeader(
            cluster: "\(scenario.seed)", revision: described.revision,
            index: described.appliedIndex, term: described.appliedTerm, wallMilliseconds: 0)
        let reader = try state.makeSnapshot()
        defer { reader.close() }
        var writer = BackupWriter()
        var file = writer.begin(header)
        while let piece = try reader.next() {
            writer.add(piece)
            file += piece
        }
        return file + writer.end()
    }

    private func restore(
        _ file: [UInt8], _ shell: RaftShell
    ) throws -> (BackupHeader, MemoryState) {
        var checker = BackupChecker()
        var rest = file[...]
        while !rest.isEmpty {
            let piece = rest.prefix(lookRandom.uniform(1..<100_000))
            try checker.append(Array(piece))
            rest = rest.dropFirst(piece.count)
        }
        let header = try checker.finish()
        let begin = Int(checker.bodyOffset)
        let body = Array(file[begin..<begin + Int(checker.bodyBytes)])
        var backup = StateFromBackup {
            var left: [UInt8]? = body
            return { () throws(StorageError) -> [UInt8]? in
                defer { left = nil }
                return left
            }
        }
        let state = emptyState()
        #if ASPEN_TEST_BUILD
            backup.plantedBug = state.plantedBug
        #endif
        let membership = Membership(
            cluster: ClusterID(UInt128(scenario.seed) &+ 1), voters: [shell.node.id],
            members: [shell.node.member])
        _ = try backup.put(into: state, as: membership)
        return (header, state)
    }
}
