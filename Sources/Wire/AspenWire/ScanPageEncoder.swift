// SPDX-License-Identifier: GPL-2.0-or-later

// The answer to a scan, byte for byte as swift-protobuf encodes the message, but without making the
// message: a page of a thousand keys would be thousands of small objects. What the fields are stands in
// aspen_client.proto.

/// One entry of a page, where it lies.
package struct ScanPageEntry {
    package var key: UnsafeRawBufferPointer
    package var value: UnsafeRawBufferPointer
    package var createRevision: UInt64
    package var modRevision: UInt64
    package var version: UInt64
    package var lease: UInt64

    package init(
        key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer, createRevision: UInt64,
        modRevision: UInt64, version: UInt64, lease: UInt64
    ) {
        self.key = key
        self.value = value
        self.createRevision = createRevision
        self.modRevision = modRevision
        self.version = version
        self.lease = lease
    }

    private enum Tag {
        static let entry: UInt8 = 1 << 3 | 2
        static let key: UInt8 = 1 << 3 | 2
        static let value: UInt8 = 2 << 3 | 2
        static let createRevision: UInt8 = 3 << 3
        static let modRevision: UInt8 = 4 << 3
        static let version: UInt8 = 5 << 3
        static let lease: UInt8 = 6 << 3
    }

    /// Of the fields, which leave out what is zero or empty.
    private var contentBytes: Int {
        Varint.fieldBytes(key.count) + Varint.fieldBytes(value.count)
            + Varint.fieldBytes(createRevision) + Varint.fieldBytes(modRevision)
            + Varint.fieldBytes(version) + Varint.fieldBytes(lease)
    }

    /// Room that `write` never exceeds.
    package var bytesMax: Int { key.count + value.count + 80 }

    /// Where the key begins in what `write` writes.
    package var keyOffset: Int {
        2 + Varint.byteCount(UInt64(contentBytes)) + Varint.byteCount(UInt64(key.count))
    }

    /// Writes `ScanKeysResponse.entries` with this entry.
    /// - Parameter room: of `bytesMax` bytes or more.
    /// - Returns: how many bytes it took.
    package func write(to room: UnsafeMutableRawBufferPointer) -> Int {
        precondition(room.count >= bytesMax, "there is room for an entry")
        guard var place = room.baseAddress else { return 0 }
        let start = place
        Varint.store(Tag.entry, &place)
        Varint.write(UInt64(contentBytes), &place)
        Varint.write(Tag.key, key, &place)
        Varint.write(Tag.value, value, &place)
        Varint.write(Tag.createRevision, createRevision, &place)
        Varint.write(Tag.modRevision, modRevision, &place)
        Varint.write(Tag.version, version, &place)
        Varint.write(Tag.lease, lease, &place)
        return place - start
    }
}

/// What stands around the entries of a page.
package enum ScanPageFrame {
    /// `ClientResponse.scan_keys`, before `bodyBytes` of its content.
    package static func head(bodyBytes: Int) -> [UInt8] {
        bytes { place in
            Varint.store(UInt8(truncatingIfNeeded: 21 << 3 | 2) | 0x80, &place)
            Varint.store(1, &place)
            Varint.write(UInt64(bodyBytes), &place)
        }
    }

    /// `ScanKeysResponse` after its entries.
    package static func tail(continuation: [UInt8], revision: UInt64) -> [UInt8] {
        bytes(room: continuation.count + 32) { place in
            continuation.withUnsafeBytes { Varint.write(2 << 3 | 2, $0, &place) }
            Varint.write(3 << 3, revision, &place)
        }
    }

    private static func bytes(
        room: Int = 32, _ body: (inout UnsafeMutableRawPointer) -> Void
    ) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: room) { buffer, count in
            guard let start = buffer.baseAddress.map({ UnsafeMutableRawPointer($0) }) else {
                return
            }
            var place = start
            body(&place)
            count = place - start
        }
    }
}

/// Writing to memory that is known to be enough.
private enum Varint {
    @inline(__always)
    static func byteCount(_ value: UInt64) -> Int { (70 - (value | 1).leadingZeroBitCount) / 7 }

    /// With a tag of one byte.
    @inline(__always)
    static func fieldBytes(_ value: UInt64) -> Int { value == 0 ? 0 : 1 + byteCount(value) }

    @inline(__always)
    static func fieldBytes(_ count: Int) -> Int {
        count == 0 ? 0 : 1 + byteCount(UInt64(count)) + count
    }

    @inline(__always)
    static func store(_ byte: UInt8, _ place: inout UnsafeMutableRawPointer) {
        place.storeBytes(of: byte, as: UInt8.self)
        place += 1
    }

    @inline(__always)
    static func write(_ value: UInt64, _ place: inout UnsafeMutableRawPointer) {
        var rest = value
        while rest >= 0x80 {
            store(UInt8(truncatingIfNeeded: rest) | 0x80, &place)
            rest >>= 7
        }
        store(UInt8(truncatingIfNeeded: rest), &place)
    }

    @inline(__always)
    static func write(_ tag: UInt8, _ value: UInt64, _ place: inout UnsafeMutableRawPointer) {
        guard value != 0 else { return }
        store(tag, &place)
        write(value, &place)
    }

    @inline(__always)
    static func write(
        _ tag: UInt8, _ bytes: UnsafeRawBufferPointer, _ place: inout UnsafeMutableRawPointer
    ) {
        guard let start = bytes.baseAddress, !bytes.isEmpty else { return }
        store(tag, &place)
        write(UInt64(bytes.count), &place)
        place.copyMemory(from: start, byteCount: bytes.count)
        place += bytes.count
    }
}
