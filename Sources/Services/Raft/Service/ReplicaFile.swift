// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenDisk
import AspenTypes
import RaftStorage

/// The file `replica`: whose data directory this is. Born with it, and never changed.
///
///     aspen-replica 1
///     node 3
///     replica 90f1c6a2b1e47d05
///     crc 1a2b3c4d
package struct ReplicaFile: Equatable, Sendable {
    static let name = "replica"
    static let format = 1

    package var node: NodeID
    package var replica: ReplicaID

    /// A file, and whether a flipped bit of it had to be mended.
    package typealias Found = (file: ReplicaFile, isMended: Bool)

    package init(node: NodeID, replica: ReplicaID) {
        self.node = node
        self.replica = replica
    }

    /// Reads the file, or makes it if there is none. A single flipped bit is found by the checksum
    /// and mended on the disk, too.
    ///
    /// - Throws: `invalidArgument` if the directory is another node's; `corrupt`, `storage`,
    ///   `unsupportedVersion`.
    package static func open(
        in disk: any Disk, node: NodeID, newReplica: ReplicaID
    ) throws(AspenError) -> Found {
        do {
            let found = try read(disk)
            guard found.file.node == node else {
                throw AspenError(
                    .invalidArgument,
                    "this data directory belongs to node \(found.file.node), not \(node): start with "
                        + "--node-id \(found.file.node), or give node \(node) a directory of its own"
                )
            }
            if found.isMended { try write(found.file, to: disk) }
            return found
        } catch let error as DiskError where error.kind == .notFound {
            let made = ReplicaFile(node: node, replica: newReplica)
            try write(made, to: disk)
            return (made, false)
        } catch let error as AspenError {
            throw error
        } catch {
            throw AspenError(.storage, "\(error)")
        }
    }

    private static func read(_ disk: any Disk) throws -> Found {
        let file = try disk.open(name, create: false)
        defer { file.close() }
        let bytes = try file.read(at: 0, count: 4096)
        if let found = OneBit.mending(bytes, { try? ReplicaFile(text: $0) }) {
            return (found.value, found.isMended)
        }
        return (try ReplicaFile(text: bytes), false)
    }

    private static func write(_ replica: ReplicaFile, to disk: any Disk) throws(AspenError) {
        do {
            let file = try disk.open(name + ".new", create: true)
            defer { file.close() }
            try file.truncate(to: 0)
            try file.write(Array(replica.text.utf8), at: 0)
            try file.sync()
            try disk.rename(name + ".new", to: name)
            try disk.syncDirectory()
        } catch {
            throw AspenError(.storage, "\(error)")
        }
    }

    var text: String {
        let body = """
            aspen-replica \(Self.format)
            node \(node)
            replica \(String(replica.rawValue, radix: 16))

            """
        return body + "crc \(String(CRC32C.of(body.utf8), radix: 16))\n"
    }

    init(text bytes: [UInt8]) throws(AspenError) {
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        func value(_ line: Int, _ name: String) -> Substring? {
            guard line < lines.count, lines[line].hasPrefix(name + " ") else { return nil }
            return lines[line].dropFirst(name.count + 1)
        }
        if let format = value(0, "aspen-replica").flatMap({ Int($0) }), format > Self.format {
            throw AspenError(
                .unsupportedVersion,
                "the data directory was made by a newer program (format \(format))")
        }
        guard value(0, "aspen-replica") != nil,
            let node = value(1, "node").flatMap({ UInt64($0) }), node > 0,
            let replica = value(2, "replica").flatMap({ UInt64($0, radix: 16) })
        else { throw Self.damaged }
        self.init(node: NodeID(node), replica: ReplicaID(replica))
        guard Array(text.utf8) == bytes else { throw Self.damaged }
    }

    private static let damaged = AspenError(
        .corrupt, "the file 'replica' is damaged, and with it the name that the others know")
}
