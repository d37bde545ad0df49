// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import Testing

/// A directory of its own for one test, removed with it.
final class StateDirectory: Sendable {
    let path: String

    init() {
        var template = Array("/tmp/aspen-state-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { fatalError("no temporary directory") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { Self.remove(path) }

    static func remove(_ path: String) {
        for name in names(in: path) { unlink(path + "/" + name) }
        rmdir(path)
    }

    static func names(in path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    static func read(_ path: String) -> [UInt8] {
        let descriptor = open(path, O_RDONLY)
        guard descriptor >= 0 else { return [] }
        defer { Glibc.close(descriptor) }
        let count = Int(lseek(descriptor, 0, SEEK_END))
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            initialized = max(0, pread(descriptor, buffer.baseAddress, count, 0))
        }
    }

    static func write(_ bytes: [UInt8], to path: String) {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        precondition(descriptor >= 0)
        defer { Glibc.close(descriptor) }
        precondition(Glibc.write(descriptor, bytes, bytes.count) == bytes.count)
    }

    /// What a killed process would leave: all files as they are now.
    func copy() -> StateDirectory {
        let copy = StateDirectory()
        for name in Self.names(in: path) {
            Self.write(Self.read(path + "/" + name), to: copy.path + "/" + name)
        }
        return copy
    }
}

/// Makes entries of a log one after the other.
struct EntrySource {
    var random: RandomSource
    var next = LogIndex(1)
    var term = Term(1)
    var time: UInt64 = 1_000_000
    var keyCount = 60
    var sessions: [SessionID] = []
    var numbers: [SessionID: UInt64] = [:]
    /// Granted by an entry of this source; they may have ended.
    var leases: [LeaseID] = []
    var isActivated = false

    init(seed: UInt64) { random = RandomSource(seed: seed) }

    static let membership: Membership = {
        guard let endpoint = EndpointID(bytes: [UInt8](repeating: 7, count: 32)) else {
            fatalError("32 bytes are an endpoint id")
        }
        return Membership(
            cluster: ClusterID(42), voters: [NodeID(1)],
            members: [
                .init(
                    node: NodeID(1), endpoint: endpoint, replica: ReplicaID(9),
                    addresses: ["192.0.2.1:7001"])
            ])
    }()

    mutating func entry(_ kind: Entry.Kind, _ payload: [UInt8]) -> Entry {
        defer { next = next.next }
        return Entry(
            index: next, term: term, kind: kind, origin: nil,
            time: ClusterTime(milliseconds: time), payload: payload)
    }

    mutating func command(_ command: Command) -> Entry {
        entry(.command, CommandCodec.encode(command))
    }

    mutating func put(_ key: [UInt8], _ value: [UInt8]) -> Entry {
        command(.transaction(Transaction(success: [.put(key: key, value: value)]), nil))
    }

    mutating func membership() -> Entry { entry(.membership, Self.membership.payload) }

    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    mutating func key() -> [UInt8] {
        let number = random.uniform(0..<keyCount)
        // Keys of all lengths; some need overflow pages in the index.
        return [UInt8(number)] + [UInt8](repeating: 0, count: number % 7 == 0 ? 1000 : number % 5)
    }

    mutating func value() -> [UInt8] {
        switch random.uniform(0..<20) {
        case 0: []
        case 1: bytes(9000)
        default: bytes(random.uniform(1..<200))
        }
    }

    mutating func operation() -> KVCore.Operation {
        switch random.uniform(0..<10) {
        case 0..<6: return .put(key: key(), value: value(), lease: lease())
        case 6, 7: return .delete(key: key())
        case 8: return .deleteRange(from: key(), to: key())
        default: return .get(key: key())
        }
    }

    mutating func lease() -> LeaseID {
        guard !leases.isEmpty, random.chance(1, in: 3) else { return .none }
        return leases[random.uniform(0..<leases.count)]
    }

    /// Leases, once they are activated, which happens early.
    mutating func leaseEntry() -> Entry {
        guard isActivated else {
            isActivated = true
            return command(.activateVersion(2))
        }
        switch random.uniform(0..<6) {
        case 0: return command(.expireLeases)
        case 1: return command(.keepLeaseAlive(leases.last ?? LeaseID(1)))
        case 2: return command(.revokeLease(leases.first ?? LeaseID(1), nil))
        default:
            if leases.count > 6 { leases.removeFirst() }
            leases.append(LeaseID(next.rawValue))
            let ttl = random.uniform(1000..<100_000 as Range<UInt64>)
            return command(.grantLease(id: .none, ttlMilliseconds: ttl, nil))
        }
    }

    mutating func transaction() -> Transaction {
        let count = random.uniform(1..<5)
        let compare = Compare(key: key(), target: .exists(random.chance(1, in: 2)))
        let isConditional = random.chance(1, in: 3)
        return Transaction(
            compares: isConditional ? [compare] : [],
            success: (0..<count).map { _ in operation() },
            failure: isConditional ? [operation()] : [])
    }

    /// Any entry.
    mutating func any(revision: Revision) -> Entry {
        if random.chance(1, in: 50) { term = term.next }
        time += random.uniform(0..<3000 as Range<UInt64>)
        switch random.uniform(0..<44) {
        case 40...: return leaseEntry()
        case 0: return entry(.noop, [])
        case 1: return membership()
        case 2:
            sessions.append(SessionID(next.rawValue))
            return command(.openSession)
        case 3: return command(.expireSessions)
        case 4:
            let back = random.uniform(0..<100 as Range<UInt64>)
            return command(.compact(Revision(revision.rawValue - min(back, revision.rawValue))))
        case 5: return entry(.command, [1, 0xee])
        case 6..<20:
            guard !sessions.isEmpty else { return command(.openSession) }
            let session = sessions[random.uniform(0..<sessions.count)]
            // Mostly a new number, sometimes an old one again.
            var number = numbers[session] ?? 0
            if !random.chance(1, in: 5) {
                number += 1
                numbers[session] = number
            }
            return command(
                .transaction(
                    transaction(),
                    SessionRequest(
                        session: session, number: number,
                        acknowledgedBelow: number - min(number, 3))))
        default: return command(.transaction(transaction(), nil))
        }
    }

    mutating func batch(_ count: Int, revision: Revision) -> [Entry] {
        (0..<count).map { _ in any(revision: revision) }
    }
}

/// Streams one state into another.
func transfer(from source: any StateStore, to target: any StateStore) throws {
    let reader = try source.makeSnapshot()
    let writer = try target.receiveSnapshot(reader.meta)
    var count = 0
    while let piece = try reader.next() {
        #expect(piece.count <= Limits.snapshotChunkBytesMax)
        try writer.append(piece)
        count += 1
    }
    reader.close()
    #expect(count > 0)
    try writer.finish()
}

/// Everything a reader can see is the same in both.
func expectEqual(
    _ left: any StateStore, _ right: any StateStore,
    _ location: SourceLocation = #_sourceLocation
) throws {
    #expect(left.appliedIndex == right.appliedIndex, sourceLocation: location)
    #expect(left.appliedTerm == right.appliedTerm, sourceLocation: location)
    #expect(left.revision == right.revision, sourceLocation: location)
    #expect(left.time == right.time, sourceLocation: location)
    #expect(left.membership?.index == right.membership?.index, sourceLocation: location)
    #expect(
        left.membership?.membership == right.membership?.membership, sourceLocation: location)
    #expect(try left.contentHash() == right.contentHash(), sourceLocation: location)
    #expect(try left.nextSessionExpiry() == right.nextSessionExpiry(), sourceLocation: location)
    var random = RandomSource(seed: left.appliedIndex.rawValue)
    for step in 0..<6 as Range<UInt64> {
        let past = Revision(random.uniform(0..<left.revision.rawValue + 2))
        let from: [UInt8] = step % 2 == 0 ? [] : [UInt8(random.uniform(0..<60))]
        let to: [UInt8]? = step % 3 == 0 ? nil : [UInt8(random.uniform(0..<60)), 0]
        let request = RangeRequest(
            from: from, to: to, limit: random.uniform(1..<50), at: step == 0 ? nil : past,
            keysOnly: step == 5)
        let page = try left.range(request)
        #expect(try right.range(request) == page, sourceLocation: location)
        try expectEqualReads(left, right, request, location)
    }
    let leases = try left.leases(after: .none, limit: 1000)
    #expect(try right.leases(after: .none, limit: 1000) == leases, sourceLocation: location)
    for lease in leases.leases {
        #expect(try left.lease(lease.id) == lease, sourceLocation: location)
        #expect(try right.lease(lease.id) == lease, sourceLocation: location)
        let keys = try left.keys(of: lease.id, limit: 1000)
        #expect(keys.count == Int(lease.keyCount), sourceLocation: location)
        #expect(try right.keys(of: lease.id, limit: 1000) == keys, sourceLocation: location)
    }
    #expect(try left.nextLeaseExpiry() == right.nextLeaseExpiry(), sourceLocation: location)
    #expect(left.meta == right.meta, sourceLocation: location)
}

private func expectEqualReads(
    _ left: any StateStore, _ right: any StateStore, _ request: RangeRequest,
    _ location: SourceLocation
) throws {
    var down = request
    down.descending = true
    #expect(try left.range(down) == right.range(down), sourceLocation: location)
    down.excluding = [12]
    #expect(try left.range(down) == right.range(down), sourceLocation: location)
    let count = CountRequest(
        from: request.from, to: request.to, at: request.at, excluding: down.excluding)
    #expect(try left.count(count) == right.count(count), sourceLocation: location)
    let key = request.from + (request.from.isEmpty ? [7] : [])
    let keys = [key, [1], [2], [3, 0, 0]]
    #expect(
        try left.get(keys, at: request.at) == right.get(keys, at: request.at),
        sourceLocation: location)
    for key in keys {
        #expect(
            try left.history(of: key, before: request.at, limit: 3)
                == right.history(of: key, before: request.at, limit: 3), sourceLocation: location)
    }
    let compacted = left.meta.compacted
    for after in [request.at ?? .zero, compacted] {
        let changes = ChangesRequest(
            after: .last(of: after), count: 20, bytesMax: 20_000, withPrevious: true)
        #expect(
            try left.changes(changes) == right.changes(changes), sourceLocation: location)
    }
}

/// What a child of this process would have.
enum Descriptors {
    /// A copy of each descriptor of the file, as fork makes them: of the same open file.
    static func copies(of path: String) -> [Int32] {
        StateDirectory.names(in: "/proc/self/fd").compactMap { name in
            guard let descriptor = Int32(name), target(of: name) == path else { return nil }
            let copy = dup(descriptor)
            return copy >= 0 ? copy : nil
        }
    }

    private static func target(of name: String) -> String {
        guard let path = realpath("/proc/self/fd/\(name)", nil) else { return "" }
        defer { free(path) }
        return String(cString: path)
    }
}
