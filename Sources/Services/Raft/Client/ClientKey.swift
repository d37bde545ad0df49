// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import Glibc
import QUIC

/// An Ed25519 key in a file of its own, readable by its owner alone: a client's, or a token root's.
///
/// Text, two lines: a heading that says what it is, and the 32 bytes of the seed with a CRC-32C after
/// them, in base 32.
package struct ClientKey: Sendable {
    package enum Role: String, Sendable {
        case client = "aspen client key v1, secret"
        case root = "aspen token root v1, secret"
    }

    let key: NodeKey
    /// The public half: the audience of this client's tokens, or what a cluster trusts.
    package var endpoint: EndpointID { key.endpoint }
    package func sign(_ bytes: [UInt8]) -> [UInt8] { key.sign(bytes) }

    /// Whether `signature` is that key's of `text`.
    package static func verify(_ signature: [UInt8], _ text: [UInt8], _ key: EndpointID) -> Bool {
        NodeKey.verify(signature, of: text, by: key)
    }

    package static func generate() -> ClientKey { ClientKey(key: .generate()) }

    private static let bytesMax = 512

    /// `$XDG_CONFIG_HOME/aspen/client.key`, or below `$HOME/.config`.
    /// - Throws: `invalidArgument` where neither is set.
    package static func defaultPath() throws(AspenError) -> String {
        for (variable, below) in [("XDG_CONFIG_HOME", ""), ("HOME", "/.config")] {
            guard let value = getenv(variable) else { continue }
            let directory = String(cString: value)
            // Relative ones are to be ignored (XDG Base Directory Specification).
            if directory.hasPrefix("/") { return "\(directory)\(below)/aspen/client.key" }
        }
        throw AspenError(
            .invalidArgument,
            "neither HOME nor XDG_CONFIG_HOME says where this client's key is: set one of them")
    }

    /// This client's key; made, with its directory, at the first use.
    /// - Throws: `permissionDenied` when others can read the file, `corrupt` when it is damaged,
    ///   `storage` when the system refuses.
    package static func ofClient(at path: String) throws(AspenError) -> ClientKey {
        if let key = try load(path, as: .client) { return key }
        let directory = String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])
        try makeDirectories(directory)
        try create(.generate(), as: .client, at: path, isShared: true)
        // Whoever came first, maybe a second process, the file that is there counts.
        guard let key = try load(path, as: .client) else {
            throw AspenError(.storage, "\(path) vanished just now")
        }
        return key
    }

    /// - Returns: nil when there is no file.
    /// - Throws: as `ofClient`.
    package static func load(_ path: String, as role: Role?) throws(AspenError) -> ClientKey? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
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
                "\(path) can be read by others: the key may be stolen. If it is not, "
                    + "`chmod 600 \(path)`; else remove it, and have new tokens made")
        }
        var buffer = [UInt8](repeating: 0, count: bytesMax)
        let count = read(descriptor, &buffer, buffer.count)
        guard count >= 0 else { throw failure("cannot read \(path)") }
        let lines = String(decoding: buffer.prefix(count), as: UTF8.self).split(separator: "\n")
        guard let heading = lines.first.flatMap({ Role(rawValue: String($0)) }),
            role == nil || heading == role, let key = parse(lines)
        else {
            throw AspenError(
                .corrupt,
                "\(path) is not \(role == .root ? "a token root" : "a client key"), or damaged: "
                    + "restore it, or name another file")
        }
        return ClientKey(key: key)
    }

    private static func parse(_ lines: [Substring]) -> NodeKey? {
        guard lines.count == 2, let data = Base32.decode(lines[1]),
            data.count == NodeKey.seedByteCount + 4
        else { return nil }
        let seed = Array(data.prefix(NodeKey.seedByteCount))
        var reader = ByteReader(data[NodeKey.seedByteCount...])
        guard let checksum = try? reader.integer("checksum", as: UInt32.self),
            checksum == CRC32C.of(seed)
        else { return nil }
        return NodeKey(seed: seed)
    }

    /// Writes a new file, readable by its owner alone.
    /// - Throws: `preconditionFailed` when there is one already.
    package func save(as role: Role, at path: String) throws(AspenError) {
        try Self.create(self, as: role, at: path, isShared: false)
    }

    private static func create(
        _ key: ClientKey, as role: Role, at path: String, isShared: Bool
    ) throws(AspenError) {
        var writer = ByteWriter()
        writer.raw(key.key.seed)
        writer.integer(CRC32C.of(key.key.seed))
        let bytes = Array("\(role.rawValue)\n\(Base32.encode(writer.bytes))\n".utf8)
        let temporary = "\(path).\(getpid()).tmp"
        unlink(temporary)
        let descriptor = open(
            temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else { throw failure("cannot create \(temporary)") }
        defer { unlink(temporary) }
        let isWritten =
            fchmod(descriptor, 0o600) == 0 && write(descriptor, bytes, bytes.count) == bytes.count
            && fsync(descriptor) == 0
        let written = errno
        close(descriptor)
        guard isWritten else {
            errno = written
            throw failure("cannot write \(temporary)")
        }
        // A link, not a rename: it never replaces a key.
        guard link(temporary, path) == 0 else {
            if errno == EEXIST {
                if isShared { return }
                throw AspenError(
                    .preconditionFailed, "\(path) exists already: keys are never overwritten")
            }
            throw failure("cannot create \(path)")
        }
    }

    private static func makeDirectories(_ path: String) throws(AspenError) {
        var made = ""
        for part in path.split(separator: "/") {
            made += "/\(part)"
            // What is there already need not be writable.
            guard mkdir(made, 0o700) == 0 || errno == EEXIST || access(made, X_OK) == 0 else {
                throw failure("cannot create \(made)")
            }
        }
    }

    private static func failure(_ what: String) -> AspenError {
        let code: AspenErrorCode = errno == EACCES || errno == EPERM ? .permissionDenied : .storage
        return AspenError(code, "\(what): \(String(cString: strerror(errno)))")
    }
}
