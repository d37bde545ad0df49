// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// What the files of a configuration directory say: `aspen.toml`, then `aspen.toml.d/*.toml` in the
/// order of their names' bytes. Later ones win. And the peers that `peers.d/*` name, a line each:
/// those add up.
package struct ConfigurationFiles: Sendable {
    package struct Found: Sendable, Equatable {
        package var value: SettingValue
        package var origin: Origin
    }

    package static let standardDirectory = "/etc/aspen"
    package static let mainName = "aspen.toml"
    package static let dropInDirectory = "aspen.toml.d"
    package static let peersDirectory = "peers.d"
    /// Most drop-ins, of either kind.
    package static let dropInsMax = 64

    /// Nil: there is none, which is no error.
    package let directory: String?
    /// The files that were there, the last being the strongest.
    package private(set) var paths: [String] = []
    /// By the setting's name; the last being in force.
    package private(set) var values: [String: [Found]] = [:]
    /// Of `peers.d`, as `--peers` has them.
    package private(set) var peers: [Found] = []
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
        for name in dropIns("\(directory)/\(Self.dropInDirectory)", ".toml") {
            read("\(directory)/\(Self.dropInDirectory)/\(name)", isOptional: false)
        }
        for name in dropIns("\(directory)/\(Self.peersDirectory)", "") {
            readPeers("\(directory)/\(Self.peersDirectory)/\(name)")
        }
    }

    private mutating func dropIns(_ path: String, _ suffix: String) -> [String] {
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
            if name.hasSuffix(suffix), !name.hasPrefix("."), !name.hasSuffix("~") {
                names.append(name)
            }
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
        guard let bytes = bytes(of: path, isOptional: isOptional) else { return }
        let file = TOMLFile(bytes, path: path)
        problems += file.problems
        for found in file.values {
            values[found.setting.name, default: []].append(
                Found(value: found.value, origin: .file(path: path, line: found.line)))
        }
    }

    /// Empty lines, and what begins with '#', say nothing.
    private mutating func readPeers(_ path: String) {
        guard let bytes = bytes(of: path, isOptional: false) else { return }
        guard bytes.count <= TOMLFile.bytesMax else {
            problems.append(
                ConfigurationError(
                    .unreadable, .file(path: path, line: 0),
                    "the file is over \(TOMLFile.bytesMax) bytes"))
            return
        }
        let lines = bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        for (number, line) in lines.enumerated() {
            let words = String(decoding: line, as: UTF8.self).split(whereSeparator: \.isWhitespace)
            guard let text = words.first, !text.hasPrefix("#") else { continue }
            let origin = Origin.file(path: path, line: number + 1)
            let complaint =
                words.count > 1 && !words[1].hasPrefix("#")
                ? "is followed by something: a peer is one word, and has a line of its own"
                : TextFormat.peer.complaint(about: String(text))
            if let complaint {
                problems.append(
                    ConfigurationError(.outOfRange, origin, "the peer '\(text)' \(complaint)"))
            } else {
                peers.append(Found(value: .text(String(text)), origin: origin))
            }
        }
    }

    /// Up to one more than may be.
    private mutating func bytes(of path: String, isOptional: Bool) -> [UInt8]? {
        // Not to wait for the other end of a FIFO.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            if errno != ENOENT || !isOptional { unreadable(path) }
            return nil
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            problems.append(
                ConfigurationError(
                    .unreadable, .file(path: path, line: 0), "this is not a regular file"))
            return nil
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
            guard more >= 0 else {
                unreadable(path)
                return nil
            }
            if more == 0 { break }
            count += more
        }
        paths.append(path)
        return Array(bytes.prefix(count))
    }

    private mutating func unreadable(_ path: String) {
        let reason = String(cString: strerror(errno))
        problems.append(
            ConfigurationError(
                .unreadable, .file(path: path, line: 0), "this cannot be read: \(reason)"))
    }
}
