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

    package init(node: NodeID, replica: ReplicaID) {
        self.node = node
        self.replica = replica
    }

    /// Reads the file, or makes it if there is none.
    ///
    /// - Throws: `invalidArgument` if the directory is another node's; `corrupt`, `storage`,
    ///   `unsupportedVersion`.
    package static func open(
        in disk: any Disk, node: NodeID, newReplica: ReplicaID
    ) throws(AspenError) -> ReplicaFile {
        do {
            let file = try disk.open(name, create: false)
            defer { file.close() }
            let found = try ReplicaFile(text: try file.read(at: 0, count: 4096))
            guard found.node == node else {
                throw AspenError(
                    .invalidArgument,
                    "this data directory belongs to node \(found.node), not \(node): start with "
                        + "--node-id \(found.node), or give node \(node) a directory of its own")
            }
            return found
        } catch let error as DiskError where error.kind == .notFound {
            return try make(in: disk, ReplicaFile(node: node, replica: newReplica))
        } catch let error as AspenError {
            throw error
        } catch {
            throw AspenError(.storage, "\(error)")
        }
    }

    private static func make(
        in disk: any Disk, _ replica: ReplicaFile
    ) throws(AspenError) -> ReplicaFile {
        do {
            let file = try disk.open(name + ".new", create: true)
            defer { file.close() }
            try file.truncate(to: 0)
            try file.write(Array(replica.text.utf8), at: 0)
            try file.sync()
            try disk.rename(name + ".new", to: name)
            try disk.syncDirectory()
            return replica
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
        .corrupt,
        "the file 'replica' in the data directory is damaged: remove the node from the cluster, "
            + "empty the directory and add the node again")
}
