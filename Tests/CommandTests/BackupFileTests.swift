// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import Testing

@testable import AspenCLI

@Suite struct BackupFileTests {
    private let directory: String

    init() {
        var template = Array("/tmp/aspen-backup-XXXXXX".utf8CString)
        directory = mkdtemp(&template).map { String(cString: $0) } ?? "/tmp"
    }

    private func names() -> [String] {
        guard let handle = opendir(directory) else { return [] }
        defer { closedir(handle) }
        var names: [String] = []
        while let entry = readdir(handle) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    private func content(_ path: String) throws -> [UInt8] {
        try BackupSource(path: path).read(1000)
    }

    private func remove() {
        for name in names() where unlink(directory + "/" + name) != 0 {
            rmdir(directory + "/" + name)
        }
        rmdir(directory)
    }

    /// Each is whole; the one that ended last has the name.
    @Test func twoBackupsAtOnceDoNotMix() throws {
        defer { remove() }
        let path = directory + "/the.backup"
        let first = try BackupSink(path: path)
        try first.write([1, 1, 1, 1])
        let second = try BackupSink(path: path)
        try second.write([2, 2])
        try first.write([1, 1])
        try first.commit()
        #expect(try content(path) == [1, 1, 1, 1, 1, 1])
        try second.write([2, 2])
        try second.commit()
        #expect(try content(path) == [2, 2, 2, 2])
        #expect(names() == ["the.backup"])
    }

    @Test func whatFailedLeavesNothing() throws {
        defer { remove() }
        do {
            let sink = try BackupSink(path: directory + "/the.backup")
            try sink.write([1])
        }
        #expect(names() == [])
    }

    @Test func symbolicLinkIsWrittenThrough() throws {
        defer { remove() }
        #expect(symlink("target", directory + "/link") == 0)
        #expect(symlink("link", directory + "/link-to-link") == 0)
        // First with a link to nothing, then with one to a file.
        for content in [[UInt8](repeating: 1, count: 3), [2]] {
            let sink = try BackupSink(path: directory + "/link-to-link")
            try sink.write(content)
            try sink.commit()
            #expect(names() == ["link", "link-to-link", "target"])
            #expect(try self.content(directory + "/target") == content)
            var state = stat()
            #expect(lstat(directory + "/link-to-link", &state) == 0)
            #expect(state.st_mode & S_IFMT == S_IFLNK)
        }
    }

    @Test func onlyARegularFileIsReplaced() throws {
        defer { remove() }
        #expect(mkfifo(directory + "/pipe", 0o600) == 0)
        #expect(mkdir(directory + "/inner", 0o700) == 0)
        #expect(symlink("pipe", directory + "/link") == 0)
        #expect(symlink("loop", directory + "/loop") == 0)
        let before = names()
        for (name, reason) in [
            ("pipe", "is a pipe"), ("inner", "is a directory"), ("link", "is a pipe"),
            ("loop", "Too many levels of symbolic links"),
        ] {
            do throws(AspenError) {
                _ = try BackupSink(path: directory + "/" + name)
                Issue.record("\(name) was taken")
            } catch {
                #expect(error.message.contains(reason), "\(error.message)")
            }
        }
        #expect(names() == before)
    }
}
