// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore

/// Frames on one QUIC stream of a connection of its own (ALPN "aspen-client").
enum QUICTransport {
    static func connect(
        to endpoint: EndpointID, addresses: [String], on loop: any EventLoop
    ) -> EventLoopFuture<NIOLoopBound<any FrameTransport>> {
        loop.makeFailedFuture(
            ConnectFailure(
                error: AspenError(.unavailable, "tickets cannot be dialled yet", retry: .safe),
                isLasting: true))
    }
}
