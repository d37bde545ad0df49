// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// What the files of a configuration directory say: `aspen.toml`, then `aspen.toml.d/*.toml` in the
/// order of their names' bytes. Later ones win.
package struct ConfigurationFiles: Sendable {
    package struct Found: Sendable, Equatable {
        package var value: SettingValue
        package var origin: Origin
    }

    package static let standardDirectory = "/etc/aspen"
    package static let mainName = "aspen.toml"
    package static let dropInDirectory = "aspen.toml.d"
    /// Most drop-ins.
    package static let dropInsMax = 64

    /// Nil: there is none, which is no error.
    package let directory: String?
    /// The files that were there, the last being the strongest.
    package private(set) var paths: [String] = []
    /// By the setting's name; the last being in force.
    package private(set) var values: [String: [Found]] = [:]
    package private(set) var problems: [ConfigurationError] = []
    /// Changes when a file is added, changed or removed (device, inode, size, time).
    package private(set) var fingerprint: [UInt64] = []

    /// No files at all.
    package init() { directory = nil }

    /// - Parameter mustExist: whether a missing directory is an error: somebody has named it.
    package init(directory: String, mustExist: Bool = false) {
        self.directory = directory
        guard access(directory, F_OK) == 0 else {
            if errno != ENOENT || mustExist { unreadable(directory) }
            return
        }
        read("\(directory)/\(Self.mainName)", isOptional: true)
        for name in dropIns("\(directory)/\(Self.dropInDirectory)") {
            read("\(directory)/\(Self.dropInDirectory)/\(name)", isOptional: false)
        }
    }

    private mutating func dropIns(_ path: String) -> [String] {
        guard let folder = opendir(path) else {
            if errno != ENOENT { unreadable(path) }
            return []
        }
        defer { closedir(folder) }
        var names: [String] = []
        while let entry = readdir(folder) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasSuffix(".toml"), !name.hasPrefix(".") { names.append(name) }
        }
        guard names.count <= Self.dropInsMax else {
            problems.append(
                ConfigurationError(
                    .unreadable, .file(path: path, line: 0),
                    "there are \(names.count) files; at most \(Self.dropInsMax) are read"))
            return []
        }
        return names.sorted { Array($0.utf8).lexicographicallyPrecedes(Array($1.utf8)) }
    }

    private mutating func read(_ path: String, isOptional: Bool) {
        // Not to wait for the other end of a FIFO.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            if errno != ENOENT || !isOptional { unreadable(path) }
            return
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            problems.append(
                ConfigurationError(
                    .unreadable, .file(path: path, line: 0), "this is not a regular file"))
            return
        }
        fingerprint += [
            UInt64(status.st_dev), UInt64(status.st_ino), UInt64(bitPattern: Int64(status.st_size)),
            UInt64(bitPattern: Int64(status.st_mtim.tv_sec)),
            UInt64(bitPattern: Int64(status.st_mtim.tv_nsec)),
        ]
        var bytes = [UInt8](repeating: 0, count: TOMLFile.bytesMax + 1)
        var count = 0
        while count < bytes.count {
            let more = bytes.withUnsafeMutableBytes {
                Glibc.read(descriptor, $0.baseAddress.map { $0 + count }, $0.count - count)
            }
            guard more >= 0 else { return unreadable(path) }
            if more == 0 { break }
            count += more
        }
        paths.append(path)
        let file = TOMLFile(Array(bytes.prefix(count)), path: path)
        problems += file.problems
        for found in file.values {
            values[found.setting.name, default: []].append(
                Found(value: found.value, origin: .file(path: path, line: found.line)))
        }
    }

    private mutating func unreadable(_ path: String) {
        let reason = String(cString: strerror(errno))
        problems.append(
            ConfigurationError(
                .unreadable, .file(path: path, line: 0), "this cannot be read: \(reason)"))
    }
}
