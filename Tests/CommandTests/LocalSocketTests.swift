// SPDX-License-Identifier: GPL-2.0-or-later

import Foundation
import Testing

@testable import AspenCLI

/// Which socket is meant when nobody names one.
@Suite struct LocalSocketTests {
    private let directory = FileManager.default.temporaryDirectory
        .appendingPathComponent("aspen-\(UInt32.random(in: 0 ... .max))").path

    private func find() -> String {
        LocalSocket.find(system: "\(directory)/system.sock", data: "\(directory)/data")
    }

    @Test func theSystemsSocketComesFirst() throws {
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let system = "\(directory)/system.sock"
        #expect(find() == system, "where there is nothing, the usual place is named")
        let node = try Listening(at: "\(directory)/data/node-1/run/raft.sock")
        #expect(find() == node.path)
        _ = FileManager.default.createFile(atPath: system, contents: nil)
        #expect(find() == system)
    }

    @Test func ofForegroundNodesTheFirstThatAnswers() throws {
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let ten = try Listening(at: "\(directory)/data/node-10/run/raft.sock")
        #expect(find() == ten.path)
        var two: Listening? = try Listening(at: "\(directory)/data/node-2/run/raft.sock")
        #expect(find() == two?.path, "by number, not by letter")
        // What a killed node leaves.
        two = nil
        #expect(find() == ten.path)
    }
}

/// A socket that accepts connections until it is released; its file stays.
private final class Listening {
    let path: String
    private let descriptor: Int32

    init(at path: String) throws {
        self.path = path
        try FileManager.default.createDirectory(
            atPath: (path as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let isBound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(isBound == 0 && listen(descriptor, 4) == 0, "errno \(errno)")
    }

    deinit { close(descriptor) }
}
