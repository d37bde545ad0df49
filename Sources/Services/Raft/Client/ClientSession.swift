// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import DequeModule
import NIOCore

/// The numbers of one session: which are given out, and below which one every answer is here.
///
/// Raft thesis (Ongaro 2014) §6.3: a request retried under its number is applied once. The server
/// keeps the answers of a window, so no more than `Limits.sessionWindowMax` numbers may be open.
struct ClientSession {
    let id: UInt64
    /// Answers to all numbers below this one have been received, or are wanted no more.
    private(set) var acknowledgedBelow: UInt64 = 1
    /// From `acknowledgedBelow` on: whether that number is done.
    private var window: Deque<Bool> = []

    init(id: UInt64) { self.id = id }

    var hasRoom: Bool { window.count < Limits.sessionWindowMax }

    mutating func takeNumber() -> UInt64 {
        precondition(hasRoom, "the session's window is full")
        window.append(false)
        return acknowledgedBelow + UInt64(window.count) - 1
    }

    /// The answer to `number` has come, or nobody waits for it any longer: from now on the server
    /// refuses late copies of it.
    mutating func finish(_ number: UInt64) {
        precondition(number >= acknowledgedBelow, "a number is finished once")
        let offset = Int(number - acknowledgedBelow)
        precondition(offset < window.count && !window[offset], "a number is finished once")
        window[offset] = true
        while window.first == true {
            window.removeFirst()
            acknowledgedBelow += 1
        }
    }

    func stamp(_ number: UInt64) -> Aspen_Client_V1_SessionRequest {
        var message = Aspen_Client_V1_SessionRequest()
        message.session = id
        message.number = number
        message.acknowledgedBelow = acknowledgedBelow
        return message
    }
}

extension Aspen_Client_V1_ClientRequest {
    /// Puts a session into a write; other requests have no place for it.
    mutating func stamp(_ session: Aspen_Client_V1_SessionRequest) {
        switch request {
        case .writeKey: writeKey.session = session
        case .deleteKey: deleteKey.session = session
        case .transaction: transaction.session = session
        case .grantLease: grantLease.session = session
        case .revokeLease: revokeLease.session = session
        default: preconditionFailure("only writes are numbered")
        }
    }
}
