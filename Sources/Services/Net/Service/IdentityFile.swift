// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import Glibc
import QUIC
import ServiceKit

/// The node's key on disk: `identity.key` in the state directory, readable by its owner alone.
///
/// Text, two lines, so that nobody mistakes it for something else: a heading, and the 32 bytes of
/// the Ed25519 seed with a CRC-32C after them, in base 32.
package enum IdentityFile {
    package static let name = "identity.key"
    /// The name under which a supervisor may hand the same text over instead.
    package static let credential = "key"
    /// What a unit file says in place of a credential that there is not (SetCredential=).
    private static let absent = "none"
    private static let heading = "aspen identity v1, secret"
    private static let bytesMax = 512

    /// The key of this node; made at the first start.
    /// - Throws: `permissionDenied` when others can read the file, `corrupt` when it is damaged,
    ///   `storage` when the system refuses.
    package static func loadOrCreate(stateDirectory: String) throws(AspenError) -> NodeKey {
        let path = "\(stateDirectory)/\(name)"
        if let key = try load(path) { return key }
        try create(path, in: stateDirectory)
        // Whoever came first, maybe a second process, the file that is there counts.
        guard let key = try load(path) else {
            throw AspenError(.storage, "\(path) vanished while the node was starting")
        }
        return key
    }

    /// The key in a credential; nil when the unit's fallback says that there is none.
    /// - Throws: `corrupt` when it is damaged or empty: no node is to become another one by that.
    package static func key(handedOver secret: Secret) throws(AspenError) -> NodeKey? {
        if secret.bytes == Array(absent.utf8) { return nil }
        guard let key = parse(secret.bytes[...]) else {
            throw AspenError(
                .corrupt,
                "the credential '\(credential)' (/etc/aspen/credentials/\(credential)) is damaged: it "
                    + "must hold what \(name) of a node holds. Restore it from a backup; or remove it, "
                    + "and the node uses the \(name) of its state directory")
        }
        return key
    }

    /// The key in the state directory; nil when there is none.
    package static func existing(stateDirectory: String) throws(AspenError) -> NodeKey? {
        try load("\(stateDirectory)/\(name)")
    }

    /// - Returns: nil when there is no file.
    private static func load(_ path: String) throws(AspenError) -> NodeKey? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        guard descriptor >= 0 else {
            if errno == ENOENT { return nil }
            throw failure("cannot open \(path)")
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw failure("cannot examine \(path)") }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw AspenError(.corrupt, "\(path) is not a regular file")
        }
        guard status.st_mode & 0o077 == 0 else {
            throw AspenError(
                .permissionDenied,
                "\(path) can be read by others: the node's identity may be stolen. "
                    + "If it is not, `chmod 600 \(path)`; else remove it, and the node joins anew")
        }
        var buffer = [UInt8](repeating: 0, count: bytesMax)
        let count = read(descriptor, &buffer, buffer.count)
        guard count >= 0 else { throw failure("cannot read \(path)") }
        guard let key = parse(buffer.prefix(count)) else {
            throw AspenError(
                .corrupt,
                "\(path) is damaged. Restore it from a backup; or remove it: "
                    + "the node then is a new one and has to be added to the cluster again")
        }
        return key
    }

    private static func parse(_ bytes: ArraySlice<UInt8>) -> NodeKey? {
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        guard lines.count == 2, lines[0] == heading, let data = Base32.decode(lines[1]),
            data.count == NodeKey.seedByteCount + 4
        else { return nil }
        let seed = Array(data.prefix(NodeKey.seedByteCount))
        var reader = ByteReader(data[NodeKey.seedByteCount...])
        guard let checksum = try? reader.integer("checksum", as: UInt32.self),
            checksum == CRC32C.of(seed)
        else { return nil }
        return NodeKey(seed: seed)
    }

    private static func render(_ key: NodeKey) -> [UInt8] {
        var writer = ByteWriter()
        writer.raw(key.seed)
        writer.integer(CRC32C.of(key.seed))
        return Array("\(heading)\n\(Base32.encode(writer.bytes))\n".utf8)
    }

    /// Either the whole file is there afterwards, durably, or none.
    private static func create(_ path: String, in directory: String) throws(AspenError) {
        let temporary = "\(path).\(getpid()).tmp"
        unlink(temporary)
        let descriptor = open(
            temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else { throw failure("cannot create \(temporary)") }
        defer { unlink(temporary) }
        let bytes = render(NodeKey.generate())
        let isWritten =
            fchmod(descriptor, 0o600) == 0 && write(descriptor, bytes, bytes.count) == bytes.count
            && fsync(descriptor) == 0
        let written = errno
        close(descriptor)
        guard isWritten else {
            errno = written
            throw failure("cannot write \(temporary)")
        }
        // A link, not a rename: it never replaces a key that another process has just made.
        guard link(temporary, path) == 0 || errno == EEXIST else {
            throw failure("cannot create \(path)")
        }
        let folder = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard folder >= 0 else { throw failure("cannot open \(directory)") }
        defer { close(folder) }
        guard fsync(folder) == 0 else { throw failure("cannot sync \(directory)") }
    }

    private static func failure(_ what: String) -> AspenError {
        let code: AspenErrorCode = errno == EACCES || errno == EPERM ? .permissionDenied : .storage
        return AspenError(code, "\(what): \(String(cString: strerror(errno)))")
    }
}
