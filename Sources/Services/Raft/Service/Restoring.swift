// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import CAspenVFS
import Glibc
import KVCore
import NIOCore
import NetClient
import RaftCore
import RaftStorage

/// A backup on its way in. It is spooled to a file without a name beside the state and checked as a
/// whole; then the state is built beside the one in force, put in its place by a rename, and the log
/// set to begin behind it, as with a snapshot from a leader: a crash before the rename leaves an
/// empty node, one after it a state ahead of its log, which the next start mends. The node is then
/// the only voter of a cluster with a new id: nobody of the old one, should any live, speaks to it.
// SAFETY: `file` and `checker` are touched on the state thread only; the rest on the loop only.
final class RestoreIntake: @unchecked Sendable {
    /// Bytes taken so far.
    var received: UInt64 = 0
    var isBusy = false
    private var descriptor: CInt = -1
    private var checker = BackupChecker()

    deinit { if descriptor >= 0 { close(descriptor) } }

    // MARK: On the state thread

    /// - Returns: why the bytes cannot be taken.
    func append(_ bytes: [UInt8], directory: String) -> AspenError? {
        do throws(AspenError) {
            if descriptor < 0 {
                descriptor = aspen_vfs_unnamed_file(directory)
                guard descriptor >= 0 else { throw Self.failed(-descriptor) }
            }
            var done = 0
            let offset = Int(checker.byteCount)
            while done < bytes.count {
                let wrote = bytes.withUnsafeBytes {
                    pwrite(
                        descriptor, $0.baseAddress.map { $0 + done }, bytes.count - done,
                        offset + done)
                }
                if wrote < 0, errno == EINTR { continue }
                guard wrote > 0 else { throw Self.failed(errno) }
                done += wrote
            }
            try checker.append(bytes)
            return nil
        } catch {
            return error
        }
    }

    private static func failed(_ code: CInt) -> AspenError {
        AspenError(.storage, "the backup cannot be stored here: \(String(cString: strerror(code)))")
    }

    /// Checks everything, then puts the state in force.
    func finish(
        in store: any StateStore, as membership: Membership
    ) throws -> Result<SnapshotMeta, AspenError> {
        do {
            _ = try checker.finish()
            let bodyEnd = checker.bodyOffset + checker.bodyBytes
            let snapshot = try StateFromBackup { self.pieces(upTo: bodyEnd) }.put(
                into: store, as: membership)
            return .success(snapshot)
        } catch let error as AspenError {
            return .failure(error)
        } catch StorageError.corrupt(let reason) {
            return .failure(AspenError(.corrupt, "the backup cannot be used: \(reason)"))
        } catch let error as StorageError where error.isFull {
            return .failure(AspenError(.storage, "the backup does not fit: \(error.text)"))
        }
    }

    private func pieces(upTo end: UInt64) -> () throws(StorageError) -> [UInt8]? {
        var offset = checker.bodyOffset
        let descriptor = descriptor
        return { () throws(StorageError) -> [UInt8]? in
            let count = Int(min(262_144, end - min(end, offset)))
            guard count > 0 else { return nil }
            var bytes = [UInt8](repeating: 0, count: count)
            let got = pread(descriptor, &bytes, count, Int(offset))
            guard got > 0 else { throw .disk("the spooled backup cannot be read") }
            offset += UInt64(got)
            return Array(bytes.prefix(got))
        }
    }
}

