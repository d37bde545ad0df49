// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

// A snapshot as bytes, the same whatever the rows lie in. After eight bytes of name and version
// come frames: a 32-bit length, then that many bytes, of which the first says what they are. The
// first frame is meta, the last one the end: the number of rows and a CRC-32C over everything
// before it. Version 2 knows leases; a state that has not activated them is still written as version
// 1, so that every member can read it. Rows of versions are left out, because the changes say the same; the row hash in meta
// proves that what was rebuilt is what was sent.

package enum StateStream {
    /// - Parameter version: of the stream, which is that of the state machine.
    package static func magic(_ version: UInt8) -> [UInt8] { Array("aspenkv\(version)".utf8) }
    static let magicBytes = 8

    enum Tag: UInt8 {
        case meta = 1
        case change = 2
        case session = 3
        case answer = 4
        case lease = 5
        case attachment = 6
        case end = 255
    }

    /// Longest frame: a row of sessions or answers at its limit, and some.
    static let frameBytesMax = KVLimits.sessionAnswersBytesMax + 65_536

    package enum Item: Equatable, Sendable {
        case meta(StateMeta)
        case row(StateRow)
        /// The checksum over the whole stream was right.
        case end
    }
}

/// Turns meta and rows into the bytes of a snapshot.
package struct StateStreamWriter<Source: RowSource> {
    private var rows: Source
    private var buffer: [UInt8]
    /// Where in `buffer` the bytes begin that have not been handed out.
    private var start = 0
    private var crc = CRC32C()
    private var rowCount: UInt64 = 0
    private var isComplete = false
    private let version: UInt8

    package init(meta: StateMeta, rows: Source) {
        self.rows = rows
        let version = meta.activeVersion
        self.version = version
        buffer = StateStream.magic(version)
        crc.update(buffer)
        frame(.meta) { $0.blob(meta.encoded(version: version)) }
    }

    /// At most `bytesMax` bytes, and fewer only at the end; nil after the end.
    package mutating func next(bytesMax: Int) throws(Source.Failure) -> [UInt8]? {
        while !isComplete, buffer.count - start < bytesMax {
            if let row = try rows.next() { append(row) } else { appendEnd() }
        }
        let count = min(bytesMax, buffer.count - start)
        guard count > 0 else { return nil }
        let piece = Array(buffer[start..<start + count])
        start += count
        if start > bytesMax || start == buffer.count {
            buffer.removeFirst(start)
            start = 0
        }
        return piece
    }

    private mutating func append(_ row: StateRow) {
        switch row {
        case .version: return
        case .change(let change):
            let header = change.header
            let knowsLeases = version >= KVVersion.leases
            frame(.change) { writer in
                writer.integer(header.number.rawValue)
                writer.integer(header.createRevision.rawValue)
                writer.integer(header.version)
                writer.integer(header.previous.rawValue)
                if knowsLeases { writer.integer(header.lease.rawValue) }
                writer.blob(header.key)
                writer.blob(change.value)
            }
        case .session(let session):
            frame(.session) { writer in
                writer.integer(session.id.rawValue)
                writer.integer(session.lastActive.milliseconds)
                writer.integer(session.acknowledgedBelow)
                writer.raw(SessionAnswersCodec.encode(session.answers))
            }
        case .answer(let answer):
            frame(.answer) { writer in
                writer.integer(answer.session.rawValue)
                writer.integer(answer.number)
                writer.blob(answer.bytes)
            }
        case .lease(let lease):
            frame(.lease) { writer in
                writer.integer(lease.id.rawValue)
                writer.integer(lease.ttlMilliseconds)
                writer.integer(lease.deadline.milliseconds)
                writer.integer(lease.keyCount)
            }
        case .attachment(let attachment):
            frame(.attachment) { writer in
                writer.integer(attachment.lease.rawValue)
                writer.blob(attachment.key)
            }
        }
        rowCount += 1
    }

    private mutating func appendEnd() {
        let count = rowCount
        var writer = ByteWriter(capacity: 32)
        writer.integer(UInt32(13))
        writer.byte(StateStream.Tag.end.rawValue)
        writer.integer(count)
        crc.update(writer.bytes)
        writer.integer(crc.value)
        buffer.append(contentsOf: writer.bytes)
        isComplete = true
    }

    private mutating func frame(_ tag: StateStream.Tag, _ body: (inout ByteWriter) -> Void) {
        var writer = ByteWriter(capacity: 128)
        writer.integer(UInt32(0))
        writer.byte(tag.rawValue)
        body(&writer)
        let length = UInt32(writer.bytes.count - 4)
        withUnsafeBytes(of: length.littleEndian) { writer.bytes.replaceSubrange(0..<4, with: $0) }
        crc.update(writer.bytes)
        buffer.append(contentsOf: writer.bytes)
    }
}

