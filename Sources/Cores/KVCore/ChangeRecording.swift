// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Collects what is applied, in order, for those who follow it: taken after each batch, so that
/// nobody has to read it back from the tables.
package struct ChangeRecording: Sendable {
    /// What may be collected between two takes. Beyond it nothing is kept, and whoever follows reads
    /// the tables after all.
    package static let bytesMax = 8_388_608
    /// What a change costs besides its key and value.
    package static let changeBytes = 160

    package private(set) var changes: [Change] = []
    package private(set) var byteCount = 0
    /// There was more than `bytesMax`.
    package private(set) var isIncomplete = false

    private let bytesMax: Int

    package init() { self.init(bytesMax: KVBounds.current.recordingBytesMax) }

    private init(bytesMax: Int) { self.bytesMax = bytesMax }

    package static func bytes(of change: Change) -> Int {
        changeBytes + change.header.key.count + change.value.count
    }

    package mutating func append(_ change: Change) {
        guard !isIncomplete else { return }
        byteCount += Self.bytes(of: change)
        changes.append(change)
        guard byteCount > bytesMax else { return }
        isIncomplete = true
        changes = []
        byteCount = 0
    }

    /// What was collected; begins anew.
    package mutating func take() -> ChangeRecording {
        let taken = self
        self = ChangeRecording(bytesMax: bytesMax)
        return taken
    }
}
