// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import Glibc

/// An Ed25519 key in a file of its own, readable by its owner alone: a node's, a client's, or the
/// root of tokens.
///
/// Text, two lines, so that nobody mistakes it for something else: a heading that says what it is, and
/// the 32 bytes of the seed with a CRC-32C after them, in base 32.
package struct KeyFile {
    package var path: String
    /// What to do when others could read the file, and when it does not hold what it must: the ends
    /// of two error texts.
    package var adviceWhenShared: String
    package var adviceWhenDamaged: String

    private static let bytesMax = 512

    package init(_ path: String, adviceWhenShared: String, adviceWhenDamaged: String) {
        self.path = path
        self.adviceWhenShared = adviceWhenShared
        self.adviceWhenDamaged = adviceWhenDamaged
    }

    /// The key in the file; nil when there is no file.
    /// - Parameter headings: those that will do.
    /// - Throws: `permissionDenied` when others can read the file, `corrupt` when it is damaged or
    ///   something else, `storage` when the system refuses.
    package func load(headings: [String]) throws(AspenError) -> NodeKey? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            if errno == ENOENT { return nil }
            throw Self.failure("cannot open \(path)")
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw Self.failure("cannot examine \(path)") }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw AspenError(.corrupt, "\(path) is not a regular file")
        }
        guard status.st_mode & 0o077 == 0 else {
            throw AspenError(
                .permissionDenied, "\(path) can be read by others: \(adviceWhenShared)")
        }
        var buffer = [UInt8](repeating: 0, count: Self.bytesMax)
        let count = read(descriptor, &buffer, buffer.count)
        guard count >= 0 else { throw Self.failure("cannot read \(path)") }
        // One flipped bit is mended each time; the file, which only a person may write again, stays as
        // it is.
        let found = OneBit.mending(Array(buffer.prefix(count))) {
            Self.parse($0[...], headings: headings)
        }
        guard let key = found?.value else {
            throw AspenError(.corrupt, "\(path) \(adviceWhenDamaged)")
        }
        return key
    }

    /// What a file of that text holds; nil when it is damaged or under another heading.
    package static func parse(_ bytes: ArraySlice<UInt8>, headings: [String]) -> NodeKey? {
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        guard lines.count == 2, headings.contains(String(lines[0])),
            let data = Base32.decode(lines[1]), data.count == NodeKey.seedByteCount + 4
        else { return nil }
        let seed = Array(data.prefix(NodeKey.seedByteCount))
        var reader = ByteReader(data[NodeKey.seedByteCount...])
        guard let checksum = try? reader.integer("checksum", as: UInt32.self),
            checksum == CRC32C.of(seed)
        else { return nil }
        return NodeKey(seed: seed)
    }

    /// Makes the file. Either the whole of it is there afterwards, durably, or nothing; a key is never
    /// overwritten.
    /// - Returns: false when there is a file of that name already, which stays as it is.
    package func create(_ key: NodeKey, heading: String) throws(AspenError) -> Bool {
        let temporary = "\(path).\(getpid()).tmp"
        unlink(temporary)
        let descriptor = open(
            temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else { throw Self.failure("cannot create \(temporary)") }
        defer { unlink(temporary) }
        let bytes = Self.render(key, heading: heading)
        let isWritten =
            fchmod(descriptor, 0o600) == 0 && write(descriptor, bytes, bytes.count) == bytes.count
            && fsync(descriptor) == 0
        let written = errno
        close(descriptor)
        guard isWritten else {
            errno = written
            throw Self.failure("cannot write \(temporary)")
        }
        // A link, not a rename: it never replaces a key that another process has just made.
        let isNew = link(temporary, path) == 0
        guard isNew || errno == EEXIST else { throw Self.failure("cannot create \(path)") }
        try syncDirectory()
        return isNew
    }

    private static func render(_ key: NodeKey, heading: String) -> [UInt8] {
        var writer = ByteWriter()
        writer.raw(key.seed)
        writer.integer(CRC32C.of(key.seed))
        return Array("\(heading)\n\(Base32.encode(writer.bytes))\n".utf8)
    }

    private func syncDirectory() throws(AspenError) {
        let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
        let folder = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard folder >= 0 else { throw Self.failure("cannot open \(directory)") }
        defer { close(folder) }
        guard fsync(folder) == 0 else { throw Self.failure("cannot sync \(directory)") }
    }

    /// The error for a system call that has just failed.
    package static func failure(_ what: String) -> AspenError {
        let code: AspenErrorCode = errno == EACCES || errno == EPERM ? .permissionDenied : .storage
        return AspenError(code, "\(what): \(String(cString: strerror(errno)))")
    }
}
