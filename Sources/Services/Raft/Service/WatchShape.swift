// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import SwiftProtobuf
import WatchCore

extension WatchShape {
    /// - Throws: `invalidArgument`, `permissionDenied`.
    init(_ body: Aspen_Client_V1_WatchRequest) throws(AspenError) {
        self.init(
            from: Array(body.from), to: body.to.isEmpty ? nil : Array(body.to),
            previousValues: body.previousValues, noPuts: body.noPuts, noDeletes: body.noDeletes)
        _ = try VisibleRange(from: from, to: to)
        guard !(noPuts && noDeletes) else {
            throw AspenError(.invalidArgument, "without puts and deletes there is nothing to watch")
        }
    }
}

/// An update as the bytes of a response, made for the first watch that it is sent to.
private final class EncodedUpdate {
    let bytes: ByteBuffer

    init(_ bytes: ByteBuffer) { self.bytes = bytes }
}

extension WatchUpdate {
    var response: WireResponse {
        var body = Aspen_Client_V1_WatchResponse()
        body.revision = revision.rawValue
        body.events = events.map { Aspen_Client_V1_Event($0) }
        return WireResponse(.watch(body))
    }

    var bytes: ByteBuffer {
        if let known = encoding as? EncodedUpdate { return known.bytes }
        guard let bytes: FrameBytes = try? response.serializedBytes() else {
            preconditionFailure("a message that was just made can be encoded")
        }
        encoding = EncodedUpdate(bytes.buffer)
        return bytes.buffer
    }
}

extension ClientConnection: WatchOutlet {
    func stream(_ update: WatchUpdate, to id: UInt64) -> Bool { stream(update.bytes, to: id) }
    func push(_ update: WatchUpdate, to id: UInt64) { push(update.response, to: id) }
    func push(_ end: WatchEnd, to id: UInt64) { push(WireResponse(end.error), to: id) }
}

extension Aspen_Client_V1_Event {
    init(_ event: ChangeEvent) {
        self.init()
        kind = event.isRemoval ? .delete : .put
        if event.isRemoval {
            entry.key = Data(event.entry.key)
            entry.modRevision = event.entry.modRevision.rawValue
        } else {
            entry = Aspen_Client_V1_KeyValue(event.entry)
        }
        if let previous = event.previous { self.previous = Aspen_Client_V1_KeyValue(previous) }
    }
}
