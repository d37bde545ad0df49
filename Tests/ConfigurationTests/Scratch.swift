// SPDX-License-Identifier: GPL-2.0-or-later

import Configuration
import Glibc

/// A configuration directory of its own, removed at the end.
final class Scratch: Sendable {
    let path: String

    init() {
        var template = Array("/tmp/aspen-config-test-XXXXXX\0".utf8CString)
        guard let made = mkdtemp(&template) else { preconditionFailure("mkdtemp") }
        path = String(cString: made)
        mkdir("\(path)/aspen.toml.d", 0o755)
        mkdir("\(path)/peers.d", 0o755)
    }

    deinit { Self.remove(path) }

    private static func remove(_ path: String) {
        if let folder = opendir(path) {
            while let entry = readdir(folder) {
                let name = withUnsafeBytes(of: entry.pointee.d_name) {
                    String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
                }
                if name != ".", name != ".." { remove("\(path)/\(name)") }
            }
            closedir(folder)
            rmdir(path)
        } else {
            unlink(path)
        }
    }

    @discardableResult
    func write(_ name: String, _ text: String) -> String {
        let file = "\(path)/\(name)"
        let descriptor = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        precondition(descriptor >= 0, "cannot create \(file)")
        let bytes = Array(text.utf8)
        precondition(Glibc.write(descriptor, bytes, bytes.count) == bytes.count, "short write")
        close(descriptor)
        return file
    }

    func read(_ name: String) -> String? {
        let descriptor = open("\(path)/\(name)", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 1 << 17)
        let count = Glibc.read(descriptor, &bytes, bytes.count)
        return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
    }

    var files: ConfigurationFiles { ConfigurationFiles(directory: path) }
}

enum Repository {
    /// Where the sources are.
    static let root =
        "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

    static func text(_ name: String) -> String {
        let descriptor = open("\(root)/\(name)", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 1 << 20)
        let count = Glibc.read(descriptor, &bytes, bytes.count)
        return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
    }
}