/// Turns the bytes of a snapshot, in pieces of any size, into meta and rows. Total: any bytes give
/// items or an error. Rows come before the checksum over them is known, so that nothing may be put
/// in force before `.end`.
package struct StateStreamReader {
    private var buffer: [UInt8] = []
    private var start = 0
    private var crc = CRC32C()
    private var rowCount: UInt64 = 0
    /// Zero until the name was read.
    private var version: UInt8 = 0
    private var hasMeta = false
    package private(set) var isComplete = false

    package init() {}

    package mutating func append(_ bytes: [UInt8]) {
        if start > 0, start >= buffer.count / 2 {
            buffer.removeFirst(start)
            start = 0
        }
        buffer.append(contentsOf: bytes)
    }

    /// The next item; nil when more bytes are needed.
    package mutating func next() throws(DecodeError) -> StateStream.Item? {
        if isComplete {
            guard buffer.count == start else { throw .trailing(count: buffer.count - start) }
            return nil
        }
        if version == 0 {
            guard buffer.count - start >= StateStream.magicBytes else { return nil }
            let magic = Array(buffer[start..<start + StateStream.magicBytes])
            let known = KVVersion.first...KVVersion.supported
            guard let found = known.first(where: { StateStream.magic($0) == magic }) else {
                throw .unknown(field: "snapshot.magic")
            }
            crc.update(magic)
            start += magic.count
            version = found
        }
        guard buffer.count - start >= 4 else { return nil }
        var header = ByteReader(buffer[start...])
        let length: UInt32 = try header.integer("snapshot.length")
        guard length >= 1, length <= StateStream.frameBytesMax else {
            throw .outOfRange(field: "snapshot.length")
        }
        guard buffer.count - start >= 4 + Int(length) else { return nil }
        let end = start + 4 + Int(length)
        var reader = ByteReader(buffer[start + 4..<end])
        guard let tag = StateStream.Tag(rawValue: try reader.byte("snapshot.tag")) else {
            throw .unknown(field: "snapshot.tag")
        }
        updateCRC(upTo: tag == .end ? end - 4 : end)
        let item = try item(tag, from: &reader)
        try reader.end()
        start = end
        return item
    }

    private mutating func updateCRC(upTo end: Int) {
        guard end > start else { return }
        buffer.withUnsafeBytes { crc.update(UnsafeRawBufferPointer(rebasing: $0[start..<end])) }
    }

    private mutating func item(
        _ tag: StateStream.Tag, from reader: inout ByteReader
    ) throws(DecodeError) -> StateStream.Item {
        guard hasMeta != (tag == .meta) else { throw .unknown(field: "snapshot.order") }
        rowCount += 1
        switch tag {
        case .meta:
            hasMeta = true
            rowCount = 0
            let bytes = try reader.blob("snapshot.meta", max: KVLimits.membershipBytesMax + 256)
            let meta = try StateMeta(decoding: bytes)
            guard meta.activeVersion == version,
                meta.needsCounting == (version < KVVersion.leases)
            else { throw .outOfRange(field: "meta.activeVersion") }
            return .meta(meta)
        case .change: return .row(.change(try readChange(from: &reader)))
        case .session:
            let id = SessionID(try reader.integer("session.id"))
            let lastActive = ClusterTime(milliseconds: try reader.integer("session.lastActive"))
            let acknowledgedBelow: UInt64 = try reader.integer("session.acknowledgedBelow")
            let answers = try SessionAnswersCodec.decode(from: &reader)
            return .row(
                .session(
                    SessionRow(
                        id: id, lastActive: lastActive, acknowledgedBelow: acknowledgedBelow,
                        answers: answers)))
        case .answer:
            return .row(
                .answer(
                    AnswerRow(
                        session: SessionID(try reader.integer("answer.session")),
                        number: try reader.integer("answer.number"),
                        bytes: try reader.blob(
                            "answer.bytes", max: KVLimits.sessionAnswersBytesMax))))
        case .lease: return .row(.lease(try readLease(from: &reader)))
        case .attachment:
            let lease = LeaseID(try reader.integer("attachment.lease"))
            guard version >= KVVersion.leases, lease != .none, lease.rawValue < 1 << 63 else {
                throw .outOfRange(field: "attachment.lease")
            }
            let key = try reader.blob("attachment.key", max: Limits.keyBytesMax)
            return .row(.attachment(AttachmentRow(lease: lease, key: key)))
        case .end:
            let count: UInt64 = try reader.integer("snapshot.rows")
            let expected: UInt32 = try reader.integer("snapshot.crc")
            guard expected == crc.value, count == rowCount - 1 else { throw .checksum }
            isComplete = true
            return .end
        }
    }

    private func readChange(from reader: inout ByteReader) throws(DecodeError) -> Change {
        let number: UInt64 = try reader.integer("change.number")
        let createRevision = Revision(try reader.integer("change.createRevision"))
        let version: UInt64 = try reader.integer("change.version")
        let previous: UInt64 = try reader.integer("change.previous")
        var lease = LeaseID.none
        if self.version >= KVVersion.leases {
            lease = LeaseID(try reader.integer("change.lease"))
        }
        guard number > 0, number < ChangeNumber.max.rawValue, previous < number,
            createRevision.rawValue < 1 << 62, version < 1 << 62, lease.rawValue < 1 << 63
        else { throw .outOfRange(field: "change.number") }
        let header = ChangeHeader(
            number: ChangeNumber(number),
            key: try reader.blob("change.key", max: Limits.keyBytesMax),
            createRevision: createRevision, version: version, previous: ChangeNumber(previous),
            lease: lease)
        return Change(
            header: header, value: try reader.blob("change.value", max: Limits.valueBytesMax))
    }

    private func readLease(from reader: inout ByteReader) throws(DecodeError) -> LeaseRow {
        let lease = LeaseRow(
            id: LeaseID(try reader.integer("lease.id")),
            ttlMilliseconds: try reader.integer("lease.ttl"),
            deadline: ClusterTime(milliseconds: try reader.integer("lease.deadline")),
            keyCount: try reader.integer("lease.keyCount"))
        guard version >= KVVersion.leases, lease.id != .none, lease.id.rawValue < 1 << 63,
            lease.ttlMilliseconds <= Limits.leaseTTLMillisecondsMax,
            lease.deadline.milliseconds < 1 << 63, lease.keyCount <= KVLimits.leaseKeysMax
        else { throw .outOfRange(field: "lease.id") }
        return lease
    }
}

