// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes

/// Cuts a byte stream into frames (a 32-bit little-endian length, then the bytes), whichever way the
/// stream was cut into pieces on its way.
package struct FrameAssembler {
    private var buffer: [UInt8] = []

    package init() {}

    package static func frame(_ payload: [UInt8]) -> [UInt8] {
        var writer = ByteWriter(capacity: payload.count + 4)
        writer.blob(payload)
        return writer.bytes
    }

    /// Bytes of an unfinished frame.
    package var waiting: Int { buffer.count }

    /// Takes the next piece; returns the frames it completes.
    package mutating func take(_ bytes: [UInt8]) -> [[UInt8]] {
        // Most arrive whole: only what has to wait is kept.
        if buffer.isEmpty, bytes.count >= 4, Self.byteCount(in: bytes, at: 0) == bytes.count - 4 {
            return [Array(bytes[4...])]
        }
        if buffer.isEmpty { buffer = bytes } else { buffer += bytes }
        var frames: [[UInt8]] = []
        var start = 0
        while buffer.count - start >= 4 {
            let count = Self.byteCount(in: buffer, at: start)
            guard buffer.count - start - 4 >= count else { break }
            frames.append(Array(buffer[start + 4..<start + 4 + count]))
            start += 4 + count
        }
        if start > 0 { buffer.removeFirst(start) }
        return frames
    }

    private static func byteCount(in bytes: [UInt8], at start: Int) -> Int {
        Int(bytes[start]) | Int(bytes[start + 1]) << 8 | Int(bytes[start + 2]) << 16
            | Int(bytes[start + 3]) << 24
    }
}
