// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import AspenWire
import EgressClient
import Glibc
import Logging
import NIOCore
import ServiceKit

/// `aspend-gossip`, from its arguments to a running service.
package enum GossipDaemon {
    package static let manual = DaemonManual(
        name: "aspend-gossip", abstract: "finds other nodes, and lets them find this one",
        known: GossipSettings.known)

    /// What is said on gossip.sock when the daemon cannot start.
    package static let refusals = [
        SocketRefusal(socket: "gossip.sock") { reason in
            let reply = GossipReply.failed(
                code: .unavailable, message: "aspend-gossip cannot start: \(reason.message)")
            let content = ByteBuffer(bytes: reply.encoded())
            return { _ in .reply(content) }
        }
    ]

    /// The start function of `Daemon.run`.
    package static func start(
        _ context: DaemonContext, _ sockets: inout ActivatedSockets, _ arguments: [String]
    ) throws -> EventLoopFuture<RunningDaemon> {
        let settings = try GossipSettings(
            ServiceSettings(arguments: arguments, known: GossipSettings.known))
        JournalLogHandler.setNode(settings.node.rawValue)
        guard let gossipSocket = sockets.take("gossip.sock").first else {
            throw AspenError(
                .invalidArgument,
                "no socket 'gossip.sock' was handed over: aspend-gossip is started by systemd "
                    + "(systemctl start aspend-gossip) or by aspen-node, not by hand")
        }
        let routes = sockets.take("routes")
        let multicast = try multicastSockets(settings, routes.first, &sockets, context)
        let dns = settings.dnsOrigin.map {
            DNSDiscovery(
                origin: $0,
                egressSocketPath: settings.runtimeDirectory + "/" + EgressClient.socketName,
                loop: context.eventLoop, logger: context.logger)
        }
        let service = GossipService(
            loop: context.eventLoop, logger: context.logger, node: settings.node,
            access: .ofSystem(), sockets: multicast,
            netSocketPath: settings.runtimeDirectory + "/net.sock", dns: dns,
            isGossipDisabled: settings.isGossipDisabled,
            epochs: EpochFile(disk: disk(settings, context.logger), logger: context.logger))
        // Also without multicast DNS: net has to be told where this node's interfaces are.
        if let socket = routes.first {
            RouteWatch(socket: socket, loop: context.eventLoop, logger: context.logger) {
                service.use($0)
            }.start()
        }
        return service.start(
            gossipSocket: gossipSocket, peerSocket: sockets.take("gossip.peer").first
        ).map {
            context.logger.info(
                "aspend-gossip serves",
                metadata: [
                    "gossip": "\(settings.isGossipDisabled ? "off" : "on")",
                    "mdns": "\(multicast.isEmpty ? "off" : "on")",
                    "dns": "\(settings.dnsOrigin.map { "\($0)" } ?? "off")",
                ])
            return RunningDaemon { service.stop() }
        }
    }

    /// Without it the daemon serves all the same: see `EpochFile`.
    private static func disk(_ settings: GossipSettings, _ logger: Logger) -> (any Disk)? {
        guard let path = settings.stateDirectory else {
            logger.warning("no --state-dir (ASPEN_STATE_DIR): nothing is kept for the next start")
            return nil
        }
        do throws(DiskError) {
            return try PosixDisk(path: path)
        } catch {
            logger.warning(
                "nothing is kept for the next start", metadata: ["error": "\(error)"])
            return nil
        }
    }

    /// Without them the daemon serves all the same: other ways to find nodes need none.
    private static func multicastSockets(
        _ settings: GossipSettings, _ routes: CInt?, _ sockets: inout ActivatedSockets,
        _ context: DaemonContext
    ) throws(AspenError) -> [MulticastSocket] {
        let descriptors = sockets.take("mdns")
        if settings.isMDNSDisabled {
            for descriptor in descriptors { close(descriptor) }
            return []
        }
        guard !descriptors.isEmpty, routes != nil else {
            let missing = descriptors.isEmpty ? "'mdns' (UDP port 5353)" : "'routes' (netlink)"
            context.logger.warning(
                "no socket \(missing) was handed over: nodes on the local link are neither found nor told. Is the port another program's alone? --disable-mdns true (ASPEN_DISABLE_MDNS) says that this is meant"
            )
            for descriptor in descriptors { close(descriptor) }
            return []
        }
        var found: [MulticastSocket] = []
        for descriptor in descriptors {
            found.append(
                try MulticastSocket(
                    descriptor: descriptor, loop: context.eventLoop, logger: context.logger))
        }
        return found
    }
}
