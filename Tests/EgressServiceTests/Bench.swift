// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import CAspenSystem
import EgressClient
import EgressService
import Glibc
import Logging
import NIOCore
import NIOPosix
import Testing

let logger: Logger = {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
}()

func bind(_ family: CInt, isStream: Bool, backlog: CInt = 8) throws -> (socket: CInt, port: UInt16)
{
    let kind = isStream ? CInt(SOCK_STREAM.rawValue) : CInt(SOCK_DGRAM.rawValue)
    let descriptor = socket(family, kind | CInt(SOCK_CLOEXEC.rawValue), 0)
    try #require(descriptor >= 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let result = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            Glibc.bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
    }
    try #require(result == 0)
    if isStream { try #require(listen(descriptor, backlog) == 0) }
    return (descriptor, try #require(port(of: descriptor)))
}

/// On this side.
func port(of descriptor: CInt) -> UInt16? {
    var host = [CChar](repeating: 0, count: 64)
    var port: UInt16 = 0
    return aspen_bound_address(descriptor, &host, host.count, &port) == 0 ? port : nil
}

func connect(to path: String) throws -> CInt {
    let descriptor = socket(
        AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
    let result = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    try #require(result == 0)
    return descriptor
}

/// A directory of its own, and egress.sock in it.
final class Place {
    let path: String
    let listener: CInt
    var socketPath: String { path + "/egress.sock" }

    init() throws {
        var template = Array("/tmp/aspen-egress-XXXXXX".utf8CString)
        _ = mkdtemp(&template)
        path = String(
            decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        listener = aspen_listen_unix(path + "/egress.sock")
        try #require(listener >= 0)
    }

    deinit {
        close(listener)
        for name in ["egress.sock", "out", "err"] { unlink("\(path)/\(name)") }
        rmdir(path)
    }
}

/// One connection that `EgressAnswering` answers on a thread of its own.
final class Exchange {
    let caller: CInt
    private let threads = NIOThreadPool(numberOfThreads: 1)
    private let loop = MultiThreadedEventLoopGroup.singleton.next()
    private let ended: EventLoopFuture<Void>

    init(
        access: EgressAccess = .ofSystem(), timeout: Duration = .seconds(60),
        servers: [NameServer] = []
    ) throws {
        var pair: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &pair) == 0)
        caller = pair[0]
        threads.start()
        ended = threads.runIfActive(eventLoop: loop) { [other = pair[1]] in
            EgressAnswering(access: access, logger: logger, timeout: timeout) {
                () throws(AspenError) in servers
            }.answer(other)
        }
    }

    /// The answering is over.
    func wait() throws { try ended.wait() }

    deinit {
        close(caller)
        try? ended.wait()
        try? threads.syncShutdownGracefully()
    }

    func send(_ bytes: [UInt8]) { _ = Glibc.send(caller, bytes, bytes.count, CInt(MSG_NOSIGNAL)) }

    func send(frame content: [UInt8]) {
        send(withUnsafeBytes(of: UInt32(content.count).littleEndian) { Array($0) } + content)
    }

    /// What comes until the other end closes, with the descriptor that came along.
    func receive() throws -> (reply: EgressReply, descriptor: CInt?) {
        try answer(to: caller)
    }
}

func answer(to caller: CInt) throws -> (reply: EgressReply, descriptor: CInt?) {
    var buffer = [UInt8](repeating: 0, count: 8192)
    var descriptor: CInt = -1
    let count = aspen_receive_with_fd(caller, &buffer, buffer.count, &descriptor)
    try #require(count > 4, "nothing was answered: \(count)")
    return (
        try EgressReply(decoding: Array(buffer[4..<count])), descriptor < 0 ? nil : descriptor
    )
}
