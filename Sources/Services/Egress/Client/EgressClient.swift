// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import CAspenSystem
import Glibc
import NIOCore
import NIOPosix

/// Asks `aspend-egress`: one connection for one question. It waits on threads of its own, for NIO has no
/// channel that takes descriptors.
package final class EgressClient: Sendable {
    /// A socket to a name server, not blocking; it belongs to whoever gets this.
    package struct Connected: Sendable {
        package let descriptor: CInt
        /// "192.0.2.1:53", "[2001:db8::1]:53"
        package let address: String
    }

    /// The socket's name, in the directory of the other daemons' sockets.
    package static let socketName = "egress.sock"
    /// Questions that are asked at a time; more wait for these.
    package static let questionsMax = 4

    private let path: String
    private let threads: NIOThreadPool

    package init(socketPath: String) {
        path = socketPath
        threads = NIOThreadPool(numberOfThreads: Self.questionsMax)
        threads.start()
    }

    /// Fails what waits; what is under way ends by itself.
    package func stop() { threads.shutdownGracefully { _ in } }

    /// Throws, through the future, `unavailable` when nobody answers at the socket, what the program
    /// refuses with, and `unsupportedVersion` for an answer that this program cannot read.
    package func nameServers(on loop: any EventLoop) -> EventLoopFuture<[String]> {
        threads.runIfActive(eventLoop: loop) { [path] in
            guard case (.nameServers(let list), _) = try Self.ask(.nameServers, path) else {
                throw AspenError(.internal, "egress.sock answered another question")
            }
            return list
        }
    }

    /// - Parameter place: in the list of `nameServers`.
    package func nameServer(
        _ place: UInt8, isStream: Bool, on loop: any EventLoop
    ) -> EventLoopFuture<Connected> {
        threads.runIfActive(eventLoop: loop) { [path] in
            let request = EgressRequest.nameServer(place: place, isStream: isStream)
            guard case (.connected(let address), let descriptor?) = try Self.ask(request, path)
            else { throw AspenError(.internal, "egress.sock answered without a socket") }
            return Connected(descriptor: descriptor, address: address)
        }
    }

    // MARK: - On a thread

    private static func ask(
        _ request: EgressRequest, _ path: String
    ) throws(AspenError) -> (EgressReply, CInt?) {
        let connection = try connect(path)
        defer { close(connection) }
        let content = request.encoded()
        let frame = withUnsafeBytes(of: UInt32(content.count).littleEndian) { Array($0) } + content
        guard send(connection, frame, frame.count, CInt(MSG_NOSIGNAL)) == frame.count
        else { throw silence("it took no request", path) }
        var (received, descriptor): ([UInt8], CInt?) = ([], nil)
        do throws(AspenError) {
            let reply = try receive(connection, path, &received, &descriptor)
            if case .failed(let code, let message) = reply {
                throw AspenError(code, message, retry: code == .unavailable ? .safe : .never)
            }
            return (reply, descriptor)
        } catch {
            if let descriptor { close(descriptor) }
            throw error
        }
    }

    private static func receive(
        _ connection: CInt, _ path: String, _ received: inout [UInt8], _ descriptor: inout CInt?
    ) throws(AspenError) -> EgressReply {
        var buffer = [UInt8](repeating: 0, count: EgressLimits.replyBytesMax)
        while true {
            var came: CInt = -1
            let count = aspen_receive_with_fd(connection, &buffer, buffer.count, &came)
            if came >= 0 {
                // One is expected; another would be of no use.
                if descriptor == nil { descriptor = came } else { close(came) }
            }
            guard count > 0 else {
                throw silence(
                    count == 0 ? "it went away" : String(cString: strerror(CInt(-count))), path)
            }
            received += buffer[..<count]
            guard received.count >= 4 else { continue }
            let length = received[..<4].reversed().reduce(0) { $0 << 8 | Int($1) }
            guard length <= EgressLimits.replyBytesMax else {
                throw AspenError(.unsupportedVersion, "egress.sock sent \(length) bytes")
            }
            guard received.count >= 4 + length else { continue }
            do throws(DecodeError) {
                return try EgressReply(decoding: Array(received[4..<4 + length]))
            } catch {
                throw AspenError(
                    .unsupportedVersion, "egress.sock sent what we cannot read: \(error)")
            }
        }
    }

    private static func connect(_ path: String) throws(AspenError) -> CInt {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw AspenError(.invalidArgument, "the path of egress.sock is too long: \(path)")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        let connection = socket(AF_UNIX, kind, 0)
        guard connection >= 0 else { throw silence(String(cString: strerror(errno)), path) }
        // The program gives up earlier by itself and says why.
        var patience = timeval(
            tv_sec: Int(EgressLimits.timeout.components.seconds) + 2, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(
                connection, SOL_SOCKET, option, &patience, socklen_t(MemoryLayout<timeval>.size))
        }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(connection, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else {
            let reason = String(cString: strerror(errno))
            close(connection)
            throw silence(reason, path)
        }
        return connection
    }

    private static func silence(_ reason: String, _ path: String) -> AspenError {
        AspenError(
            .unavailable, "aspend-egress does not answer at \(path): \(reason)", retry: .safe)
    }
}
