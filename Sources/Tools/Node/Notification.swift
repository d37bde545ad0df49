// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenSystem
import Glibc

/// What a daemon says through sd_notify(3), as far as `aspen-node` listens.
struct Notification {
    let sender: pid_t
    let isReady: Bool
    /// `descriptor` is to be kept under `name`.
    let stores: Bool
    /// What is kept under `name` is to be let go.
    let discards: Bool
    let name: String
    /// Belongs to whoever takes the notification.
    let descriptor: CInt?

    /// The next one that waits at the socket; nil when none does.
    static func next(from socket: CInt) -> Notification? {
        var buffer = [UInt8](repeating: 0, count: 4096)
        var sender: pid_t = 0
        var descriptor: CInt = -1
        let count = aspen_receive_notification(
            socket, &buffer, buffer.count, &sender, &descriptor)
        guard count >= 0 else { return nil }
        let text = String(decoding: buffer.prefix(count), as: UTF8.self)
        return Notification(
            sender: sender, text: text, descriptor: descriptor < 0 ? nil : descriptor)
    }

    init(sender: pid_t, text: String, descriptor: CInt?) {
        let lines = text.split(separator: "\n")
        let heading = "FDNAME="
        // A colon would end the name in LISTEN_FDNAMES.
        let name = lines.last { $0.hasPrefix(heading) }.map { $0.dropFirst(heading.count) }
        self.name = name.flatMap { $0.contains(":") ? nil : String($0) } ?? "stored"
        self.sender = sender
        self.descriptor = descriptor
        isReady = lines.contains("READY=1")
        stores = lines.contains("FDSTORE=1")
        discards = lines.contains("FDSTOREREMOVE=1")
    }
}
