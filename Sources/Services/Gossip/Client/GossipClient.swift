// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOCore
import NIOPosix
import ServiceKit

/// Asks this node's `aspend-gossip`: one connection for one question.
package enum GossipClient {
    /// The socket's name, in the directory of the other daemons' sockets.
    package static let socketName = "gossip.sock"

    /// What the node knows of each peer, in no order; at most `GossipReply.peersMax`.
    ///
    /// Throws `unavailable` when nobody answers at `path`, `permissionDenied` when the caller may not
    /// ask, `deadlineExceeded` after `timeout`, `unsupportedVersion` for an answer that this program
    /// cannot read, and whatever the daemon refuses with.
    package static func peers(
        socket path: String, on group: any EventLoopGroup, timeout: Duration
    ) async throws(AspenError) -> [PeerLine] {
        let loop = group.any()
        let result: Result<GossipReply, AspenError> = await withCheckedContinuation {
            continuation in
            loop.execute {
                GossipQuestion(.listPeers, socket: path, loop: loop) {
                    continuation.resume(returning: $0)
                }.ask(timeout: TimeAmount(timeout))
            }
        }
        switch try result.get() {
        case .peers(let lines): return lines
        case .failed(let code, let message): throw AspenError(code, message)
        case .discovered: throw .mismatchedAnswer
        }
    }
}

/// A question under way. Confined to its event loop; its channel keeps it alive.
private final class GossipQuestion {
    private let request: GossipRequest
    private let path: String
    private let loop: any EventLoop
    /// Nil once it has been called.
    private var answer: ((Result<GossipReply, AspenError>) -> Void)?
    private var frames: FrameChannel?
    private var deadline: Scheduled<Void>?

    init(
        _ request: GossipRequest, socket path: String, loop: any EventLoop,
        answer: @escaping (Result<GossipReply, AspenError>) -> Void
    ) {
        self.request = request
        self.path = path
        self.loop = loop
        self.answer = answer
    }

    func ask(timeout: TimeAmount) {
        let box = NIOLoopBound(self, eventLoop: loop)
        deadline = loop.scheduleTask(in: timeout) { box.value.finish(.failure(.silence)) }
        ClientBootstrap(group: loop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let frames = FrameChannel()
                    frames.onFrame = { box.value.received($1) }
                    frames.onClosed = { box.value.closed($1) }
                    try channel.pipeline.syncOperations.addHandler(frames)
                }
            }
            .connect(unixDomainSocketPath: path)
            .whenComplete { result in
                switch result {
                case .success(let channel): box.value.connected(channel)
                case .failure(let error): box.value.failed(error)
                }
            }
    }

    private func connected(_ channel: any Channel) {
        guard answer != nil,
            let frames = try? channel.pipeline.syncOperations.handler(type: FrameChannel.self)
        else { return channel.close(promise: nil) }
        self.frames = frames
        frames.send { $0.writeBytes(request.encoded()) }
    }

    private func received(_ frame: ByteBuffer) {
        do {
            finish(.success(try GossipReply(decoding: Array(buffer: frame))))
        } catch {
            finish(
                .failure(
                    AspenError(
                        .unsupportedVersion,
                        "aspend-gossip answered what this program cannot read (\(error)): is it "
                            + "of another version? `systemctl restart aspend-gossip` starts the "
                            + "one that is installed")))
        }
    }

    private func closed(_ reason: FrameChannel.Closed) {
        let text =
            switch reason {
            case .peer: "it closed the connection"
            case .oversized(let bytes):
                "it sent a frame of \(bytes) bytes, more than the limit of "
                    + "\(Limits.rpcMessageBytesMax)"
            case .failed(let text): text
            }
        finish(
            .failure(
                AspenError(
                    .unavailable,
                    "aspend-gossip did not answer: \(text); look at `journalctl -u aspend-gossip`",
                    retry: .safe)))
    }

    private func failed(_ error: any Error) {
        let code = (error as? IOError)?.errnoCode ?? 0
        let reason = code == 0 ? "\(error)" : String(cString: strerror(code))
        let failure =
            switch code {
            case ENOENT, ENOTDIR:
                AspenError(
                    .unavailable,
                    "there is no socket \(path): is aspend-gossip running here "
                        + "(`systemctl status aspend-gossip.socket`)?",
                    retry: .safe)
            case EACCES, EPERM:
                AspenError(
                    .permissionDenied,
                    "you may not open \(path): become a member of group aspen "
                        + "(`adduser $USER aspen`, then log in again)")
            default:
                AspenError(
                    .unavailable,
                    "cannot connect to \(path): \(reason); look at `journalctl -u aspend-gossip`",
                    retry: .safe)
            }
        finish(.failure(failure))
    }

    private func finish(_ result: Result<GossipReply, AspenError>) {
        guard let answer else { return }
        self.answer = nil
        deadline?.cancel()
        frames?.close()
        answer(result)
    }
}

extension AspenError {
    fileprivate static var silence: AspenError {
        AspenError(
            .deadlineExceeded,
            "aspend-gossip did not answer in time: look at `journalctl -u aspend-gossip`",
            retry: .safe)
    }

    fileprivate static var mismatchedAnswer: AspenError {
        AspenError(.internal, "aspend-gossip answered another question than was asked")
    }
}