/// The answers in a row of sessions, as bytes: in snapshots and in SQLite.
package enum SessionAnswersCodec {
    package static func encode(_ answers: [SessionRow.Answer]) -> [UInt8] {
        var writer = ByteWriter(capacity: 4 + answers.count * 40)
        writer.integer(UInt32(answers.count))
        for answer in answers {
            writer.integer(answer.number)
            writer.integer(UInt32(answer.byteCount))
            writer.flag(answer.bytes != nil)
            if let bytes = answer.bytes { writer.raw(bytes) }
        }
        return writer.bytes
    }

    package static func decode(
        from reader: inout ByteReader
    ) throws(DecodeError) -> [SessionRow.Answer] {
        let count = try reader.count(
            "session.answers", max: Limits.sessionWindowMax, elementBytesMin: 13)
        var answers: [SessionRow.Answer] = []
        answers.reserveCapacity(count)
        for _ in 0..<count {
            let number: UInt64 = try reader.integer("answer.number")
            if let last = answers.last, last.number >= number {
                throw .outOfRange(field: "answer.number")
            }
            let byteCount: UInt32 = try reader.integer("answer.byteCount")
            guard byteCount <= KVLimits.sessionAnswersBytesMax else {
                throw .outOfRange(field: "answer.byteCount")
            }
            var bytes: [UInt8]?
            if try reader.flag("answer.inline") {
                bytes = Array(try reader.raw(Int(byteCount), "answer.bytes"))
            }
            answers.append(
                SessionRow.Answer(number: number, byteCount: Int(byteCount), bytes: bytes))
        }
        return answers
    }
}
