// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore

/// One client: one request at a time, retried under its session until somebody answers.
final class SimClient {
    enum Purpose {
        case openSession
        case operation(ClientOperation)
        /// Judged by what the committed entries say: leases, transactions, sessions.
        case command(Command)
        /// Judged by what its revision holds.
        case look
    }

    struct Pending {
        var purpose: Purpose
        var payload: [UInt8]
        var read = SimRead.nothing
        var isRead = false
        var attempts = 0
        /// In the healing; each waits twice as long as the one before.
        var timeouts = 0
        /// Every attempt so far was refused before it could have had any effect.
        var isUntouched = true
        var isErrand = false
    }

    let index: Int
    let hasSession: Bool
    var session: SessionID?
    var requestNumber: UInt64 = 0
    var leases: [LeaseID] = []
    var pending: Pending?
    /// The rest of the range that it reads.
    var next: SimRead?
    /// Names the attempt in flight; answers to others are too late.
    var attempt: UInt64 = 0
    var node = 0
    /// What is left to do after the healing.
    var errands: [Errand] = []
    var isDone = false
    /// The next `act` repeats the pending request.
    var isRetrying = false

    enum Errand {
        case put(node: Int)
        case get(node: Int, key: Int)
    }

    /// Entries seen in transactions and reads, by key: what the next transaction compares with.
    var seen: [[UInt8]: KeyValue] = [:]

    /// The value last seen of each key: what a swap expects.
    var lastSeen: [UInt64?]

    init(index: Int, hasSession: Bool, keys: Int = 16) {
        self.index = index
        self.hasSession = hasSession
        lastSeen = Array(repeating: nil, count: keys)
    }
}

/// Values name their writer: the first eight bytes are a number given out once.
enum SimValue {
    static func encode(_ number: UInt64, bytesMax: Int) -> [UInt8] {
        var writer = ByteWriter(capacity: bytesMax)
        writer.integer(number)
        // The length follows from the number, so that a swap can name the whole value.
        let length = Int((number &* 0x9e37_79b9_7f4a_7c15) >> 33) % (max(bytesMax, 8) - 7)
        for _ in 0..<length { writer.byte(UInt8(truncatingIfNeeded: number)) }
        return writer.bytes
    }

    static func decode(_ bytes: [UInt8]) -> UInt64? {
        var reader = ByteReader(bytes)
        return try? reader.integer("value")
    }

    static func key(_ index: Int) -> [UInt8] { Array("key-\(index)".utf8) }
}
