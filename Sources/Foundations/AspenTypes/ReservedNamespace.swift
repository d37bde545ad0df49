// SPDX-License-Identifier: GPL-2.0-or-later

/// Keys that belong to Aspen's own services: neither seen nor touched by ordinary clients. The state
/// machine makes no difference; whoever serves clients does.
package enum ReservedNamespace {
    /// Everything below it is reserved: each service has a part, `_sys/blob/`, `_sys/jobs/`, ….
    package static let prefix = Array("_sys/".utf8)

    package static func contains(_ key: [UInt8]) -> Bool { key.starts(with: prefix) }
}
