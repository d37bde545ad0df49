// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import SwiftProtobuf

/// What a watch wants to hear. Watches of one shape share the encoding of what happens.
struct WatchShape: Hashable {
    var from: [UInt8]
    var to: [UInt8]?
    var previousValues: Bool
    var noPuts: Bool
    var noDeletes: Bool

    /// - Throws: `invalidArgument`, `permissionDenied`.
    init(_ body: Aspen_Client_V1_WatchRequest) throws(AspenError) {
        from = Array(body.from)
        to = body.to.isEmpty ? nil : Array(body.to)
        previousValues = body.previousValues
        noPuts = body.noPuts
        noDeletes = body.noDeletes
        _ = try VisibleRange(from: from, to: to)
        guard !(noPuts && noDeletes) else {
            throw AspenError(.invalidArgument, "without puts and deletes there is nothing to watch")
        }
    }

    /// Nil unless it is about one key.
    var singleKey: [UInt8]? {
        guard let to, to.count == from.count + 1, to.last == 0, to.starts(with: from) else {
            return nil
        }
        return from
    }

    func wants(_ key: [UInt8], isRemoval: Bool) -> Bool {
        if isRemoval ? noDeletes : noPuts { return false }
        return KeyRange(from: from, to: to).contains(key) && !ReservedNamespace.contains(key)
    }
}

/// One message to a watch, without the id, which differs from watch to watch.
struct EncodedUpdate {
    var bytes: ByteBuffer
    /// All changes up to and with this one have been told when it arrives.
    var revision: Revision
}

/// Puts changes into messages: as few as possible, each with whole revisions.
struct UpdateEncoder {
    /// A message with more than one revision has at most about this many bytes.
    static let responseBytesMax = 1_000_000
    /// Above it the previous values of a revision are left out, all of them: the message would be
    /// too large for a frame. Without them no revision is: see `KVLimits.commandBytesMax`.
    static let previousBytesMax = 9_000_000
    /// What an event costs besides keys and values, at most.
    private static let eventBytes = 96

    private(set) var updates: [EncodedUpdate] = []
    private var body = Aspen_Client_V1_WatchResponse()
    private var byteCount = 0
    /// The last revision in `body`.
    private var revision = Revision.zero
    /// Of a revision that may go on.
    private var open: [ChangeEvent] = []
    private var openBytes = 0

    mutating func add(_ change: Change) {
        let header = change.header
        add(
            ChangeEvent(
                number: header.number,
                entry: KeyValue(
                    key: header.key, value: change.value, createRevision: header.createRevision,
                    modRevision: header.number.revision, version: header.version,
                    lease: header.lease), isRemoval: header.isTombstone))
    }

    mutating func add(_ event: ChangeEvent) {
        if let last = open.last, event.number.revision > last.number.revision { closeRevision() }
        openBytes += event.byteCount + Self.eventBytes
        open.append(event)
    }

    private mutating func closeRevision() {
        guard let last = open.last else { return }
        if byteCount > 0, byteCount + openBytes > Self.responseBytesMax { end(revision) }
        let isTooLarge = openBytes > Self.previousBytesMax
        for event in open {
            var wire = Aspen_Client_V1_Event(event)
            if isTooLarge { wire.clearPrevious() }
            body.events.append(wire)
        }
        byteCount += openBytes
        revision = last.number.revision
        open.removeAll(keepingCapacity: true)
        openBytes = 0
    }

    private mutating func end(_ revision: Revision) {
        body.revision = revision.rawValue
        updates.append(Self.encode(body))
        body = Aspen_Client_V1_WatchResponse()
        byteCount = 0
    }

    /// The last message says that everything up to `last` has been told. Empty without events.
    mutating func finish(upTo last: Revision) -> [EncodedUpdate] {
        closeRevision()
        if !body.events.isEmpty { end(last) }
        return updates
    }

    /// A message without events.
    static func progress(_ revision: Revision) -> EncodedUpdate {
        var body = Aspen_Client_V1_WatchResponse()
        body.revision = revision.rawValue
        return encode(body)
    }

    /// The same, not encoded: the first that a watch hears.
    static func beginning(_ revision: Revision) -> WireResponse {
        var body = Aspen_Client_V1_WatchResponse()
        body.revision = revision.rawValue
        return WireResponse(.watch(body))
    }

    private static func encode(_ body: Aspen_Client_V1_WatchResponse) -> EncodedUpdate {
        let response = WireResponse(.watch(body))
        guard let bytes: FrameBytes = try? response.serializedBytes() else {
            preconditionFailure("a message that was just made can be encoded")
        }
        return EncodedUpdate(bytes: bytes.buffer, revision: Revision(body.revision))
    }
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
