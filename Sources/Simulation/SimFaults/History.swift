// SPDX-License-Identifier: GPL-2.0-or-later

/// What clients did to one key and what they were told: the input of the linearizability checker.
///
/// Order is the number of the world's step, not time: two things at one virtual instant still have
/// an order. Values are numbers, one per write of the whole run, so that a value names its writer.
package struct ClientOperation: Equatable, Sendable {
    package enum Call: Equatable, Sendable {
        case get
        case put(UInt64)
        /// Writes `new` if the value is `expected` (nil: if there is no such key).
        case swap(expected: UInt64?, new: UInt64)
        case delete
    }

    package enum Answer: Equatable, Sendable {
        /// Version: etcd's per-key version, 0 when absent.
        case value(UInt64?, version: UInt64)
        /// The version before (0: the key did not exist).
        case stored(previousVersion: UInt64)
        case swapped(Bool)
        case deleted(Bool)
    }

    package var client: Int
    package var key: Int
    package var call: Call
    /// The step at which the client first sent it.
    package var begin: UInt64
    /// The step at which the answer came; nil while nobody knows whether it was carried out.
    package var end: UInt64?
    package var answer: Answer?
    /// The store's revision in the answer, for writes that changed something.
    package var revision: UInt64?

    package init(
        client: Int, key: Int, call: Call, begin: UInt64, end: UInt64? = nil, answer: Answer? = nil,
        revision: UInt64? = nil
    ) {
        self.client = client
        self.key = key
        self.call = call
        self.begin = begin
        self.end = end
        self.answer = answer
        self.revision = revision
    }
}
