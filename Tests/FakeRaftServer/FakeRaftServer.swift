// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import ServiceKit
import SwiftProtobuf

/// A one-node "cluster" in this process that speaks the frames of `raft.sock`, and misbehaves when
/// told to: for tests of what stands on the other end.
package final class FakeRaftServer: Sendable {
    /// What happens to one request instead of a plain answer.
    package enum Fault: Sendable {
        /// The connection goes before the request was looked at.
        case dropBefore
        /// It is carried out, and then the connection goes instead of the answer.
        case dropAfter
        /// Carried out, never answered.
        case swallow
        case fail(AspenErrorCode, AspenError.Retry)
        /// An answer that no protocol knows.
        case garbage
        case expireSessions
    }

    package typealias Script = @Sendable (FakeRequest) -> Fault?

    private struct State {
        var store = FakeStore()
        var script: Script = { _ in nil }
        var requests: [FakeRequest] = []
        var channels: [ObjectIdentifier: any Channel] = [:]
        var connectionCount = 0
    }

    private let state = NIOLockedValueBox(State())
    private let listening = NIOLockedValueBox<(any Channel)?>(nil)
    package let path: String
    private let directory: String
    /// Shared with siblings that serve the same state.
    private let shared: FakeRaftServer?

    /// - Parameter sharing: serves that server's state under a socket of its own.
    package init(sharing: FakeRaftServer? = nil) {
        var template = Array("/tmp/aspen-fake-XXXXXX".utf8CString)
        directory = mkdtemp(&template).map { String(cString: $0) } ?? "/tmp"
        path = directory + "/raft.sock"
        shared = sharing
    }

    package func start() async throws {
        let channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(self.handler(channel))
                }
            }
            .bind(unixDomainSocketPath: path).get()
        listening.withLockedValue { $0 = channel }
    }

    /// Stops listening and drops every connection; the state stays.
    package func stop() async {
        let channel = listening.withLockedValue { $0.take() }
        try? await channel?.close()
        for connection in state.withLockedValue({ Array($0.channels.values) }) {
            try? await connection.close()
        }
        unlink(path)
        rmdir(directory)
    }

    package func script(_ script: @escaping Script) {
        state.withLockedValue { $0.script = script }
    }

    /// One fault for each request that `isMeant`, in order; then plain answers again.
    package func faults(_ faults: [Fault], for isMeant: @escaping @Sendable (FakeRequest) -> Bool) {
        let left = NIOLockedValueBox(faults)
        script { request in
            guard isMeant(request) else { return nil }
            return left.withLockedValue { $0.isEmpty ? nil : $0.removeFirst() }
        }
    }

    package var requests: [FakeRequest] { state.withLockedValue { $0.requests } }
    package var connectionCount: Int { state.withLockedValue { $0.connectionCount } }
    package var appliedCount: Int { withStore { $0.appliedCount } }
    package var sessionCount: Int { withStore { $0.sessionCount } }
    package func expireSessions() { withStore { $0.expireSessions() } }
    package func setMembers(voters: [UInt64], learners: [UInt64]) {
        withStore {
            $0.voters = voters
            $0.learners = learners
        }
    }

    private func withStore<Answer>(_ body: (inout FakeStore) -> Answer) -> Answer {
        if let shared { return shared.withStore(body) }
        return state.withLockedValue { body(&$0.store) }
    }

    private func handler(_ channel: any Channel) -> FrameChannel {
        let frames = FrameChannel()
        let id = ObjectIdentifier(channel)
        state.withLockedValue {
            $0.channels[id] = channel
            $0.connectionCount += 1
        }
        frames.onFrame = { [unowned self] frames, buffer in self.received(buffer, frames) }
        frames.onClosed = { [state] _, _ in
            state.withLockedValue { _ = $0.channels.removeValue(forKey: id) }
        }
        return frames
    }

    private func received(_ frame: ByteBuffer, _ frames: FrameChannel) {
        var frame = frame
        guard let id: UInt64 = frame.readInteger(endianness: .little),
            let request = try? FakeRequest(serializedBytes: Array(frame.readableBytesView))
        else { return frames.close() }
        let script = state.withLockedValue {
            $0.requests.append(request)
            return $0.script
        }
        switch script(request) {
        case nil: reply(withStore { $0.answer(request) }, to: id, frames)
        case .dropBefore: frames.channel?.close(promise: nil)
        case .dropAfter:
            _ = withStore { $0.answer(request) }
            frames.channel?.close(promise: nil)
        case .swallow: _ = withStore { $0.answer(request) }
        case .fail(let code, let retry):
            reply(.failed(code, "the test says \(code.name)", retry: retry), to: id, frames)
        case .garbage: frames.send { $0.writeRepeatingByte(0xff, count: 3) }
        case .expireSessions:
            expireSessions()
            reply(withStore { $0.answer(request) }, to: id, frames)
        }
    }

    private func reply(_ response: FakeResponse, to id: UInt64, _ frames: FrameChannel) {
        guard let bytes = try? response.serializedBytes() as [UInt8] else { return }
        frames.send { buffer in
            buffer.writeInteger(id, endianness: .little)
            buffer.writeBytes(bytes)
        }
    }
}
