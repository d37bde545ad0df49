// SPDX-License-Identifier: GPL-2.0-or-later

import CNgtcp2
import CSodium

/// A connection id of any length: what a client makes up for its first packets.
struct ConnectionID: Hashable {
    private let high: UInt64
    private let middle: UInt64
    private let low: UInt32
    private let count: UInt8

    /// nil beyond the 20 bytes of QUIC version 1.
    init?(_ bytes: UnsafeBufferPointer<UInt8>) {
        guard bytes.count <= Int(NGTCP2_MAX_CIDLEN) else { return nil }
        var words: (UInt64, UInt64, UInt32) = (0, 0, 0)
        withUnsafeMutableBytes(of: &words) { $0.copyBytes(from: bytes) }
        (high, middle, low) = words
        count = UInt8(bytes.count)
    }

    init?(_ cid: ngtcp2_cid) {
        let length = cid.datalen
        let value = withUnsafeBytes(of: cid.data) { bytes in
            ConnectionID(UnsafeBufferPointer(rebasing: bytes.bindMemory(to: UInt8.self)[..<length]))
        }
        guard let value else { return nil }
        self = value
    }
}

/// The token by which a peer that has lost its state proves that it is the peer
/// (RFC 9000 section 10.3).
struct ResetToken: Hashable {
    private let high: UInt64
    private let low: UInt64

    /// - Parameter bytes: 16 bytes.
    init(_ bytes: UnsafePointer<UInt8>) {
        let raw = UnsafeRawPointer(bytes)
        high = raw.loadUnaligned(as: UInt64.self)
        low = raw.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
    }
}

extension ngtcp2_cid {
    /// One of our own ids.
    init(_ id: UInt64) {
        self.init()
        withUnsafeBytes(of: id) { ngtcp2_cid_init(&self, $0.baseAddress, $0.count) }
    }

    static func random(length: Int) -> ngtcp2_cid {
        var cid = ngtcp2_cid()
        cid.datalen = length
        randombytes_buf(&cid.data, length)
        return cid
    }
}

extension UInt64 {
    /// One of our own ids as a number; nil for an id of another length.
    init?(_ cid: ngtcp2_cid) {
        guard cid.datalen == Int(ASPEN_CID_LENGTH) else { return nil }
        self = withUnsafeBytes(of: cid.data) { $0.loadUnaligned(as: UInt64.self) }
    }
}
