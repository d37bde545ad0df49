// SPDX-License-Identifier: GPL-2.0-or-later

import CNgtcp2
import Glibc
import NIOCore

/// Packets for one address, gathered for one system call (UDP_SEGMENT): all of one size, only the
/// last may be shorter.
final class SendBatch {
    /// Most packets in a call: the kernel's UDP_MAX_SEGMENTS.
    private static let packetsMax = 64
    /// Most bytes in a call: what a UDP datagram over IPv6 holds.
    private static let bytesMax = 65_487

    private let memory = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: 1 << 17)
    private unowned let endpoint: QUICEndpoint
    private var connection: QUICConnection?
    private var length = 0
    private var segment = 0
    private var packets = 0
    private var payload = 0
    private var remote = sockaddr_storage()
    private var remoteLength: socklen_t = 0

    init(endpoint: QUICEndpoint) { self.endpoint = endpoint }

    deinit { memory.deallocate() }

    /// - Parameter payload: the size of packet that the path is known to carry; a larger one is a
    ///   probe and travels alone.
    func begin(connection: QUICConnection, payload: Int) {
        precondition(length == 0, "the batch before was not sent")
        self.connection = connection
        self.payload = payload
    }

    /// Room for the next packet.
    func reserve(_ capacity: Int) -> UnsafeMutableBufferPointer<UInt8> {
        room(at: length, capacity)
    }

    private func room(at start: Int, _ count: Int) -> UnsafeMutableBufferPointer<UInt8> {
        UnsafeMutableBufferPointer(rebasing: memory[start..<(start + count)])
    }

    /// The packet of `count` bytes just written into the room is part of the batch now.
    func commit(_ count: Int) {
        var newLength: socklen_t = 0
        guard let newRemote = aspen_quic_writer_remote(endpoint.writer, &newLength) else { return }
        if length > 0, count > segment || !isSameRemote(newRemote, newLength) {
            // It does not fit with the others: they go first.
            let start = length
            send()
            UnsafeMutableRawBufferPointer(memory).copyMemory(
                from: UnsafeRawBufferPointer(room(at: start, count)))
        }
        if length == 0 {
            segment = count
            remoteLength = min(newLength, socklen_t(MemoryLayout<sockaddr_storage>.size))
            withUnsafeMutableBytes(of: &remote) {
                $0.copyMemory(
                    from: UnsafeRawBufferPointer(start: newRemote, count: Int(remoteLength)))
            }
        }
        length += count
        packets += 1
        let isFull =
            count < segment || count > payload || packets == Self.packetsMax
            || length + segment > Self.bytesMax || !endpoint.hasSegmentation
        if isFull { send() }
    }

    private func isSameRemote(_ other: UnsafePointer<sockaddr>, _ otherLength: socklen_t) -> Bool {
        guard otherLength == remoteLength else { return false }
        return memcmp(&remote, other, Int(otherLength)) == 0
    }

    /// Sends what is there; nothing of the connection is kept.
    func end() {
        send()
        connection = nil
    }

    private func send() {
        guard length > 0 else { return }
        let bytes = UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(memory)[..<length])
        let size = packets > 1 ? segment : 0
        length = 0
        packets = 0
        withUnsafeBytes(of: &remote) { raw in
            guard let address = raw.baseAddress?.assumingMemoryBound(to: sockaddr.self) else {
                return
            }
            endpoint.transmit(
                bytes, segment: size, to: address, remoteLength, source: connection?.localSource,
                for: connection)
        }
    }
}
