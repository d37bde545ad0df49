// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import NIOCore
import NetClient

/// How this node reaches others: `aspend-net` in life, an in-memory network in tests. Confined to
/// the event loop.
package protocol PeerTransport: AnyObject {
    var onEvent: (TransportEvent) -> Void { get set }
    func start()
    /// The members, or with `isClosed` false those who may be contacted before there is a membership.
    func setPeers(_ peers: [NetPeer], isClosed: Bool)
    /// Who belongs to the cluster, this node included; empty: there is none.
    func setMembers(_ members: [NetMember])
    /// A stream to the raft service of that endpoint. The far end sees a `Principal` frame first.
    /// - Throws: `AspenError` through the future.
    func open(
        _ endpoint: EndpointID, initialize: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel>
    /// Who was found by gossip or on the link. Nothing of it is proved.
    /// - Parameter done: on the event loop, once; with nothing where nobody can say.
    func findPeers(done: @escaping ([ConfiguredPeer]) -> Void)
    func stop()
}

extension PeerTransport {
    package func findPeers(done: @escaping ([ConfiguredPeer]) -> Void) { done([]) }
}

package enum TransportEvent: Sendable {
    case connected(NetIdentity)
    case lost
    case net(NetEvent)
    case refused(AspenError)
}

/// The transport of life: `net.sock`.
package final class NetTransport: PeerTransport {
    package var onEvent: (TransportEvent) -> Void = { _ in }
    private let eventLoop: any EventLoop
    private let socketPath: String
    private let control: NetControl

    package init(eventLoop: any EventLoop, socketPath: String) {
        self.eventLoop = eventLoop
        self.socketPath = socketPath
        control = NetControl(eventLoop: eventLoop, socketPath: socketPath)
    }

    package func start() {
        control.onConnected = { [weak self] in self?.onEvent(.connected($0)) }
        control.onLost = { [weak self] in self?.onEvent(.lost) }
        control.onEvent = { [weak self] in self?.onEvent(.net($0)) }
        control.onRefused = { [weak self] in self?.onEvent(.refused($0)) }
        control.start()
    }

    package func setPeers(_ peers: [NetPeer], isClosed: Bool) {
        control.setPeers(peers, isClosed: isClosed)
    }

    package func setMembers(_ members: [NetMember]) { control.setMembers(members) }

    package func open(
        _ endpoint: EndpointID, initialize: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel> {
        NetStream.open(
            eventLoop: eventLoop, socketPath: socketPath, endpoint: endpoint, alpn: .raft,
            service: .raft, initialize: initialize)
    }

    package func findPeers(done: @escaping ([ConfiguredPeer]) -> Void) {
        control.ask(.listLearned) { reply in
            if case .learned(let peers) = reply { done(peers) } else { done([]) }
        }
    }

    package func stop() { control.stop() }
}
