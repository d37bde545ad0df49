// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import RaftCore

/// The payload of a membership entry.
enum MembershipPayload {
    static func decode(_ payload: [UInt8]) -> Membership? { Membership(payload: payload) }
    static func isValid(_ payload: [UInt8]) -> Bool { decode(payload) != nil }
}
