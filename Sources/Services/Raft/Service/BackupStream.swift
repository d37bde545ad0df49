// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import RaftCore
import RaftStorage

/// A backup on its way to a client: pieces leave only while the connection takes them. The snapshot
/// behind it is spooled to a file without a name as fast as the disk allows, so that a slow client
/// holds up neither writes nor checkpoints. Confined to the event loop.
final class BackupStream {
    /// Between two looks at a connection that is full.
    static let pause = TimeAmount.milliseconds(10)
    /// A client that has taken nothing for so long is given up.
    static let stallTimeout = Duration.seconds(60)
    /// Backups at a time; each has a spool file, as large as the state where there is room for that.
    static let streamsMax = 2

    private let service: ClientService
    private let origin: RequestOrigin
    private let reader: BackupReader
    private var movedAt = RaftNode.now

    static func start(_ service: ClientService, _ origin: RequestOrigin) {
        guard service.backupCount < streamsMax else {
            return origin.fail(
                AspenError(
                    .resourceExhausted, "\(streamsMax) backups are under way: wait for one",
                    retry: .never))
        }
        service.backupCount += 1
        let cluster = service.node.membership?.cluster.text ?? ""
        let wall = NodeEvents.wallMilliseconds()
        let box = NIOLoopBound((service, origin), eventLoop: service.node.loop)
        service.node.state.perform { [room = service.node.space.spoolBytesMax] store in
            let header = BackupHeader(
                cluster: cluster, revision: store.revision, index: store.appliedIndex,
                term: store.appliedTerm, wallMilliseconds: wall)
            do {
                guard let room else { throw StorageError.disk("no space left on the disk for it") }
                let reader = BackupReader(try store.makeSnapshot(spoolBytesMax: room), header)
                return {
                    let (service, origin) = box.value
                    BackupStream(service, origin, reader).begin()
                }
            } catch let error as StorageError where error.isFull {
                return {
                    let (service, origin) = box.value
                    service.backupCount -= 1
                    origin.fail(AspenError(.storage, "the backup failed: \(error.text)"))
                }
            }
        }
    }

    private init(_ service: ClientService, _ origin: RequestOrigin, _ reader: BackupReader) {
        self.service = service
        self.origin = origin
        self.reader = reader
    }

    private func begin() {
        var body = Aspen_Client_V1_BackupResponse()
        body.chunk = Data(reader.first)
        body.revision = reader.header.revision.rawValue
        body.clusterID = reader.header.cluster
        origin.sink.part(WireResponse(.backup(body)), to: origin.id)
        pump()
    }

    private func pump() {
        let now = RaftNode.now
        guard origin.sink.isOpen, now - movedAt < Self.stallTimeout else {
            end()
            return origin.fail(AspenError(.unavailable, "the backup was not read", retry: .safe))
        }
        let box = NIOLoopBound(self, eventLoop: service.node.loop)
        // Not one that waits for the spool on the state thread: writes would wait behind it.
        guard origin.sink.isWritable, reader.isReady else {
            // It is not the client that is slow.
            if origin.sink.isWritable { movedAt = now }
            service.node.loop.scheduleTask(in: Self.pause) { box.value.pump() }
            return
        }
        movedAt = now
        service.node.state.perform { [reader] _ in
            let (bytes, failure) = reader.next()
            return { box.value.didRead(bytes, failure) }
        }
    }

    private func didRead(_ bytes: [UInt8]?, _ failure: StorageError?) {
        if let failure {
            end()
            origin.fail(AspenError(.storage, "the backup failed: \(failure.text)"))
            // A damaged page is the state's affair: the next start makes that anew.
            if case .corrupt = failure { service.node.fatal(failure) }
            return
        }
        var body = Aspen_Client_V1_BackupResponse()
        guard let bytes else {
            body.chunk = Data(reader.last())
            body.isLast = true
            end()
            return origin.reply(WireResponse(.backup(body)))
        }
        body.chunk = Data(bytes)
        origin.sink.part(WireResponse(.backup(body)), to: origin.id)
        pump()
    }

    private func end() {
        service.backupCount -= 1
        service.node.state.perform { [reader] _ in
            reader.close()
            return {}
        }
    }
}

/// The snapshot and the frame around it.
// SAFETY: `header` and `first` never change; the reader is used on the state thread only, one call
// at a time, but for `isReady`, which any thread may ask; `last` is called on the loop after the last
// of them.
private final class BackupReader: @unchecked Sendable {
    let header: BackupHeader
    let first: [UInt8]
    private let reader: any SnapshotReader
    private var writer = BackupWriter()

    init(_ reader: any SnapshotReader, _ header: BackupHeader) {
        self.reader = reader
        self.header = header
        first = writer.begin(header)
    }

    var isReady: Bool { reader.isReady }

    /// Nil at the end.
    func next() -> ([UInt8]?, StorageError?) {
        do {
            let bytes = try reader.next()
            if let bytes { writer.add(bytes) }
            return (bytes, nil)
        } catch {
            return (nil, error)
        }
    }

    func last() -> [UInt8] { writer.end() }
    func close() { reader.close() }
}
