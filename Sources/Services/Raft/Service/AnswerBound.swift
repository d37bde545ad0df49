// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore
import RaftCore

/// How many bytes of keys and values the result of a command can have, told before it is applied.
///
/// The gets of a transaction return up to `KVLimits.answerBytesMax`, and thousands of transactions may
/// be committed together: how many are applied in one go must be bounded by what they may return.
struct AnswerBound {
    static let bytesPerGet = Limits.keyBytesMax + Limits.valueBytesMax

    /// Of one batch: those under a session that have been looked at.
    private var requests: Set<Request> = []

    private struct Request: Hashable {
        var session: UInt64
        var number: UInt64
    }

    static func bytes(of command: Command) -> Int {
        guard case .transaction(let transaction, _) = command else { return 0 }
        return bytes(gets: max(gets(transaction.success), gets(transaction.failure)))
    }

    private static func gets(_ operations: [Operation]) -> Int {
        operations.count { if case .get = $0 { true } else { false } }
    }

    private static func bytes(gets: Int) -> Int {
        min(gets * bytesPerGet, KVLimits.answerBytesMax)
    }

    /// The same from the encoding, without making the command: see `CommandCodec`. Of what it does not
    /// understand it says the most that there can be.
    ///
    /// A repeated request gets the answer that is kept with its session, whatever it asks for this
    /// time. Of one session there are at most `KVLimits.sessionAnswersBytesMax` of these, as long as
    /// none is repeated within a batch: a request seen before counts as the most, too.
    mutating func bytes(of entry: Entry) -> Int {
        guard entry.kind == .command, !Self.isSinglePut(entry.payload) else { return 0 }
        var walk = Walk(reader: ByteReader(entry.payload))
        do {
            let gets = try walk.gets()
            if let (session, number) = walk.request,
                !requests.insert(Request(session: session, number: number)).inserted
            {
                return KVLimits.answerBytesMax
            }
            return Self.bytes(gets: gets)
        } catch {
            return KVLimits.answerBytesMax
        }
    }

    /// What most commands are, seen at a glance: a transaction without a session and without compares
    /// that puts one key (no lease).
    private static func isSinglePut(_ payload: [UInt8]) -> Bool {
        payload.withUnsafeBytes { bytes in
            func count(at offset: Int) -> Int? {
                guard offset + 4 <= bytes.count else { return nil }
                return Int(
                    UInt32(
                        littleEndian: bytes.loadUnaligned(
                            fromByteOffset: offset, as: UInt32.self)))
            }
            // Version, tag, no request; counts of compares and of operations; the first's tag, its key.
            guard bytes.count > 16, bytes[1] == Walk.transaction, bytes[2] == 0, count(at: 3) == 0,
                count(at: 7) == 1, bytes[11] == Walk.put, let key = count(at: 12),
                let value = count(at: 16 + key)
            else { return false }
            // Nothing but the count of operations otherwise follows.
            let end = 20 + key + value
            return count(at: end) == 0 && end + 4 == bytes.count
        }
    }

    /// Over the encoding of a command.
    private struct Walk {
        var reader: ByteReader
        var request: (session: UInt64, number: UInt64)?

        static let transaction: UInt8 = 5
        static let put: UInt8 = 1
        private static let otherCommands: Set<UInt8> = [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]

        mutating func gets() throws(DecodeError) -> Int {
            _ = try reader.byte("command.version")
            let tag = try reader.byte("command.tag")
            guard tag == Self.transaction else {
                guard Self.otherCommands.contains(tag) else { throw .unknown(field: "command.tag") }
                return 0
            }
            if try reader.flag("request.present") {
                request = (
                    try reader.integer("request.session"), try reader.integer("request.number")
                )
                try skip(8)
            }
            for _ in 0..<(try reader.integer("transaction.compares", as: UInt32.self)) {
                try skipCompare()
            }
            let success = try operations()
            let failure = try operations()
            try reader.end()
            return max(success, failure)
        }

        /// How many of them are gets.
        private mutating func operations() throws(DecodeError) -> Int {
            var gets = 0
            for _ in 0..<(try reader.integer("transaction.operations", as: UInt32.self)) {
                switch try reader.byte("operation.tag") {
                case Self.put:
                    try skipBlob()
                    try skipBlob()
                case 2: try skipBlob()
                case 3:
                    try skipBlob()
                    if try reader.flag("operation.bounded") { try skipBlob() }
                case 4:
                    try skipBlob()
                    gets += 1
                case 5:
                    try skipBlob()
                    try skipBlob()
                    try skip(8)
                default: throw .unknown(field: "operation.tag")
                }
            }
            return gets
        }

        private mutating func skipCompare() throws(DecodeError) {
            try skip(1)
            try skipBlob()
            switch try reader.byte("compare.target") {
            case 0: try skipBlob()
            case 1, 2, 3: try skip(8)
            case 4: try skip(1)
            default: throw .unknown(field: "compare.target")
            }
        }

        private mutating func skip(_ count: Int) throws(DecodeError) {
            _ = try reader.raw(count, "skipped")
        }

        private mutating func skipBlob() throws(DecodeError) {
            try skip(Int(try reader.integer("skipped.count", as: UInt32.self)))
        }
    }
}

extension CommandResult {
    /// Bytes of keys and values in it.
    var byteCount: Int {
        guard case .transaction(_, _, let results) = self else { return 0 }
        return results.reduce(0) { sum, result in
            if case .got(.some(let entry)) = result { sum + entry.byteCount } else { sum }
        }
    }
}
