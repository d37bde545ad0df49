// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenMachine
import AspenWire
import FoundationEssentials

/// Makes requests, and says whether an answer is the right one.
struct Workload {
    typealias Request = Aspen_Client_V1_ClientRequest
    typealias Response = Aspen_Client_V1_ClientResponse

    static let prefix = "bench/"

    private let plan: LoadPlan
    private let noise: Data
    private var random: RandomSource

    init(_ plan: LoadPlan, seed: UInt64) {
        self.plan = plan
        random = RandomSource(seed: seed)
        // Values are slices of noise: nothing that a disk or a codec could make smaller.
        var noise = Data(capacity: plan.valueSize + 65_536)
        while noise.count < plan.valueSize + 65_536 {
            withUnsafeBytes(of: random.next()) { noise.append(contentsOf: $0) }
        }
        self.noise = noise
    }

    mutating func next() -> Request {
        switch plan.kind {
        case .put: put()
        case .get: get()
        case .mixed(let percent): random.chance(percent, in: 100) ? get() : put()
        case .scan(let limit): scan(limit)
        case .load: preconditionFailure("keys are written by LoadTest.load")
        }
    }

    private mutating func randomKey() -> Data {
        Self.key(Int(random.uniform(0..<UInt64(plan.keys))), size: plan.keySize)
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
        default: false
        }
    }
}
