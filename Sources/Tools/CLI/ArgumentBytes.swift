// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// Arguments are bytes, but the parser wants text. A byte that is no part of valid UTF-8 becomes a
/// scalar of the last private-use plane (U+10FF80 to U+10FFFF, as Python's surrogateescape does it
/// with surrogates), and so do the bytes of those scalars themselves: every argument has one text,
/// and comes back from it unchanged.
enum ArgumentBytes {
    private static let escapes: ClosedRange<UInt32> = 0x10_ff80...0x10_ffff
    private static let base: UInt32 = 0x10_ff00

    /// The arguments of this process, without the program's name.
    static func ofProcess() -> [String] {
        (1..<max(1, Int(CommandLine.argc))).compactMap { position in
            CommandLine.unsafeArgv[position].map { argument in
                text(UnsafeRawBufferPointer(start: argument, count: strlen(argument)))
            }
        }
    }

    static func text(_ bytes: some Collection<UInt8>) -> String {
        let bytes = Array(bytes)
        var scalars = String.UnicodeScalarView()
        var position = 0
        while position < bytes.count {
            let length = expectedLength(bytes[position])
            let end = min(position + length, bytes.count)
            if let character = String(validating: bytes[position..<end], as: UTF8.self),
                let scalar = character.unicodeScalars.first, !escapes.contains(scalar.value)
            {
                scalars.append(scalar)
                position = end
            } else {
                // A byte below 0x80 is always valid on its own, so this one is 0x80 or more.
                if let scalar = Unicode.Scalar(base + UInt32(bytes[position])) {
                    scalars.append(scalar)
                }
                position += 1
            }
        }
        return String(scalars)
    }

    private static func expectedLength(_ first: UInt8) -> Int {
        switch first {
        case 0xc0...0xdf: 2
        case 0xe0...0xef: 3
        case 0xf0...0xf7: 4
        default: 1
        }
    }

    static func bytes(_ text: String) -> [UInt8] {
        var bytes: [UInt8] = []
        for scalar in text.unicodeScalars {
            if escapes.contains(scalar.value) {
                bytes.append(UInt8(truncatingIfNeeded: scalar.value - base))
            } else {
                bytes += UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter
            }
        }
        return bytes
    }
}
