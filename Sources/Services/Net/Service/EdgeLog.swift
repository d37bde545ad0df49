// SPDX-License-Identifier: GPL-2.0-or-later

import Logging
import NIOCore

/// Records what strangers do wrong: each culprit once, and no more than a few lines a minute
/// whatever happens, so that nobody outside can fill a disk with our log.
struct EdgeLog {
    private let logger: Logger
    private let linesPerMinuteMax = 20
    private let culpritsMax = 512
    private var seen: Set<String> = []
    private var windowStart = NIODeadline.uptimeNanoseconds(0)
    private var linesInWindow = 0
    private var withheld = 0

    init(logger: Logger) { self.logger = logger }

    /// - Parameter culprit: what makes an offence the same as an earlier one.
    mutating func warning(
        _ message: String, culprit: String, _ metadata: Logger.Metadata = [:],
        now: NIODeadline = .now()
    ) {
        guard !seen.contains(culprit) else { return }
        if now - windowStart >= .minutes(1) {
            if withheld > 0 {
                logger.warning("more of this was not logged", metadata: ["count": "\(withheld)"])
            }
            windowStart = now
            linesInWindow = 0
            withheld = 0
        }
        guard linesInWindow < linesPerMinuteMax else {
            withheld += 1
            return
        }
        linesInWindow += 1
        // Forgetting all at once is crude, bounded, and at worst repeats a line.
        if seen.count >= culpritsMax { seen.removeAll(keepingCapacity: true) }
        seen.insert(culprit)
        logger.warning("\(message)", metadata: metadata)
    }

    /// The culprit has behaved since: the next offence is news again.
    mutating func forgive(_ culprit: String) { seen.remove(culprit) }
}
