// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// Commands as bytes: the payload of a log entry. The first byte is the state-machine version that
/// is needed to understand the rest, the second says which command it is. Decoding is total and
/// holds to `Limits`.
package enum CommandCodec {
    /// Why a payload is not a command.
    package enum Failure: Error, Equatable, Sendable {
        /// Written for a newer state machine. A node that meets this in a committed entry must stop:
        /// going on without the entry would be another state than that of its peers.
        case unknownVersion(UInt8)
        /// No program of this version writes such bytes.
        case malformed(DecodeError)
    }

    private enum Tag: UInt8 {
        case openSession = 1
        case keepSessionAlive = 2
        case closeSession = 3
        case expireSessions = 4
        case transaction = 5
        case compact = 6
        case activateVersion = 7
        case grantLease = 8
        case revokeLease = 9
        case keepLeaseAlive = 10
        case expireLeases = 11
    }

    package static func encode(_ command: Command) -> [UInt8] {
        var writer = ByteWriter(capacity: 64)
        writer.byte(command.version)
        switch command {
        case .openSession: writer.byte(Tag.openSession.rawValue)
        case .keepSessionAlive(let session):
            writer.byte(Tag.keepSessionAlive.rawValue)
            writer.integer(session.rawValue)
        case .closeSession(let session):
            writer.byte(Tag.closeSession.rawValue)
            writer.integer(session.rawValue)
        case .expireSessions: writer.byte(Tag.expireSessions.rawValue)
        case .transaction(let transaction, let request):
            writer.byte(Tag.transaction.rawValue)
            write(request, to: &writer)
            write(transaction, to: &writer)
        case .compact(let revision):
            writer.byte(Tag.compact.rawValue)
            writer.integer(revision.rawValue)
        case .activateVersion(let version):
            writer.byte(Tag.activateVersion.rawValue)
            writer.integer(version)
        case .grantLease(let id, let ttlMilliseconds, let request):
            writer.byte(Tag.grantLease.rawValue)
            write(request, to: &writer)
            writer.integer(id.rawValue)
            writer.integer(ttlMilliseconds)
        case .revokeLease(let id, let request):
            writer.byte(Tag.revokeLease.rawValue)
            write(request, to: &writer)
            writer.integer(id.rawValue)
        case .keepLeaseAlive(let id):
            writer.byte(Tag.keepLeaseAlive.rawValue)
            writer.integer(id.rawValue)
        case .expireLeases: writer.byte(Tag.expireLeases.rawValue)
        }
        return writer.bytes
    }

    package static func decode(_ payload: [UInt8]) throws(Failure) -> Command {
        do {
            var reader = ByteReader(payload)
            let version = try reader.byte("command.version")
            guard version >= KVVersion.first else {
                throw Failure.malformed(.unknown(field: "command.version"))
            }
            guard version <= KVVersion.supported else { throw Failure.unknownVersion(version) }
            guard payload.count <= KVLimits.commandBytesMax else {
                throw Failure.malformed(.outOfRange(field: "command"))
            }
            let command = try read(from: &reader)
            try reader.end()
            // One encoding for each command: no program writes more than is needed.
            guard command.version == version else {
                throw Failure.malformed(.outOfRange(field: "command.version"))
            }
            return command
        } catch let failure as Failure {
            throw failure
        } catch let error as DecodeError {
            throw .malformed(error)
        } catch {
            preconditionFailure("nothing else is thrown")
        }
    }

    private static func read(from reader: inout ByteReader) throws(DecodeError) -> Command {
        guard let tag = Tag(rawValue: try reader.byte("command.tag")) else {
            throw .unknown(field: "command.tag")
        }
        switch tag {
        case .openSession: return .openSession
        case .keepSessionAlive:
            return .keepSessionAlive(SessionID(try reader.integer("command.session")))
        case .closeSession:
            return .closeSession(SessionID(try reader.integer("command.session")))
        case .expireSessions: return .expireSessions
        case .transaction:
            let request = try readSessionRequest(from: &reader)
            return .transaction(try readTransaction(from: &reader), request)
        case .compact: return .compact(Revision(try reader.integer("command.revision")))
        case .activateVersion: return .activateVersion(try reader.integer("command.version"))
        case .grantLease:
            let request = try readSessionRequest(from: &reader)
            let id = LeaseID(try reader.integer("command.lease"))
            return .grantLease(
                id: id, ttlMilliseconds: try reader.integer("command.ttl"), request)
        case .revokeLease:
            let request = try readSessionRequest(from: &reader)
            return .revokeLease(LeaseID(try reader.integer("command.lease")), request)
        case .keepLeaseAlive:
            return .keepLeaseAlive(LeaseID(try reader.integer("command.lease")))
        case .expireLeases: return .expireLeases
        }
    }

    // MARK: Session request

    private static func write(_ request: SessionRequest?, to writer: inout ByteWriter) {
        writer.flag(request != nil)
        guard let request else { return }
        writer.integer(request.session.rawValue)
        writer.integer(request.number)
        writer.integer(request.acknowledgedBelow)
    }

    private static func readSessionRequest(
        from reader: inout ByteReader
    ) throws(DecodeError) -> SessionRequest? {
        guard try reader.flag("request.present") else { return nil }
        return SessionRequest(
            session: SessionID(try reader.integer("request.session")),
            number: try reader.integer("request.number"),
            acknowledgedBelow: try reader.integer("request.acknowledgedBelow"))
    }

    // MARK: Transaction

    private static func write(_ transaction: Transaction, to writer: inout ByteWriter) {
        writer.integer(UInt32(transaction.compares.count))
        for compare in transaction.compares { write(compare, to: &writer) }
        for operations in [transaction.success, transaction.failure] {
            writer.integer(UInt32(operations.count))
            for operation in operations { write(operation, to: &writer) }
        }
    }

    private static func readTransaction(
        from reader: inout ByteReader
    ) throws(DecodeError) -> Transaction {
        let max = Limits.transactionOperationsMax
        var compares: [Compare] = []
        for _ in 0..<(try reader.count("transaction.compares", max: max, elementBytesMin: 7)) {
            compares.append(try readCompare(from: &reader))
        }
        var success: [Operation] = []
        for _ in 0..<(try reader.count("transaction.success", max: max, elementBytesMin: 5)) {
            success.append(try readOperation(from: &reader))
        }
        var failure: [Operation] = []
        for _ in 0..<(try reader.count("transaction.failure", max: max, elementBytesMin: 5)) {
            failure.append(try readOperation(from: &reader))
        }
        return Transaction(compares: compares, success: success, failure: failure)
    }

    private static func write(_ compare: Compare, to writer: inout ByteWriter) {
        writer.byte(compare.relation.rawValue)
        writer.blob(compare.key)
        switch compare.target {
        case .value(let value):
            writer.byte(0)
            writer.blob(value)
        case .version(let version):
            writer.byte(1)
            writer.integer(version)
        case .createRevision(let revision):
            writer.byte(2)
            writer.integer(revision.rawValue)
        case .modRevision(let revision):
            writer.byte(3)
            writer.integer(revision.rawValue)
        case .exists(let exists):
            writer.byte(4)
            writer.flag(exists)
        }
    }

    private static func readCompare(
        from reader: inout ByteReader
    ) throws(DecodeError) -> Compare {
        guard let relation = Compare.Relation(rawValue: try reader.byte("compare.relation")) else {
            throw .unknown(field: "compare.relation")
        }
        let key = try reader.blob("compare.key", max: Limits.keyBytesMax)
        let target: Compare.Target
        switch try reader.byte("compare.target") {
        case 0: target = .value(try reader.blob("compare.value", max: Limits.valueBytesMax))
        case 1: target = .version(try reader.integer("compare.version"))
        case 2: target = .createRevision(Revision(try reader.integer("compare.revision")))
        case 3: target = .modRevision(Revision(try reader.integer("compare.revision")))
        case 4: target = .exists(try reader.flag("compare.exists"))
        default: throw .unknown(field: "compare.target")
        }
        return Compare(key: key, target: target, relation: relation)
    }

    private static func write(_ operation: Operation, to writer: inout ByteWriter) {
        switch operation {
        case .put(let key, let value, let lease):
            writer.byte(lease == .none ? 1 : 5)
            writer.blob(key)
            writer.blob(value)
            if lease != .none { writer.integer(lease.rawValue) }
        case .delete(let key):
            writer.byte(2)
            writer.blob(key)
        case .deleteRange(let from, let to):
            writer.byte(3)
            writer.blob(from)
            writer.flag(to != nil)
            if let to { writer.blob(to) }
        case .get(let key):
            writer.byte(4)
            writer.blob(key)
        }
    }

    private static func readOperation(
        from reader: inout ByteReader
    ) throws(DecodeError) -> Operation {
        switch try reader.byte("operation.tag") {
        case 1:
            let key = try reader.blob("operation.key", max: Limits.keyBytesMax)
            return .put(
                key: key, value: try reader.blob("operation.value", max: Limits.valueBytesMax))
        case 2: return .delete(key: try reader.blob("operation.key", max: Limits.keyBytesMax))
        case 3:
            let from = try reader.blob("operation.from", max: KVLimits.boundBytesMax)
            guard try reader.flag("operation.bounded") else {
                return .deleteRange(from: from, to: nil)
            }
            let to = try reader.blob("operation.to", max: KVLimits.boundBytesMax)
            return .deleteRange(from: from, to: to)
        case 4: return .get(key: try reader.blob("operation.key", max: Limits.keyBytesMax))
        case 5:
            let key = try reader.blob("operation.key", max: Limits.keyBytesMax)
            let value = try reader.blob("operation.value", max: Limits.valueBytesMax)
            let lease = LeaseID(try reader.integer("operation.lease"))
            guard lease != .none else { throw .outOfRange(field: "operation.lease") }
            return .put(key: key, value: value, lease: lease)
        default: throw .unknown(field: "operation.tag")
        }
    }
}
