// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import QUIC

/// A client's key, or a token root's, in a `KeyFile` of its own.
package struct ClientKey: Sendable {
    package enum Role: String, Sendable, CaseIterable {
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
        // Whoever came first, maybe a second process, the file that is there counts.
        _ = try file(path, as: .client).create(.generate(), heading: Role.client.rawValue)
        guard let key = try load(path, as: .client) else {
            throw AspenError(.storage, "\(path) vanished just now")
        }
        return key
    }

    /// - Returns: nil when there is no file.
    /// - Throws: as `ofClient`.
    package static func load(_ path: String, as role: Role?) throws(AspenError) -> ClientKey? {
        let headings = role.map { [$0.rawValue] } ?? Role.allCases.map(\.rawValue)
        return try file(path, as: role).load(headings: headings).map(ClientKey.init)
    }

    /// Writes a new file, readable by its owner alone.
    /// - Throws: `preconditionFailed` when there is one already.
    package func save(as role: Role, at path: String) throws(AspenError) {
        guard try Self.file(path, as: role).create(key, heading: role.rawValue) else {
            throw AspenError(
                .preconditionFailed, "\(path) exists already: keys are never overwritten")
        }
    }

    private static func file(_ path: String, as role: Role?) -> KeyFile {
        KeyFile(
            path,
            adviceWhenShared: "the key may be stolen. If it is not, "
                + "`chmod 600 \(path)`; else remove it, and have new tokens made",
            adviceWhenDamaged:
                "is not \(role == .root ? "a token root" : "a client key"), or damaged: "
                + "restore it, or name another file")
    }

    private static func makeDirectories(_ path: String) throws(AspenError) {
        var made = ""
        for part in path.split(separator: "/") {
            made += "/\(part)"
            // What is there already need not be writable.
            guard mkdir(made, 0o700) == 0 || errno == EEXIST || access(made, X_OK) == 0 else {
                throw KeyFile.failure("cannot create \(made)")
            }
        }
    }
}
