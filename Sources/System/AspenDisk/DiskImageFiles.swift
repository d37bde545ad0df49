// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

extension DiskImage {
    /// Writes the image into a directory (made if missing, one level of subdirectories with it), not
    /// durably: it is for a process started on it next. Blocks of zeros become holes.
    package func write(toDirectory path: String) throws(DiskError) {
        try Self.makeDirectory(path)
        for name in files.keys.sorted() {
            if let slash = name.lastIndex(of: "/") {
                try Self.makeDirectory("\(path)/\(name[..<slash])")
            }
            try Self.write(files[name] ?? [], to: "\(path)/\(name)")
        }
    }

    private static func makeDirectory(_ path: String) throws(DiskError) {
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
            throw .posix("make directory \(path)")
        }
    }

    private static func write(_ bytes: [UInt8], to path: String) throws(DiskError) {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw .posix("open \(path)") }
        let file = PosixFile(name: path, descriptor: descriptor)
        defer { file.close() }
        try file.truncate(to: UInt64(bytes.count))
        let block = 65_536
        var offset = 0
        while offset < bytes.count {
            let piece = bytes[offset..<min(offset + block, bytes.count)]
            if !piece.allSatisfy({ $0 == 0 }) {
                try file.write(Array(piece), at: UInt64(offset))
            }
            offset += block
        }
    }
}
