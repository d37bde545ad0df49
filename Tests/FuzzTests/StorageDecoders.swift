// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenDisk
import AspenTypes
import Configuration
import KVCore
import RaftCore
import RaftStorage

/// What a start reads from the disk, and a restore from a file.
extension Decoder {
    static let entry = Decoder(name: "entry") { bytes in
        var reader = ByteReader(bytes)
        guard let entry = try? Entry.decode(&reader), (try? reader.end()) != nil else {
            return false
        }
        check(encoded(entry) == bytes)
        return true
    } examples: {
        logEntries.map(encoded)
    }

    static let configuration = Decoder(name: "configuration") { bytes in
        let file = TOMLFile(bytes, path: "aspen.toml")
        return file.problems.isEmpty && !file.values.isEmpty
    } examples: {
        [
            "[node]\nid = 3\nlisten = \":7700\"\n",
            "# a comment\n[node]\nid=0x10 # another\nlisten = \"\\u003a7\\U00000037\"\n",
            "node.id = 1_000\n\"node\".listen = '''\n:77'''\n",
        ].map { Array($0.utf8) }
    }

    /// The input is the one segment of a log: the header, which is there four times, and then its
    /// records, up to where zeros begin. Opened once, a log is opened again as it was left.
    static let logRecovery = Decoder(name: "log-recovery") { bytes in
        let header = zeroFilled(bytes.prefix(headerBytes), to: 1024)
        let records = bytes.dropFirst(headerBytes)
        let segment = zeroFilled(header + header + header + header + records, to: segmentBytes)
        let disk = MemoryDisk(image: DiskImage(files: [segmentName: segment]))
        guard let first = try? open(disk) else { return false }
        let (last, state) = (first.lastIndex, first.recovery.hardState)
        let entries = try? first.read(from: first.firstIndex, upTo: last, bytesMax: .max)
        check(last < first.firstIndex || entries?.last?.index == last)
        first.close()
        guard let second = try? open(disk) else {
            check(false)
            return false
        }
        check(second.lastIndex == last && second.recovery.hardState == state)
        check(second.recovery.isTailTrusted == first.recovery.isTailTrusted)
        second.close()
        return first.recovery.isTailTrusted && last > .zero
    } examples: {
        let disk = MemoryDisk()
        let log = try open(disk)
        for (ticket, entry) in logEntries.enumerated() {
            try log.write(
                LogWrite(
                    ticket: DurabilityTicket(UInt64(ticket + 1)), entries: [entry],
                    hardState: HardState(term: entry.term, votedFor: NodeID(1))))
            try log.sync()
        }
        log.close()
        let segment = disk.image.files[segmentName] ?? []
        var bytes = Array(segment.prefix(headerBytes) + segment.dropFirst(4 * 1024))
        while bytes.last == 0 { bytes.removeLast() }
        return [bytes]
    }

    /// The input is what the stream's checksum stands behind.
    static let snapshot = Decoder(name: "snapshot") { bytes in
        var reader = StateStreamReader()
        reader.append(checksummed(bytes))
        var loader = StateLoader(tables: MemoryTables())
        do {
            while let item = try reader.next() { try loader.take(item) }
            guard reader.isComplete else { return false }
            let meta = try loader.finish()
            var rows = loader.tables.rows()
            check(KVMachine<MemoryTables>.rowHash(of: &rows) == meta.rowHash)
            return true
        } catch {
            return false
        }
    } examples: {
        var machine = KVMachine(tables: MemoryTables(), meta: StateMeta())
        let commands: [Command] = [
            .activateVersion(UInt16(KVVersion.supported)), .openSession,
            .grantLease(id: LeaseID(4), ttlMilliseconds: 1000, nil),
            .transaction(
                Transaction(success: [
                    .put(key: [1], value: [2], lease: LeaseID(4)), .put(key: [3], value: [4]),
                ]),
                SessionRequest(session: SessionID(2), number: 1, acknowledgedBelow: 1)),
            .transaction(Transaction(success: [.delete(key: [3])]), nil),
        ]
        let applied = commands.enumerated().map { offset, command in
            CommittedEntry(
                index: LogIndex(UInt64(offset + 1)), term: Term(1),
                time: ClusterTime(milliseconds: 1000), body: .command(command))
        }
        _ = machine.apply(applied)
        var writer = StateStreamWriter(meta: machine.meta, rows: machine.tables.rows())
        var bytes: [UInt8] = []
        while let piece = writer.next(bytesMax: 4096) { bytes += piece }
        return [bytes.dropLast(4)]
    }

    // MARK: - Parts

    private static let segmentBytes = 16 << 10
    /// Of the header's 1024, those that say something.
    private static let headerBytes = 256

    private static func zeroFilled(_ bytes: some Collection<UInt8>, to count: Int) -> [UInt8] {
        bytes + Array(repeating: 0, count: max(0, count - bytes.count))
    }

    private static let segmentName = "log-0000000000000001"

    private static func open(_ disk: MemoryDisk) throws(StorageError) -> SegmentedLog {
        var configuration = LogConfiguration()
        configuration.segmentBytes = segmentBytes
        return try SegmentedLog(disk: disk, configuration: configuration, salt: 7)
    }

    private static func encoded(_ entry: Entry) -> [UInt8] {
        var writer = ByteWriter()
        entry.encode(into: &writer)
        return writer.bytes
    }

    private static let logEntries: [Entry] = (1...4).map { number in
        let isCommand = number != 2
        return Entry(
            index: LogIndex(UInt64(number)), term: Term(number < 3 ? 1 : 2),
            kind: isCommand ? .command : .noop,
            origin: isCommand
                ? ProposalID(node: NodeID(1), incarnation: 2, number: UInt64(number)) : nil,
            time: ClusterTime(milliseconds: 1000), payload: isCommand ? bytes(number * 10) : [])
    }
}
