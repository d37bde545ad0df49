// SPDX-License-Identifier: GPL-2.0-or-later

import FoundationEssentials
import SwiftProtobuf

extension Aspen_Client_V1_ClientResponse {
    /// As swift-protobuf reads it, or with its error. A page of keys in the usual encoding is read here,
    /// without a copy of each key and value: they are slices of `bytes`, and keep all of it.
    package init(answer bytes: Data) throws {
        if let page = ScanPageReader.page(bytes) {
            self.init()
            scanKeys = page
        } else {
            try self.init(serializedBytes: bytes)
        }
    }
}

/// Reads pages that are encoded as everybody does it. Of anything else, right or wrong, it says nil:
/// fields that are unknown or have another type, a page in two pieces, numbers longer than they need be.
private struct ScanPageReader {
    private let bytes: UnsafeRawBufferPointer
    private var place: Int
    private let end: Int

    private init(_ bytes: UnsafeRawBufferPointer, _ range: Range<Int>) {
        self.bytes = bytes
        place = range.lowerBound
        end = range.upperBound
    }

    static func page(_ data: Data) -> Aspen_Client_V1_ScanKeysResponse? {
        data.withUnsafeBytes { bytes in
            var outer = ScanPageReader(bytes, 0..<bytes.count)
            // `scan_keys`, and nothing else.
            guard outer.byte() == 21 << 3 & 0x7f | 2 | 0x80, outer.byte() == 1,
                let body = outer.range(), outer.isAtEnd
            else { return nil }
            var reader = ScanPageReader(bytes, body)
            return reader.page(data)
        }
    }

    private mutating func page(_ data: Data) -> Aspen_Client_V1_ScanKeysResponse? {
        var page = Aspen_Client_V1_ScanKeysResponse()
        while !isAtEnd {
            switch byte() {
            case 1 << 3 | 2:
                guard let range = range() else { return nil }
                if page.entries.isEmpty {
                    // Mostly all of a page are about as long.
                    page.entries.reserveCapacity(min((end - place) / (range.count + 2) + 1, 1024))
                }
                var reader = ScanPageReader(bytes, range)
                page.entries.append(Aspen_Client_V1_KeyValue())
                guard reader.read(&page.entries[page.entries.count - 1], of: data) else {
                    return nil
                }
            case 2 << 3 | 2:
                guard let range = range() else { return nil }
                page.continuation = Self.slice(data, range)
            case 3 << 3:
                guard let value = number() else { return nil }
                page.revision = value
            case 4 << 3:
                guard let value = number() else { return nil }
                page.count = value
            default: return nil
            }
        }
        return page
    }

    private mutating func read(
        _ entry: inout Aspen_Client_V1_KeyValue, of data: Data
    ) -> Bool {
        while !isAtEnd {
            switch byte() {
            case 1 << 3 | 2:
                guard let range = range() else { return false }
                entry.key = Self.slice(data, range)
            case 2 << 3 | 2:
                guard let range = range() else { return false }
                entry.value = Self.slice(data, range)
            case 3 << 3:
                guard let value = number() else { return false }
                entry.createRevision = value
            case 4 << 3:
                guard let value = number() else { return false }
                entry.modRevision = value
            case 5 << 3:
                guard let value = number() else { return false }
                entry.version = value
            case 6 << 3:
                guard let value = number() else { return false }
                entry.lease = value
            default: return false
            }
        }
        return true
    }

    private static func slice(_ data: Data, _ range: Range<Int>) -> Data {
        let start = data.startIndex
        return data[start + range.lowerBound..<start + range.upperBound]
    }

    private var isAtEnd: Bool { place == end }

    /// Nil at the end.
    private mutating func byte() -> UInt8? {
        guard place < end else { return nil }
        defer { place += 1 }
        return bytes[place]
    }

    /// In as few bytes as it takes, and nine at most.
    private mutating func number() -> UInt64? {
        guard let first = byte() else { return nil }
        guard first >= 0x80 else { return UInt64(first) }
        var value = UInt64(first & 0x7f)
        var shift: UInt64 = 7
        while shift < 63, let next = byte() {
            value |= UInt64(next & 0x7f) << shift
            if next < 0x80 { return next == 0 ? nil : value }
            shift += 7
        }
        return nil
    }

    /// Of as many bytes as a number before them says.
    private mutating func range() -> Range<Int>? {
        guard let count = number(), count <= UInt64(end - place) else { return nil }
        defer { place += Int(count) }
        return place..<place + Int(count)
    }
}
