// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import CAspenSystem
import DNSWire
import Glibc
import Logging
import ServiceKit

/// Who may ask `egress.sock`: root, this program's own user, and the daemons that have a use for it.
/// Users are looked up once, at start.
package struct EgressAccess: Sendable {
    private var users: Set<uid_t>

    /// Those that have one so far.
    private static let daemons = ["aspend-gossip"]

    package init(users: Set<uid_t>) { self.users = users }

    package static func ofSystem() -> EgressAccess {
        var users: Set<uid_t> = [0, getuid()]
        for name in daemons {
            if let entry = getpwnam(name) { users.insert(entry.pointee.pw_uid) }
        }
        return EgressAccess(users: users)
    }

    package func permits(_ peer: LocalPeer) -> Bool { users.contains(peer.uid) }
}

/// Answers one request on one connection of `egress.sock`, within `EgressLimits.timeout`. It blocks: a
/// process is there for one request.
package struct EgressAnswering {
    private let access: EgressAccess
    private let nameServers: () throws(AspenError) -> [NameServer]
    private let logger: Logger
    private let timeout: Duration

    /// - Parameters:
    ///   - nameServers: asked anew for each request.
    ///   - timeout: less in tests.
    package init(
        access: EgressAccess, logger: Logger, timeout: Duration = EgressLimits.timeout,
        nameServers: @escaping () throws(AspenError) -> [NameServer]
    ) {
        self.access = access
        self.logger = logger
        self.timeout = timeout
        self.nameServers = nameServers
    }

    /// Answers, and closes the connection.
    package func answer(_ connection: CInt) {
        defer { close(connection) }
        let deadline = Deadline(in: timeout)
        guard let peer = LocalPeer(descriptor: connection), access.permits(peer) else {
            let uid = LocalPeer(descriptor: connection).map { "\($0.uid)" } ?? "unknown"
            logger.warning("a stranger was refused", metadata: ["uid": "\(uid)"])
            return reply(
                .failed(
                    code: .permissionDenied,
                    message: "only daemons of this node may use egress.sock"), on: connection)
        }
        do throws(AspenError) {
            switch try receive(connection, deadline) {
            case .nameServers:
                reply(.nameServers(try nameServers().map(\.text)), on: connection)
            case .nameServer(let place, let isStream):
                let list = try nameServers()
                guard Int(place) < list.count else {
                    throw AspenError(
                        .notFound,
                        "there is no name server \(place): this machine has \(list.count)")
                }
                let server = list[Int(place)]
                let opened = try connect(server, isStream, deadline, unlessGone: connection)
                reply(.connected(address: server.text), opened, on: connection)
                close(opened)
            }
        } catch {
            logger.debug("a request was refused: \(error.message)")
            reply(.failed(code: error.code, message: error.message), on: connection)
        }
    }

    // MARK: - The request

    private func receive(_ connection: CInt, _ deadline: Deadline) throws(AspenError)
        -> EgressRequest
    {
        let head = try receive(4, connection, deadline)
        let length = head.reversed().reduce(0) { $0 << 8 | Int($1) }
        guard length <= EgressLimits.requestBytesMax else {
            throw AspenError(
                .invalidArgument, "a request has at most \(EgressLimits.requestBytesMax) bytes")
        }
        let content = try receive(length, connection, deadline)
        do throws(DecodeError) {
            return try EgressRequest(decoding: content)
        } catch {
            throw AspenError(.invalidArgument, "the request cannot be read: \(error)")
        }
    }

    /// Descriptors that come with it are closed by the kernel: nobody asks for them.
    private func receive(
        _ count: Int, _ connection: CInt, _ deadline: Deadline
    ) throws(AspenError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var have = 0
        while have < count {
            guard deadline.wait(for: [(connection, POLLIN)]) != nil else {
                throw AspenError(.deadlineExceeded, "no request came in time")
            }
            let got = bytes.withUnsafeMutableBytes {
                recv(
                    connection, $0.baseAddress?.advanced(by: have), count - have,
                    CInt(MSG_DONTWAIT))
            }
            if got < 0, errno == EINTR || errno == EAGAIN { continue }
            guard got > 0 else { throw AspenError(.invalidArgument, "the request has no end") }
            have += got
        }
        return bytes
    }

    // MARK: - The connection

    /// - Parameter unlessGone: when this one is closed nobody waits any more.
    private func connect(
        _ server: NameServer, _ isStream: Bool, _ deadline: Deadline, unlessGone caller: CInt
    ) throws(AspenError) -> CInt {
        let address = server.address.bytes
        let opened = aspen_begin_connect(address, address.count, server.port, isStream ? 1 : 0)
        guard opened >= 0 else { throw Self.unreachable(server, -opened) }
        guard isStream else { return opened }
        guard let ready = deadline.wait(for: [(opened, POLLOUT), (caller, 0)]), ready[1] == 0
        else {
            close(opened)
            throw AspenError(
                .deadlineExceeded, "\(server.text) did not answer within \(timeout)", retry: .safe)
        }
        let error = aspen_socket_error(opened)
        guard error == 0 else {
            close(opened)
            throw Self.unreachable(server, -error)
        }
        return opened
    }

    private static func unreachable(_ server: NameServer, _ code: CInt) -> AspenError {
        AspenError(
            .unavailable, "\(server.text) cannot be reached: \(String(cString: strerror(code)))",
            retry: .safe)
    }

    // MARK: - The answer

    private func reply(_ reply: EgressReply, _ descriptor: CInt? = nil, on connection: CInt) {
        let content = reply.encoded()
        let frame = withUnsafeBytes(of: UInt32(content.count).littleEndian) { Array($0) } + content
        if let descriptor {
            _ = aspen_send_with_fd(connection, frame, frame.count, descriptor)
        } else {
            _ = send(connection, frame, frame.count, CInt(MSG_NOSIGNAL | MSG_DONTWAIT))
        }
    }
}

/// A moment of the monotonic clock, and waiting until then.
private struct Deadline {
    private let end: Int64

    init(in time: Duration) {
        let (seconds, attoseconds) = time.components
        end = Self.milliseconds() + seconds * 1000 + attoseconds / 1_000_000_000_000_000
    }

    private static func milliseconds() -> Int64 {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return Int64(now.tv_sec) * 1000 + Int64(now.tv_nsec) / 1_000_000
    }

    /// - Returns: what poll(2) says of each; nil when the time is over.
    func wait(for interest: [(descriptor: CInt, events: CInt)]) -> [CInt]? {
        var all = interest.map { pollfd(fd: $0.descriptor, events: Int16($0.events), revents: 0) }
        while true {
            let left = end - Self.milliseconds()
            guard left > 0 else { return nil }
            let result = poll(&all, nfds_t(all.count), CInt(clamping: left))
            if result > 0 { return all.map { CInt($0.revents) } }
            if result < 0, errno != EINTR { return nil }
        }
    }
}
