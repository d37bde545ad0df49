// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import Synchronization

/// What a backup shows.
public struct BackupSummary: Sendable, Equatable {
    public var clusterID: String
    public var revision: Revision
    /// Bytes of the file.
    public var byteCount: UInt64
    /// When it was made, in milliseconds since 1970, by the clock of the node that made it; 0 where
    /// that is not known.
    public var wallMilliseconds: UInt64
}

/// The answer to `restore`.
public struct RestoreResult: Sendable, Equatable {
    /// Of the cluster that begins with the restored node.
    public var clusterID: String
    public var revision: Revision
}

extension AspenClient {
    /// Pieces in which a backup is sent to a node, in bytes.
    static let restorePieceBytes = Limits.snapshotChunkBytesMax

    /// One consistent copy of everything, taken while the cluster serves.
    ///
    /// - Parameter write: gets the pieces of the backup in order, on the client's own thread: while
    ///   it blocks, nothing more is sent. What it throws ends the backup.
    /// - Throws: what `write` threw as `storage`; `unavailable` or `unknownOutcome` when the
    ///   connection was lost: then what was written is of no use.
    public func backup(
        timeout: Duration = .seconds(3600),
        write: @escaping @Sendable ([UInt8]) throws -> Void
    ) async throws(AspenError) -> BackupSummary {
        var request = WireRequest()
        request.backup = .init()
        let state = Mutex((checker: BackupChecker(), failure: AspenError?.none))
        @Sendable func take(_ response: WireResponse) -> Bool {
            guard case .backup(let piece) = response.response else { return false }
            let bytes = Array(piece.chunk)
            return state.withLock { state in
                do {
                    try state.checker.append(bytes)
                    try write(bytes)
                } catch let error as AspenError {
                    state.failure = state.failure ?? error
                } catch {
                    state.failure = state.failure ?? AspenError(.storage, "\(error)")
                }
                return !piece.isLast && state.failure == nil
            }
        }
        try await stream(request, timeout: timeout, part: take)
        let result: Result<BackupSummary, AspenError> = state.withLock { state in
            if let failure = state.failure { return .failure(failure) }
            do throws(AspenError) {
                return .success(BackupSummary(try state.checker.finish(), state.checker.byteCount))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Puts a backup in force on the node asked, which must have an empty data directory. It is then
    /// the first node of a new cluster with the state of the backup's revision; sessions are gone.
    ///
    /// - Parameter read: gives the next bytes, as many as it likes up to the number it is told;
    ///   none at the end.
    /// - Throws: `alreadyInitialized`; `corrupt` for what is no sound backup.
    public func restore(
        timeout: Duration = .seconds(3600), read: (Int) throws(AspenError) -> [UInt8]
    ) async throws(AspenError) -> RestoreResult {
        var offset: UInt64 = 0
        var piece = try read(Self.restorePieceBytes)
        while true {
            let next = piece.isEmpty ? [] : try read(Self.restorePieceBytes)
            var request = WireRequest()
            request.restoreChunk.offset = offset
            request.restoreChunk.chunk = Data(piece)
            request.restoreChunk.isLast = next.isEmpty
            let answer: RestoreResult = try await perform(
                request, .unnumbered, timeout: timeout
            ) { response in
                guard case .restoreChunk(let answer) = response else { return nil }
                return RestoreResult(
                    clusterID: answer.clusterID, revision: Revision(answer.revision))
            }
            offset += UInt64(piece.count)
            if next.isEmpty { return answer }
            piece = next
        }
    }

    /// Makes the node asked the only voter of its cluster, which gets another id. For when a majority
    /// of the voters is lost for good, and only then: read the page "Recovery" first.
    ///
    /// - Throws: `preconditionFailed` when a leader is known, or the id is not the cluster's.
    public func recoverQuorum(
        clusterID: String, timeout: Duration? = nil
    ) async throws(AspenError) -> LogID {
        var request = WireRequest()
        request.recoverQuorum.clusterID = clusterID
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .recoverQuorum(let answer) = response else { return nil }
            return LogID(wire: answer.logID)
        }
    }
}

extension BackupSummary {
    init(_ header: BackupHeader, _ byteCount: UInt64) {
        self.init(
            clusterID: header.cluster, revision: header.revision, byteCount: byteCount,
            wallMilliseconds: header.wallMilliseconds)
    }

    /// Reads a whole backup and checks it.
    ///
    /// - Parameter read: as for `restore`.
    /// - Throws: `corrupt`, `unsupportedVersion`, and what `read` throws.
    public static func verify(
        read: (Int) throws(AspenError) -> [UInt8]
    ) throws(AspenError) -> BackupSummary {
        var checker = BackupChecker()
        while true {
            let bytes = try read(AspenClient.restorePieceBytes)
            if bytes.isEmpty { break }
            try checker.append(bytes)
        }
        return BackupSummary(try checker.finish(), checker.byteCount)
    }
}
