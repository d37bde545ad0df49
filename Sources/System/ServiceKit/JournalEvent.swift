// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// Events that an operator looks for: each has a MESSAGE_ID (`journalctl MESSAGE_ID=…`), a name in
/// the field ASPEN_EVENT, and a text in systemd/aspen.catalog (`journalctl -x`).
///
/// Ids never change and are never used again.
package enum JournalEvent: String, CaseIterable, CustomStringConvertible, Sendable {
    case leaderElected = "leader-elected"
    case leadershipLost = "leadership-lost"
    case memberAdded = "member-added"
    case memberRemoved = "member-removed"
    case diskFull = "disk-full"
    case diskFailed = "disk-failed"
    case damageFound = "damage-found"
    case repaired = "repaired"
    case configurationRefused = "configuration-refused"
    case peerRefused = "peer-refused"

    package var description: String { rawValue }

    /// Of a storage error: full, or something else.
    package static func ofDisk(_ reason: String) -> JournalEvent {
        let isFull = ["full", "o space left", "noSpace", "ENOSPC", "errno 28"]
            .contains { reason.contains($0) }
        return isFull ? .diskFull : .diskFailed
    }

    package var messageID: String {
        switch self {
        case .leaderElected: "518dfc301d1d498fb39045c864dceb10"
        case .leadershipLost: "34397c7ae285431db01e6be1425584fc"
        case .memberAdded: "b226685243844e08bba6984513aad9cf"
        case .memberRemoved: "0bf6ddf4e6bc4b58a158a50ec7e08fd5"
        case .diskFull: "cdcd02113e2445cfbbcd5de62cddca36"
        case .diskFailed: "f97ae7b9517746dcb08e2e16ffe73fad"
        case .damageFound: "fda8c7a6d24c4708b3838a0773473f8f"
        case .repaired: "6a99365056984ade92ef0dfaac0627f5"
        case .configurationRefused: "929fb5fef9874773b741bb3f7980df21"
        case .peerRefused: "66997228e810422abed2a11a0212ae27"
        }
    }
}
