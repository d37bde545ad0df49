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
            writer.byte(3)
            writer.flag(entry != nil)
            guard let entry else { return }
            writer.blob(entry.key)
            writer.blob(entry.value)
            writer.integer(entry.createRevision.rawValue)
            writer.integer(entry.modRevision.rawValue)
            writer.integer(entry.version)
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
            let key = try reader.blob("result.key", max: Limits.keyBytesMax)
            let value = try reader.blob("result.value", max: Limits.valueBytesMax)
            return .got(
                KeyValue(
                    key: key, value: value,
                    createRevision: Revision(try reader.integer("result.createRevision")),
                    modRevision: Revision(try reader.integer("result.modRevision")),
                    version: try reader.integer("result.version")))
        default: throw .unknown(field: "result.operation")
        }
    }
}
