// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// Results as bytes, for the answers stored with a session.
package enum ResultCodec {
    /// Longest error text, in bytes.
    private static let messageBytesMax = 1024

    package static func encode(_ result: CommandResult) -> [UInt8] {
        var writer = ByteWriter(capacity: 32)
        switch result {
        case .sessionOpened(let session):
            writer.byte(1)
            writer.integer(session.rawValue)
        case .done: writer.byte(2)
        case .transaction(let succeeded, let revision, let results):
            writer.byte(3)
            writer.flag(succeeded)
            writer.integer(revision.rawValue)
            writer.integer(UInt32(results.count))
            for result in results { write(result, to: &writer) }
        case .failed(let code, let message):
            writer.byte(4)
            writer.integer(code.rawValue)
            writer.string(message)
        case .leaseGranted(let lease, let ttlMilliseconds):
            writer.byte(5)
            writer.integer(lease.rawValue)
            writer.integer(ttlMilliseconds)
        case .leaseKept(let ttlMilliseconds):
            writer.byte(6)
            writer.integer(ttlMilliseconds)
        case .leaseRevoked(let revision, let deleted):
            writer.byte(7)
            writer.integer(revision.rawValue)
            writer.integer(deleted)
        }
        return writer.bytes
    }

    package static func decode(_ bytes: [UInt8]) throws(DecodeError) -> CommandResult {
        var reader = ByteReader(bytes)
        let result: CommandResult
        switch try reader.byte("result.tag") {
        case 1: result = .sessionOpened(SessionID(try reader.integer("result.session")))
        case 2: result = .done
        case 3:
            let succeeded = try reader.flag("result.succeeded")
            let revision = Revision(try reader.integer("result.revision"))
            let count = try reader.count(
                "result.results", max: Limits.transactionOperationsMax, elementBytesMin: 2)
            var results: [OperationResult] = []
            results.reserveCapacity(count)
            for _ in 0..<count { results.append(try readOperationResult(from: &reader)) }
            result = .transaction(succeeded: succeeded, revision: revision, results: results)
        case 4:
            let number: UInt16 = try reader.integer("result.code")
            guard let code = AspenErrorCode(rawValue: number) else {
                throw .unknown(field: "result.code")
            }
            result = .failed(
                code: code, message: try reader.string("result.message", max: messageBytesMax))
        case 5:
            let lease = LeaseID(try reader.integer("result.lease"))
            result = .leaseGranted(lease, ttlMilliseconds: try reader.integer("result.ttl"))
        case 6: result = .leaseKept(ttlMilliseconds: try reader.integer("result.ttl"))
        case 7:
            let revision = Revision(try reader.integer("result.revision"))
            result = .leaseRevoked(
                revision: revision, deleted: try reader.integer("result.deleted"))
        default: throw .unknown(field: "result.tag")
        }
        try reader.end()
        return result
    }

    private static func write(_ result: OperationResult, to writer: inout ByteWriter) {
        switch result {
        case .put(let previousVersion):
            writer.byte(1)
            writer.integer(previousVersion)
        case .deleted(let count):
            writer.byte(2)
            writer.integer(count)
        case .got(let entry):
            // Without a lease the bytes are those of version 1: they are part of the hash.
            let isLeased = entry.map { $0.lease != .none } ?? false
            writer.byte(isLeased ? 4 : 3)
            if !isLeased { writer.flag(entry != nil) }
            guard let entry else { return }
            writer.blob(entry.key)
            writer.blob(entry.value)
            writer.integer(entry.createRevision.rawValue)
            writer.integer(entry.modRevision.rawValue)
            writer.integer(entry.version)
            if isLeased { writer.integer(entry.lease.rawValue) }
        }
    }

    private static func readOperationResult(
        from reader: inout ByteReader
    ) throws(DecodeError) -> OperationResult {
        switch try reader.byte("result.operation") {
        case 1: return .put(previousVersion: try reader.integer("result.previousVersion"))
        case 2: return .deleted(count: try reader.integer("result.count"))
        case 3:
            guard try reader.flag("result.found") else { return .got(nil) }
            return .got(try readKeyValue(from: &reader))
        case 4:
            var entry = try readKeyValue(from: &reader)
            entry.lease = LeaseID(try reader.integer("result.lease"))
            guard entry.lease != .none else { throw .outOfRange(field: "result.lease") }
            return .got(entry)
        default: throw .unknown(field: "result.operation")
        }
    }

    private static func readKeyValue(
        from reader: inout ByteReader
    ) throws(DecodeError) -> KeyValue {
        let key = try reader.blob("result.key", max: Limits.keyBytesMax)
        let value = try reader.blob("result.value", max: Limits.valueBytesMax)
        return KeyValue(
            key: key, value: value,
            createRevision: Revision(try reader.integer("result.createRevision")),
            modRevision: Revision(try reader.integer("result.modRevision")),
            version: try reader.integer("result.version"))
    }
}
