// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// Lines that are out at once: what led to a trap is seen, and a reader of a pipe need not wait.
enum Output {
    static func line(_ text: String, to descriptor: Int32 = STDOUT_FILENO) {
        var rest = Array((text + "\n").utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            // Nobody reads any more: there is nobody to tell either.
            guard count > 0 else { return }
            rest.removeFirst(count)
        }
    }
}
