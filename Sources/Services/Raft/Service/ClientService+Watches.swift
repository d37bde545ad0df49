// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import KVCore

// Requests for watches, and what nobody but Aspen's own services sees.

extension ClientService {
    func watch(_ body: Aspen_Client_V1_WatchRequest, _ origin: RequestOrigin) {
        guard node.membership != nil else { return origin.fail(outsideCluster) }
        watches.watch(body, origin)
    }

    /// Of a watch that has ended meanwhile, or never was, there is nothing to do.
    func cancelWatch(_ body: Aspen_Client_V1_CancelWatchRequest, _ origin: RequestOrigin) {
        if let connection = origin.sink as? ClientConnection {
            watches.cancel(body.watch, of: connection)
        }
        origin.reply(WireResponse(.cancelWatch(Aspen_Client_V1_CancelWatchResponse())))
    }

    static let isReserved = AspenError(
        .permissionDenied,
        "keys that begin with _sys/ belong to the cluster itself: choose another name")

    /// Why nobody may ask for that key.
    static func refusal(ofKey key: [UInt8]) -> AspenError? {
        guard !key.isEmpty, key.count <= Limits.keyBytesMax else {
            return AspenError(
                .invalidArgument, "a key has 1 to \(Limits.keyBytesMax) bytes, not \(key.count)")
        }
        return ReservedNamespace.contains(key) ? isReserved : nil
    }
}

/// A range of keys that a client may ask for: what it has of reserved keys is left out of the answer.
struct VisibleRange {
    var from: [UInt8]
    var to: [UInt8]?

    /// - Throws: `invalidArgument`; `permissionDenied` if there is nothing in it but reserved keys.
    init(from: [UInt8], to: [UInt8]?) throws(AspenError) {
        for bound in [from, to ?? []] where bound.count > KVLimits.boundBytesMax {
            throw AspenError(
                .invalidArgument,
                "the range bound has \(bound.count) bytes; at most \(KVLimits.boundBytesMax) are "
                    + "allowed")
        }
        let range = KeyRange(from: from, to: to)
        guard !range.isEmpty else {
            throw AspenError(
                .invalidArgument, "there is no key in that range: `to` is not after `from`")
        }
        guard !range.excluding(prefix: ReservedNamespace.prefix).isEmpty else {
            throw ClientService.isReserved
        }
        self.from = from
        self.to = to
    }
}