extension ClientService {
    func restoreChunk(_ body: Aspen_Client_V1_RestoreChunkRequest, _ origin: RequestOrigin) {
        guard node.membership == nil, !node.isRebuilt, node.core.lastIndex == .zero else {
            restoring = nil
            return origin.fail(
                AspenError(
                    .alreadyInitialized,
                    "this node belongs to a cluster, or has a log of one: a backup is restored to a "
                        + "node with an empty data directory"))
        }
        guard links.netIdentity != nil else {
            return origin.fail(
                AspenError(
                    .unavailable, "aspend-net cannot be reached: is it running?", retry: .safe))
        }
        if body.offset == 0, restoring?.isBusy != true { restoring = RestoreIntake() }
        guard let intake = restoring, !intake.isBusy, body.offset == intake.received else {
            return origin.fail(
                AspenError(
                    .preconditionFailed,
                    "that piece does not follow: \(restoring?.received ?? 0) bytes have been taken")
            )
        }
        guard body.chunk.count <= Limits.snapshotChunkBytesMax else {
            return origin.fail(
                AspenError(
                    .invalidArgument,
                    "a piece has at most \(Limits.snapshotChunkBytesMax) bytes"))
        }
        intake.isBusy = true
        let (bytes, directory) = (Array(body.chunk), options.spoolDirectory)
        let isLast = body.isLast
        let box = NIOLoopBound((self, origin), eventLoop: node.loop)
        node.state.perform { _ in
            let failure = intake.append(bytes, directory: directory)
            return {
                let (service, origin) = box.value
                service.took(bytes.count, intake, isLast: isLast, failure, origin)
            }
        }
    }

    private func took(
        _ count: Int, _ intake: RestoreIntake, isLast: Bool, _ failure: AspenError?,
        _ origin: RequestOrigin
    ) {
        intake.isBusy = false
        if let failure {
            restoring = nil
            return origin.fail(failure)
        }
        intake.received += UInt64(count)
        guard isLast else {
            var body = Aspen_Client_V1_RestoreChunkResponse()
            body.received = intake.received
            return origin.reply(WireResponse(.restoreChunk(body)))
        }
        restoring = nil
        guard node.membership == nil, let identity = links.netIdentity else {
            return origin.fail(
                AspenError(.alreadyInitialized, "this node has become part of a cluster meanwhile"))
        }
        let own = options.raft.node
        let member = Membership.Member(
            node: own, endpoint: identity.endpoint, replica: links.identity.replica,
            addresses: Array(identity.addresses.prefix(Limits.addressesMax)))
        let membership = Membership(
            cluster: ClusterID(UInt128.random(in: 1...UInt128.max)), voters: [own],
            members: [member])
        putInForce(intake, membership, origin)
    }

    private func putInForce(
        _ intake: RestoreIntake, _ membership: Membership, _ origin: RequestOrigin
    ) {
        node.pause()
        let box = NIOLoopBound((self, origin), eventLoop: node.loop)
        let received = intake.received
        let policy = options.compaction
        node.state.perform { store in
            let result = try intake.finish(in: store, as: membership)
            let batch = AppliedBatch(
                index: store.appliedIndex, term: store.appliedTerm, revision: store.revision,
                answers: [], facts: HousekeepingFacts(store, policy),
                membershipIndex: store.membership?.index)
            return {
                let (service, origin) = box.value
                let node = service.node
                switch result {
                case .failure(let error):
                    node.resume()
                    origin.fail(error)
                case .success(let meta):
                    node.snapshots.putInForce(batch, meta) {
                        node.events.record(
                            "restored", "a backup was put in force, up to index \(batch.index)")
                        var body = Aspen_Client_V1_RestoreChunkResponse()
                        body.received = received
                        body.clusterID = membership.cluster.text
                        body.revision = batch.revision.rawValue
                        origin.reply(WireResponse(.restoreChunk(body)))
                    }
                }
            }
        }
    }

    // MARK: - The majority is gone for good

    func recoverQuorum(_ body: Aspen_Client_V1_RecoverQuorumRequest, _ origin: RequestOrigin) {
        guard let membership = node.membership else { return origin.fail(outsideCluster) }
        guard body.clusterID == membership.cluster.text else {
            return origin.fail(
                AspenError(
                    .preconditionFailed,
                    "this node belongs to cluster \(membership.cluster.text), not to "
                        + "'\(body.clusterID)'"))
        }
        if let leader = node.standing.leader {
            return origin.fail(
                AspenError(
                    .preconditionFailed,
                    "node \(leader) leads: the cluster has its quorum. Remove nodes that are gone by "
                        + "`aspen-cli cluster remove`"))
        }
        let cluster = ClusterID(UInt128.random(in: 1...UInt128.max))
        let id = register(origin, .recoverQuorum)
        node.events.record("recovered", "was made the only voter by the administrator")
        node.step(.recover(cluster: cluster, id: id))
    }
}
