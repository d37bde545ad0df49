// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc

/// A secret handed to a daemon: through an inherited descriptor of that name (aspen-node), or as a
/// systemd credential ($CREDENTIALS_DIRECTORY). It prints as "<secret>".
package struct Secret: Sendable, CustomStringConvertible, CustomDebugStringConvertible {
    package let bytes: [UInt8]
    package init(_ bytes: [UInt8]) { self.bytes = bytes }
    package var description: String { "<secret>" }
    package var debugDescription: String { "<secret>" }

    /// Largest secret, in bytes.
    package static let bytesMax = 4096

    /// One trailing newline is dropped.
    /// - Returns: nil when there is none of that name.
    package static func take(
        _ name: String, from sockets: inout ActivatedSockets
    ) throws(AspenError) -> Secret? {
        if let descriptor = sockets.take(name).first {
            defer { close(descriptor) }
            // A supervisor keeps one memory file for all restarts: read at 0, not at the shared
            // offset.
            return Secret(try read(descriptor, name))
        }
        guard let directory = Environment["CREDENTIALS_DIRECTORY"] else { return nil }
        let descriptor = open("\(directory)/\(name)", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        return Secret(try read(descriptor, name))
    }

    private static func read(_ descriptor: CInt, _ name: String) throws(AspenError) -> [UInt8] {
        var buffer = [UInt8](repeating: 0, count: bytesMax + 1)
        let count = pread(descriptor, &buffer, buffer.count, 0)
        guard count >= 0, count <= bytesMax else {
            throw AspenError(
                .invalidArgument, "the secret '\(name)' cannot be read or is over 4 KB")
        }
        var bytes = Array(buffer.prefix(count))
        if bytes.last == UInt8(ascii: "\n") { bytes.removeLast() }
        return bytes
    }
}
