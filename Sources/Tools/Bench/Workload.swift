// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenMachine
import AspenWire
import FoundationEssentials
import NIOCore

/// Makes requests, and says whether an answer is the right one.
struct Workload {
    typealias Request = Aspen_Client_V1_ClientRequest
    typealias Response = Aspen_Client_V1_ClientResponse

    static let prefix = "bench/"
    /// Bytes of a value that say when it was written (`notify`).
    static let stampBytes = 8
    private static let leaseMilliseconds: UInt64 = 60_000

    private let plan: LoadPlan
    private let noise: Data
    private var random: RandomSource
    private var keys: KeyChooser

    /// - Parameter firstKey: where sequential keys begin.
    init(_ plan: LoadPlan, seed: UInt64, firstKey: Int = 0) {
        self.plan = plan
        random = RandomSource(seed: seed)
        keys = KeyChooser(plan.distribution, keys: plan.keys, first: firstKey)
        // Values are slices of noise: nothing that a disk or a codec could make smaller.
        var noise = Data(capacity: plan.valueSize + 65_536)
        while noise.count < plan.valueSize + 65_536 {
            withUnsafeBytes(of: random.next()) { noise.append(contentsOf: $0) }
        }
        self.noise = noise
    }

    /// How far one client is in what takes several requests.
    struct Progress {
        /// The client's number among all.
        let client: Int
        /// What it has been granted and not yet given back; 0: none.
        var lease: UInt64 = 0
        /// Requests made with this lease.
        var turn = 0
    }

    mutating func next(_ progress: inout Progress) -> Request {
        switch plan.kind {
        case .put: put()
        case .get: get()
        case .mixed(let percent): random.chance(percent, in: 100) ? get() : put()
        case .scan(let limit): scan(limit)
        case .txn: transaction()
        case .lease: lease(&progress)
        case .notify: stampedPut()
        case .load: preconditionFailure("keys are written by LoadTest.load")
        }
    }

    private mutating func randomKey() -> Data {
        Self.key(keys.next(&random), size: plan.keySize)
    }

    private mutating func randomValue() -> Data {
        let start = Int(random.uniform(0..<UInt64(65_536)))
        return Data(noise[start..<start + plan.valueSize])
    }

    /// "bench/0000000042", filled up with dots.
    static func key(_ number: Int, size: Int) -> Data {
        var key = Data(capacity: size)
        key.append(contentsOf: prefix.utf8)
        var divisor = 1_000_000_000
        while divisor > 0 {
            key.append(UInt8(ascii: "0") + UInt8(number / divisor % 10))
            divisor /= 10
        }
        while key.count < size { key.append(UInt8(ascii: ".")) }
        return key
    }

    private mutating func put() -> Request {
        var request = Request()
        request.writeKey.key = randomKey()
        request.writeKey.value = randomValue()
        return request
    }

    private mutating func get() -> Request {
        var request = Request()
        request.readKey.key = randomKey()
        if plan.isStale { request.readKey.consistency = .stale }
        return request
    }

    private func scan(_ limit: UInt32) -> Request {
        var request = Request()
        request.scanKeys.prefix = Data(Self.prefix.utf8)
        request.scanKeys.limit = limit
        if plan.isStale { request.scanKeys.consistency = .stale }
        return request
    }

    /// Compare, read and write of one key at once: if it is there, its entry is read before it is written.
    private mutating func transaction() -> Request {
        let key = randomKey()
        var compare = Aspen_Client_V1_Compare()
        compare.key = key
        compare.exists = true
        var get = Aspen_Client_V1_Operation()
        get.get.key = key
        var put = Aspen_Client_V1_Operation()
        put.put.key = key
        put.put.value = randomValue()
        var request = Request()
        request.transaction.compares = [compare]
        request.transaction.success = [get, put]
        request.transaction.failure = [put]
        return request
    }

    /// Four requests, over and over: a lease, a key of the client's own under it, its time begun anew, and
    /// its end.
    private mutating func lease(_ progress: inout Progress) -> Request {
        var request = Request()
        if progress.lease == 0 {
            progress.turn = 0
            request.grantLease.ttlMs = Self.leaseMilliseconds
            return request
        }
        progress.turn += 1
        switch progress.turn {
        case 1:
            request.writeKey.key = Self.key(progress.client, size: plan.keySize)
            request.writeKey.value = randomValue()
            request.writeKey.lease = progress.lease
        case 2: request.keepLeaseAlive.lease = progress.lease
        default:
            request.revokeLease.lease = progress.lease
            progress.lease = 0
        }
        return request
    }

    /// A put whose value begins with when it was made, for whoever is told of it in this process.
    private mutating func stampedPut() -> Request {
        var request = put()
        let now = NIODeadline.now().uptimeNanoseconds
        let stamp = withUnsafeBytes(of: now.littleEndian) { Data($0) }
        request.writeKey.value.replaceSubrange(..<Self.stampBytes, with: stamp)
        return request
    }

    /// Nanoseconds of the monotonic clock, or nil: nobody's stamp.
    static func stamp(_ value: some Collection<UInt8>) -> UInt64? {
        guard value.count >= stampBytes else { return nil }
        return Array(value.prefix(stampBytes)).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// All changes of the key space, from now on.
    static var watch: Request {
        var request = Request()
        request.watch.from = Data(prefix.utf8)
        // The byte after the last one of the prefix.
        request.watch.to = Data(prefix.utf8.dropLast() + [UInt8(ascii: "/") + 1])
        return request
    }

    /// Takes what the next request of this client needs of the answer.
    static func learn(_ response: Response, _ progress: inout Progress) {
        if case .grantLease(let answer) = response.response { progress.lease = answer.lease }
    }

    /// What writes the keys `numbers` in one transaction.
    mutating func loadOperations(_ numbers: Range<Int>) -> [Operation] {
        numbers.map { number in
            .put(key: Array(Self.key(number, size: plan.keySize)), value: Array(randomValue()))
        }
    }

    /// A fast wrong answer is worth nothing.
    func isRight(_ response: Response) -> Bool {
        switch response.response {
        case .writeKey(let answer): answer.revision > 0
        case .readKey(let answer):
            answer.hasEntry
                ? answer.entry.value.count == plan.valueSize
                : !plan.isLoaded
        case .scanKeys(let answer): !plan.isLoaded || !answer.entries.isEmpty
        case .transaction(let answer):
            answer.revision > 0 && (answer.succeeded || !plan.isLoaded)
        case .grantLease(let answer): answer.lease > 0
        case .keepLeaseAlive(let answer): answer.ttlMs > 0
        // Its one key went with it.
        case .revokeLease(let answer): answer.deleted == 1
        default: false
        }
    }
}
