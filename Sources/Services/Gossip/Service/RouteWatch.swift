// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenSystem
import Glibc
import Logging
import NIOCore
import NIOPosix

/// Knows the machine's interfaces from a netlink socket that was handed over (`ListenNetlink=route`):
/// asks for all of them once, and hears of changes. Confined to its event loop, but for a thread that
/// waits for the kernel.
///
/// The daemon cannot open such a socket itself, and its own network namespace has no interfaces.
// SAFETY: `table` and all below it are used on `loop` alone; the thread has the descriptor only.
package final class RouteWatch: @unchecked Sendable {
    private enum Phase { case links, addresses, complete }

    private let socket: CInt
    private let loop: any EventLoop
    private let logger: Logger
    private let onChange: ([RouteInterface]) -> Void
    private var table = RouteTable()
    private var phase = Phase.links
    private var sequence: UInt32 = 0
    private var told: [RouteInterface]?
    /// Something was said, or lost, that is to be asked for again.
    private var mustAskAgain = false
    private static let bufferBytes = 65_536

    /// - Parameter onChange: called on `loop` with all interfaces, once they are known and after each
    ///   change.
    package init(
        socket: CInt, loop: any EventLoop, logger: Logger,
        onChange: @escaping ([RouteInterface]) -> Void
    ) {
        self.socket = socket
        self.loop = loop
        self.logger = logger
        self.onChange = onChange
    }

    package func start() {
        _ = fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) & ~O_NONBLOCK)
        ask()
        // NIO has no channel for netlink, and what comes is rare.
        let thread = NIOThreadPool(numberOfThreads: 1)
        thread.start()
        thread.submit { [socket, loop] _ in
            var buffer = [UInt8](repeating: 0, count: Self.bufferBytes)
            while true {
                let count = aspen_receive_routes(socket, &buffer, buffer.count)
                if count < 0, count != -Int(ENOBUFS) { return }
                let bytes = count < 0 ? nil : Array(buffer[..<count])
                loop.execute { self.heard(bytes) }
            }
        }
    }

    private func ask() {
        phase = .links
        mustAskAgain = false
        table = RouteTable()
        request(addresses: false)
    }

    private func request(addresses: Bool) {
        sequence += 1
        let result = aspen_request_routes(socket, addresses ? 1 : 0, sequence)
        if result < 0 {
            logger.warning("the kernel was not asked for interfaces: errno \(-result)")
        }
    }

    /// - Parameter bytes: nil when the kernel had more to say than fitted.
    private func heard(_ bytes: [UInt8]?) {
        guard let bytes else {
            mustAskAgain = true
            return askAgain()
        }
        let isDone = table.take(bytes)
        switch (phase, isDone) {
        case (.links, true):
            phase = .addresses
            request(addresses: true)
        case (.addresses, true):
            phase = .complete
            askAgain()
        default: break
        }
        guard phase == .complete else { return }
        let interfaces = table.interfaces
        guard interfaces != told else { return }
        told = interfaces
        onChange(interfaces)
    }

    /// One question at a time.
    private func askAgain() {
        if phase == .complete, mustAskAgain { ask() }
    }
}
