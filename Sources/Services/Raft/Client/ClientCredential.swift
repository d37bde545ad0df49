// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import QUIC
import TokenCore

/// Who a client on another machine is, and what it may do there: its key, and a capability token that
/// was made for that key. Never printed.
public struct ClientCredential: Sendable {
    let key: NodeKey
    let chain: [UInt8]

    /// - Parameters:
    ///   - token: the word that `aspen-token delegate` prints.
    ///   - keyFile: this client's key, made if there is none;
    ///     nil: `$XDG_CONFIG_HOME/aspen/client.key`, or below `~/.config`.
    /// - Throws: `invalidArgument` for what is no token, or one for another key; what the key's file
    ///   is refused for. No text repeats anything secret.
    public init(token: String, keyFile: String? = nil) throws(AspenError) {
        let chain = try TokenChain(parsing: token)
        let path: String
        if let keyFile { path = keyFile } else { path = try ClientKey.defaultPath() }
        let key = try ClientKey.ofClient(at: path)
        guard chain.audience == key.endpoint else {
            throw AspenError(
                .unauthenticated,
                "the token was made for the client key \(chain.audience), but this client's, in "
                    + "\(path), is \(key.endpoint): have one made for that "
                    + "(`aspen-token delegate --audience \(key.endpoint)`)")
        }
        self.key = key.key
        self.chain = chain.encoded()
    }
}

extension ClientCredential: Equatable {
    public static func == (left: ClientCredential, right: ClientCredential) -> Bool {
        left.key.endpoint == right.key.endpoint && left.chain == right.chain
    }
}

extension ClientCredential: CustomStringConvertible, CustomDebugStringConvertible,
    CustomReflectable
{
    public var description: String { "ClientCredential(\(key.endpoint), token not shown)" }
    public var debugDescription: String { description }
    public var customMirror: Mirror { Mirror(self, children: ["client": key.endpoint]) }
}
