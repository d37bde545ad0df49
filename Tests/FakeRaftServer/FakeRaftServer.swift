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

    private struct Watch {
        var request: Aspen_Client_V1_WatchRequest
        var id: UInt64
        var told: UInt64
        var channel: ObjectIdentifier
        var frames: NIOLoopBound<FrameChannel>
    }

    private struct State {
        var watches: [Watch] = []
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

    /// As if the daemon had been restarted: every connection goes.
    package func dropConnections() {
        for channel in state.withLockedValue({ Array($0.channels.values) }) {
            channel.close(promise: nil)
        }
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
    package var watchCount: Int { state.withLockedValue { $0.watches.count } }
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
            state.withLockedValue { state in
                _ = state.channels.removeValue(forKey: id)
                state.watches.removeAll { $0.channel == id }
            }
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
        case nil:
            if case .watch(let watch) = request.request { return beginWatch(watch, id, frames) }
            reply(withStore { $0.answer(request) }, to: id, frames)
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
        if case .cancelWatch(let cancel) = request.request { endWatch(cancel.watch, of: frames) }
        tellWatches()
    }

    // MARK: - Watches

    private func beginWatch(
        _ request: Aspen_Client_V1_WatchRequest, _ id: UInt64, _ frames: FrameChannel
    ) {
        guard let channel = frames.channel else { return }
        let told =
            request.startRevision == 0 ? withStore { $0.revision } : request.startRevision - 1
        reply(.with { $0.watch.revision = told }, to: id, frames)
        let watch = Watch(
            request: request, id: id, told: told, channel: ObjectIdentifier(channel),
            frames: NIOLoopBound(frames, eventLoop: channel.eventLoop))
        state.withLockedValue { $0.watches.append(watch) }
        tellWatches()
    }

    /// What has happened since the last time; all messages go out before what is asked next.
    private func tellWatches() {
        let updates = state.withLockedValue { state in
            state.watches.indices.compactMap { place -> (Watch, FakeResponse)? in
                let watch = state.watches[place]
                let update =
                    shared?.withStore { $0.update(watch.request, after: watch.told) }
                    ?? state.store.update(watch.request, after: watch.told)
                guard update.watch.revision > watch.told else { return nil }
                state.watches[place].told = update.watch.revision
                return update.watch.events.isEmpty ? nil : (watch, update)
            }
        }
        for (watch, update) in updates {
            watch.frames.eventLoop.execute {
                self.reply(update, to: watch.id, watch.frames.value)
            }
        }
    }

    private func endWatch(_ id: UInt64, of frames: FrameChannel) {
        guard let channel = frames.channel else { return }
        state.withLockedValue { state in
            state.watches.removeAll { $0.id == id && $0.channel == ObjectIdentifier(channel) }
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
