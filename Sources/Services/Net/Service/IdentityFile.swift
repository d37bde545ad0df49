// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import QUIC
import ServiceKit

/// The node's key on disk: `identity.key` in the state directory, a `KeyFile`.
package enum IdentityFile {
    package static let name = "identity.key"
    /// The name under which a supervisor may hand the same text over instead.
    package static let credential = "key"
    /// What a unit file says in place of a credential that there is not (SetCredential=).
    private static let absent = "none"
    private static let heading = "aspen identity v1, secret"

    /// The key of this node; made at the first start.
    /// - Throws: `permissionDenied` when others can read the file, `corrupt` when it is damaged,
    ///   `storage` when the system refuses.
    package static func loadOrCreate(stateDirectory: String) throws(AspenError) -> NodeKey {
        let file = file(in: stateDirectory)
        if let key = try file.load(headings: [heading]) { return key }
        // Whoever came first, maybe a second process, the file that is there counts.
        _ = try file.create(.generate(), heading: heading)
        guard let key = try file.load(headings: [heading]) else {
            throw AspenError(.storage, "\(file.path) vanished while the node was starting")
        }
        return key
    }

    /// The key in a credential; nil when the unit's fallback says that there is none.
    /// - Throws: `corrupt` when it is damaged or empty: no node is to become another one by that.
    package static func key(handedOver secret: Secret) throws(AspenError) -> NodeKey? {
        if secret.bytes == Array(absent.utf8) { return nil }
        guard let key = KeyFile.parse(secret.bytes[...], headings: [heading]) else {
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
        try file(in: stateDirectory).load(headings: [heading])
    }

    private static func file(in stateDirectory: String) -> KeyFile {
        let path = "\(stateDirectory)/\(name)"
        return KeyFile(
            path,
            adviceWhenShared: "the node's identity may be stolen. "
                + "If it is not, `chmod 600 \(path)`; else remove it, and the node joins anew",
            adviceWhenDamaged: "is damaged. Restore it from a backup; or remove it: "
                + "the node then is a new one and has to be added to the cluster again")
    }
}
