// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CAspenSystem
import DNSWire
import Glibc
import Logging
import MDNSCore
import NIOCore
import NIOPosix

/// One socket of port 5353, for IPv4 or IPv6, shared with other responders of this machine. Confined to
/// its event loop.
// SAFETY: confined to `loop`; futures and channel handlers only carry the reference.
package final class MulticastSocket: @unchecked Sendable {
    package let isV6: Bool
    private let socket: CInt
    private let loop: any EventLoop
    private let logger: Logger
    private var channel: (any Channel)?
    private var joined: Set<UInt32> = []
    private var complained: Set<UInt32> = []
    /// What packets come from on each interface, over IPv4: left to itself the kernel gives those on
    /// loopback an address of another interface, which nobody there believes.
    private var origins: [UInt32: IPAddress] = [:]

    /// - Throws: `invalidArgument` when the descriptor is no UDP socket, or cannot be used for this.
    package init(
        descriptor: CInt, loop: any EventLoop, logger: Logger
    ) throws(AspenError) {
        let family = aspen_prepare_multicast(descriptor)
        guard family >= 0 else {
            throw AspenError(
                .invalidArgument,
                "a socket 'mdns' cannot be used for multicast: \(String(cString: strerror(-family)))"
            )
        }
        isV6 = family == 1
        socket = descriptor
        self.loop = loop
        self.logger = logger
    }

    /// - Parameter onPacket: called on the event loop for each datagram.
    package func start(onPacket: @escaping (MDNSPacket) -> Void) -> EventLoopFuture<Void> {
        let handler = NIOLoopBound(PacketHandler(onPacket), eventLoop: loop)
        return DatagramBootstrap(group: loop)
            // A flood takes turns with everything else.
            .channelOption(.maxMessagesPerRead, value: 16)
            .channelOption(
                .recvAllocator,
                value: FixedSizeRecvByteBufferAllocator(capacity: DNSMessage.bytesMax + 1)
            )
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(handler.value)
                }
            }
            .withBoundSocket(socket)
            .flatMap { channel in
                self.channel = channel
                return channel.setOption(.receivePacketInfo, value: true)
            }
    }

    /// Hears the group on these interfaces and on no others.
    package func join(_ interfaces: [MDNSInterface]) {
        let wanted = Set(
            interfaces.filter { interface in
                interface.prefixes.contains { $0.address.isV4 != isV6 }
            }.map(\.index))
        for index in joined.subtracting(wanted).sorted() {
            _ = aspen_change_group(socket, index, 0)
        }
        origins = [:]
        for interface in interfaces where !isV6 {
            let own = interface.announced + interface.prefixes.map(\.address)
            origins[interface.index] = own.first(where: \.isV4)
        }
        // Once more also where it is a member: an interface that was down may have forgotten.
        joined = []
        for index in wanted.sorted() {
            let result = aspen_change_group(socket, index, 1)
            if result == 0 {
                joined.insert(index)
                complained.remove(index)
            } else if complained.insert(index).inserted {
                logger.warning(
                    "multicast DNS cannot be heard on an interface: \(String(cString: strerror(-result)))",
                    metadata: ["interface": "\(index)", "family": "\(isV6 ? "IPv6" : "IPv4")"])
            }
        }
    }

    /// Sends unless this socket has no part in it. What cannot be sent at once is lost, as it may be on
    /// the link: what matters is said again.
    package func send(_ bytes: [UInt8], interface: UInt32, to destination: MDNSDestination) {
        guard channel?.isActive == true, joined.contains(interface) else { return }
        switch destination {
        case .group:
            send(bytes, interface, isV6 ? Self.group6 : Self.group4, port: MDNS.port)
        case .one(let address, let port):
            if address.isV4 != isV6 { send(bytes, interface, address, port: port) }
        }
    }

    private static let group4 = IPAddress.v4(0xe000_00fb)
    private static let group6 = IPAddress.v6(0xff02_0000_0000_0000_0000_0000_0000_00fb)

    /// By hand: NIO does not say by which interface a datagram is to leave.
    private func send(_ bytes: [UInt8], _ interface: UInt32, _ to: IPAddress, port: UInt16) {
        if let origin = origins[interface] {
            _ = aspen_send_by_interface(
                socket, bytes, bytes.count, to.bytes, port, interface, origin.bytes)
        } else {
            _ = aspen_send_by_interface(socket, bytes, bytes.count, to.bytes, port, interface, nil)
        }
    }

    package func close() { channel?.close(promise: nil) }

    private final class PacketHandler: ChannelInboundHandler {
        typealias InboundIn = AddressedEnvelope<ByteBuffer>
        private let onPacket: (MDNSPacket) -> Void

        init(_ onPacket: @escaping (MDNSPacket) -> Void) { self.onPacket = onPacket }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            let envelope = unwrapInboundIn(data)
            guard let interface = envelope.metadata?.packetInfo?.interfaceIndex,
                let source = IPAddress(envelope.remoteAddress),
                let port = envelope.remoteAddress.port.flatMap({ UInt16(exactly: $0) })
            else { return }
            onPacket(
                MDNSPacket(
                    bytes: Array(buffer: envelope.data), interface: UInt32(clamping: interface),
                    source: source, sourcePort: port))
        }

        /// An error of one datagram, as of a host that cannot be reached: the socket goes on.
        func errorCaught(context: ChannelHandlerContext, error: any Error) {}
    }
}

extension IPAddress {
    /// - Returns: nil for what is neither IPv4 nor IPv6.
    init?(_ address: SocketAddress) {
        let place: Range<Int>
        switch address {
        case .v4: place = 4..<8  // struct sockaddr_in: family, port, address
        case .v6: place = 8..<24  // struct sockaddr_in6: family, port, flow, address
        case .unixDomainSocket: return nil
        }
        let bytes = address.withSockAddr { pointer, length in
            Array(UnsafeRawBufferPointer(start: pointer, count: length)[place])
        }
        self.init(bytes: bytes)
    }
}
