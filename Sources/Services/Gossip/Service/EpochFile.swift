// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenDisk
import AspenTypes
import GossipCore
import Logging

/// The file `epoch` of aspend-gossip's state directory: the greatest epoch that this node has announced
/// itself with, so that the next start has a greater one whatever the wall clock says.
///
///     aspen-epoch 1
///     epoch 1790000000000
///     crc 1a2b3c4d
///
/// Peers correct a node whose epoch is too small, after some seconds in which they do not believe it; so a
/// file that is lost, damaged or cannot be written is worth a warning and no more.
package final class EpochFile {
    static let name = "epoch"
    private static let format = 1

    private let disk: (any Disk)?
    private let logger: Logger
    private var kept: UInt64?

    /// - Parameter disk: nil: nothing is kept.
    package init(disk: (any Disk)?, logger: Logger) {
        self.disk = disk
        self.logger = logger
        guard let disk else { return }
        do {
            kept = try Self.read(disk)
        } catch {
            logger.warning(
                "cannot read the epoch of the last start: peers may take this node for an older one at first",
                metadata: ["error": "\(error)"])
        }
    }

    /// The epoch of a start, kept before it is used.
    ///
    /// - Parameter wall: milliseconds since 1970, as good a number as any at the first start.
    package func begin(wall: UInt64) -> UInt64 {
        let next = max(wall, kept.map { $0 + 1 } ?? 1)
        let epoch = min(next, AnnouncementVersion.epochMax)
        keep(epoch)
        return epoch
    }

    /// A greater one is in use now.
    package func keep(_ epoch: UInt64) {
        guard epoch > kept ?? 0 else { return }
        kept = epoch
        guard let disk else { return }
        do throws(DiskError) {
            try write(epoch, to: disk)
        } catch {
            logger.warning("cannot keep the epoch", metadata: ["error": "\(error)"])
        }
    }

    // MARK: - On disk

    private func write(_ epoch: UInt64, to disk: any Disk) throws(DiskError) {
        let file = try disk.open(Self.name + ".new", create: true)
        defer { file.close() }
        try file.truncate(to: 0)
        try file.write(Array(Self.text(epoch).utf8), at: 0)
        try file.sync()
        try disk.rename(Self.name + ".new", to: Self.name)
        try disk.syncDirectory()
    }

    /// - Returns: nil when there is none yet.
    private static func read(_ disk: any Disk) throws -> UInt64? {
        let bytes: [UInt8]
        do throws(DiskError) {
            let file = try disk.open(name, create: false)
            defer { file.close() }
            bytes = try file.read(at: 0, count: 256)
        } catch {
            if error.kind == .notFound { return nil }
            throw error
        }
        if let found = OneBit.mending(bytes, { Self.epoch(of: $0) }) { return found.value }
        throw AspenError(.corrupt, "the file 'epoch' is damaged")
    }

    private static func text(_ epoch: UInt64) -> String {
        let body = "aspen-epoch \(format)\nepoch \(epoch)\n"
        return body + "crc \(String(CRC32C.of(body.utf8), radix: 16))\n"
    }

    private static func epoch(of bytes: [UInt8]) -> UInt64? {
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        guard lines.count == 3, let word = lines[1].split(separator: " ").last,
            let epoch = UInt64(word), (1...AnnouncementVersion.epochMax).contains(epoch),
            Array(text(epoch).utf8) == bytes
        else { return nil }
        return epoch
    }
}
