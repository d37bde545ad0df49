// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import CAspenSystem
import Glibc
import Logging
import NIOCore
import NIOPosix
import QUIC
import ServiceKit

/// `aspend-net`, from its arguments to a running service.
package enum NetDaemon {
    package static let manual = DaemonManual(
        name: "aspend-net",
        abstract: "a node's key and its one UDP socket; joins streams to daemons",
        known: NetSettings.known,
        flags: [
            DaemonManual.Flag(
                "--print-identity",
                "Print this node's endpoint id, making the key if there is none, and exit.")
        ])

    /// `--print-identity [true] --state-dir DIR`: prints the endpoint id, making the key if there is none.
    /// - Returns: the exit code, or nil when this was not asked for.
    package static func printIdentity(_ arguments: [String]) -> CInt? {
        guard let place = arguments.firstIndex(of: "--print-identity"),
            manual.answer(to: arguments) == nil
        else { return nil }
        var arguments = arguments
        arguments.remove(at: place)
        if place < arguments.count, arguments[place] == "true" { arguments.remove(at: place) }
        do {
            let settings = try ServiceSettings(arguments: arguments, known: NetSettings.known)
            guard let directory = settings.stateDirectory else {
                throw AspenError(
                    .invalidArgument, "--print-identity needs --state-dir (ASPEN_STATE_DIR)")
            }
            print(try IdentityFile.loadOrCreate(stateDirectory: directory).endpoint)
            return DaemonExit.ok.rawValue
        } catch let error as AspenError {
            say("aspend-net: \(error.message)\n")
            return DaemonExit(error).rawValue
        } catch {
            say("aspend-net: \(error)\n")
            return DaemonExit.software.rawValue
        }
    }

    /// What is said on net.sock when the daemon cannot start.
    package static let refusals = [
        SocketRefusal(socket: "net.sock") { reason in
            let reply = NetReply.failed(
                code: .unavailable, message: "aspend-net cannot start: \(reason.message)")
            let content = ByteBuffer(bytes: reply.encoded())
            return { _ in .reply(content) }
        }
    ]

    /// The start function of `Daemon.run`.
    package static func start(
        _ context: DaemonContext, _ sockets: inout ActivatedSockets, _ arguments: [String]
    ) throws -> EventLoopFuture<RunningDaemon> {
        raiseFileLimit()
        let settings = try NetSettings(
            ServiceSettings(arguments: arguments, known: NetSettings.known))
        if let node = settings.node {
            JournalLogHandler.setNode(node.rawValue)
        }
        let cookie = try Secret.take("cookie", from: &sockets)
        if let warning = try CookieRule.check(cookie) { context.logger.warning("\(warning)") }
        let accepted = try acceptedCookie(&sockets, besides: cookie, context)
        let key = try identity(settings, &sockets, context)
        let datagramSocket = try take("quic", &sockets)
        let netSocket = try take("net.sock", &sockets)
        guard let bound = SocketAddress(boundSocket: datagramSocket) else {
            throw AspenError(.invalidArgument, "the socket 'quic' is not a bound UDP socket")
        }
        let advertised = try settings.addresses(boundTo: bound)
        let raft: PeerConnector
        if let passing = sockets.take("raft.peer").first {
            raft = .passing(descriptor: passing)
        } else {
            raft = .path("\(settings.runtimeDirectory)/raft.peer.sock")
        }
        let gossip =
            sockets.take("gossip.peer").first.map { PeerConnector.passing(descriptor: $0) }
            ?? .path("\(settings.runtimeDirectory)/gossip.peer.sock")
        let peers = settings.peers.filter { $0.peer.endpoint != key.endpoint }
        let kept = sockets.take(CookieKey.keptName)
        let keptAccepted = sockets.take(CookieKey.keptAcceptedName)
        let stretched = stretch(cookie ?? Secret([]), kept, CookieKey.keptName, context)
        // One after the other: each takes 64 MB for a moment.
        let both = stretched.flatMap { own in
            stretchAccepted(accepted, keptAccepted, context).map { (own, $0) }
        }
        return both.flatMap { own, accepted in
            var configuration = NetConfiguration(
                key: key, cookie: own, advertised: advertised, access: .ofSystem())
            configuration.cookies.accepted = accepted
            configuration.configuredPeers = peers
            configuration.areTokensRequired = settings.areTokensRequired
            configuration.connectors = [.raft: raft, .gossip: gossip]
            configuration.port = UInt16(bound.port ?? 0)
            let service = NetService(
                eventLoop: context.eventLoop, configuration: configuration, logger: context.logger)
            return service.start(datagramSocket: datagramSocket, netSocket: netSocket).map {
                context.logger.info(
                    "aspend-net serves",
                    metadata: [
                        "endpoint": "\(key.endpoint)",
                        "addresses": "\(advertised.joined(separator: " "))",
                        "tokens": settings.areTokensRequired ? "required" : "not required",
                    ])
                return RunningDaemon { service.stop() }
            }
        }
    }

    /// Another cookie that is taken from others, while the cluster's is being replaced. It must be as good as
    /// the cookie itself.
    private static func acceptedCookie(
        _ sockets: inout ActivatedSockets, besides cookie: Secret?, _ context: DaemonContext
    ) throws(AspenError) -> Secret? {
        guard let secret = try Secret.take("cookie-accepted", from: &sockets),
            !secret.bytes.isEmpty, secret.bytes != cookie?.bytes
        else { return nil }
        do {
            _ = try CookieRule.check(secret)
        } catch {
            throw AspenError(
                error.code, "the cookie that is also accepted cannot be used: \(error.message)")
        }
        context.logger.notice(
            "another cookie is accepted as well: once no node uses it, take credentials/cookie-accepted away"
        )
        return secret
    }

    /// The key that the supervisor hands over, else the one in the state directory.
    private static func identity(
        _ settings: NetSettings, _ sockets: inout ActivatedSockets, _ context: DaemonContext
    ) throws(AspenError) -> NodeKey {
        guard let secret = try Secret.take(IdentityFile.credential, from: &sockets),
            let key = try IdentityFile.key(handedOver: secret)
        else { return try IdentityFile.loadOrCreate(stateDirectory: settings.stateDirectory) }
        if let own = try IdentityFile.existing(stateDirectory: settings.stateDirectory),
            own.endpoint != key.endpoint
        {
            context.logger.warning(
                "the credential 'key' is another identity than \(IdentityFile.name) in the state directory, which is not used",
                metadata: ["endpoint": "\(key.endpoint)", "unused": "\(own.endpoint)"])
        }
        return key
    }

    private static func take(
        _ name: String, _ sockets: inout ActivatedSockets
    ) throws(AspenError) -> CInt {
        guard let descriptor = sockets.take(name).first else {
            throw AspenError(
                .invalidArgument,
                "no socket '\(name)' was handed over: aspend-net is started by systemd "
                    + "(systemctl start aspend-net) or by aspen-node, not by hand")
        }
        return descriptor
    }

    private static func stretchAccepted(
        _ cookie: Secret?, _ kept: [CInt], _ context: DaemonContext
    ) -> EventLoopFuture<CookieKey?> {
        let name = CookieKey.keptAcceptedName
        if let cookie { return stretch(cookie, kept, name, context).map { $0 } }
        if !kept.isEmpty { Notifier.discard(name: name) }
        for descriptor in kept { close(descriptor) }
        return context.eventLoop.makeSucceededFuture(nil)
    }

    /// The key of the cookie: as an earlier process left it with the supervisor, or made anew, off
    /// the event loop, on a thread that ends afterwards, and left for the next process.
    private static func stretch(
        _ cookie: Secret, _ kept: [CInt], _ name: String, _ context: DaemonContext
    ) -> EventLoopFuture<CookieKey> {
        defer { for descriptor in kept { close(descriptor) } }
        let loop = context.eventLoop
        for descriptor in kept {
            guard let key = CookieKey(keptIn: descriptor, for: cookie) else { continue }
            context.logger.debug("the key of the cookie was kept")
            return loop.makeSucceededFuture(key)
        }
        if !kept.isEmpty { Notifier.discard(name: name) }
        let promise = loop.makePromise(of: CookieKey.self)
        // A plain thread: a pool would begin libdispatch, whose workers ask for priorities that the
        // sandbox refuses, and complain.
        let work = Work {
            promise.completeWith(
                Result {
                    let key = try CookieKey(stretching: cookie)
                    if let descriptor = key.kept(for: cookie, name: name) {
                        Notifier.keep(descriptor, name: name)
                        close(descriptor)
                    }
                    return key
                })
        }
        var thread = pthread_t()
        let error = pthread_create(
            &thread, nil,
            { raw in
                guard let raw else { return nil }
                Unmanaged<Work>.fromOpaque(raw).takeRetainedValue().body()
                return nil
            }, Unmanaged.passRetained(work).toOpaque())
        guard error == 0 else {
            return loop.makeFailedFuture(
                AspenError(.resourceExhausted, "no thread: \(String(cString: strerror(error)))"))
        }
        pthread_detach(thread)
        return promise.futureResult
    }

    private final class Work {
        let body: () -> Void
        init(_ body: @escaping () -> Void) { self.body = body }
    }

    /// Each connection of a local caller is a descriptor.
    private static func raiseFileLimit() {
        var files = rlimit()
        let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        if getrlimit(resource, &files) == 0 {
            files.rlim_cur = files.rlim_max
            setrlimit(resource, &files)
        }
    }

    private static func say(_ text: String) { _ = text.withCString { write(2, $0, strlen($0)) } }
}

extension SocketAddress {
    /// Where a socket is bound; nil when it is not, or is neither IPv4 nor IPv6.
    init?(boundSocket descriptor: CInt) {
        var host = [CChar](repeating: 0, count: 64)
        var port: UInt16 = 0
        guard aspen_bound_address(descriptor, &host, host.count, &port) == 0 else { return nil }
        let text = String(
            decoding: host.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
        guard let address = try? SocketAddress(ipAddress: text, port: Int(port)) else { return nil }
        self = address
    }
}
