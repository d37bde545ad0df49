// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials

extension AspenClient {
    /// Makes the cluster believe tokens that begin with this key.
    ///
    /// - Returns: false when it did so before.
    public func addTokenRoot(
        _ root: EndpointID, timeout: Duration? = nil
    ) async throws(AspenError) -> Bool {
        var request = WireRequest()
        request.addTokenRoot.root = Data(root.bytes)
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .addTokenRoot(let answer) = response else { return nil }
            return answer.added
        }
    }

    /// No token that begins with this key is believed any more.
    ///
    /// - Returns: false when none was before.
    public func removeTokenRoot(
        _ root: EndpointID, timeout: Duration? = nil
    ) async throws(AspenError) -> Bool {
        var request = WireRequest()
        request.removeTokenRoot.root = Data(root.bytes)
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .removeTokenRoot(let answer) = response else { return nil }
            return answer.removed
        }
    }

    /// The keys whose tokens are believed.
    public func tokenRoots(timeout: Duration? = nil) async throws(AspenError) -> [EndpointID] {
        var request = WireRequest()
        request.listTokenRoots = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .listTokenRoots(let answer) = response else { return nil }
            return answer.roots.compactMap { EndpointID(bytes: $0) }
        }
    }

    /// Ends one link of a token, and all that were delegated from it.
    ///
    /// - Parameters:
    ///   - id: 16 bytes, as `aspen-token inspect` shows them in base 32.
    ///   - expires: seconds since 1970 when the link would have ended by itself, after which the
    ///     revocation may be forgotten; 0 keeps it.
    public func revokeToken(
        id: [UInt8], expires: UInt64, timeout: Duration? = nil
    ) async throws(AspenError) {
        var request = WireRequest()
        request.revokeToken.id = Data(id)
        request.revokeToken.expires = expires
        _ = try await perform(request, .unnumbered, timeout: timeout) { response -> Bool? in
            guard case .revokeToken = response else { return nil }
            return true
        }
    }

    /// Links that are no longer believed: their ids (16 bytes), and when they would have ended.
    public func revokedTokens(
        timeout: Duration? = nil
    ) async throws(AspenError) -> [(id: [UInt8], expires: UInt64)] {
        var request = WireRequest()
        request.listRevokedTokens = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .listRevokedTokens(let answer) = response else { return nil }
            return answer.tokens.map { (Array($0.id), $0.expires) }
        }
    }
}
