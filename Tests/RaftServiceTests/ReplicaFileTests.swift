// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import Testing

@testable import RaftService

@Suite struct ReplicaFileTests {
    private func disk(holding text: [UInt8]) throws -> MemoryDisk {
        let disk = MemoryDisk()
        let file = try disk.open(ReplicaFile.name, create: true)
        try file.write(text, at: 0)
        try file.sync()
        file.close()
        return disk
    }

    /// Whichever it is, of whichever byte; on the disk, too.
    @Test func anyFlippedBitIsMended() throws {
        let written = ReplicaFile(node: NodeID(3), replica: ReplicaID(0x90f1_c6a2_b1e4_7d05))
        let text = Array(written.text.utf8)
        for place in text.indices {
            for bit in 0..<8 {
                var flipped = text
                flipped[place] ^= 1 << UInt8(bit)
                let disk = try disk(holding: flipped)
                let found = try ReplicaFile.open(
                    in: disk, node: NodeID(3), newReplica: ReplicaID(1))
                #expect(found.file == written && found.isMended, "bit \(bit) of byte \(place)")
                let again = try ReplicaFile.open(
                    in: disk, node: NodeID(3), newReplica: ReplicaID(1))
                #expect(again.file == written && !again.isMended)
            }
        }
    }

    @Test func moreDamageIsNamed() throws {
        var text = Array(ReplicaFile(node: NodeID(3), replica: ReplicaID(9)).text.utf8)
        text[20] ^= 1
        text[24] ^= 4
        let disk = try disk(holding: text)
        do {
            _ = try ReplicaFile.open(in: disk, node: NodeID(3), newReplica: ReplicaID(1))
            Issue.record("it was believed")
        } catch {
            #expect(error.code == .corrupt && error.message.contains("'replica'"))
        }
    }

    @Test func anotherNodesDirectoryIsRefused() throws {
        let disk = try disk(
            holding: Array(ReplicaFile(node: NodeID(3), replica: ReplicaID(9)).text.utf8))
        do {
            _ = try ReplicaFile.open(in: disk, node: NodeID(1), newReplica: ReplicaID(1))
            Issue.record("it was taken")
        } catch { #expect(error.code == .invalidArgument) }
    }
}
