// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import Testing

@Suite struct CodecTests {
    @Test func zBase32Vectors() {
        // The specification; the draft of OpenPGP's Web Key Directory ("joe.doe"); iroh's tests.
        let published: [([UInt8], String)] = [
            ([], ""), ([0xf0, 0xbf, 0xc7], "6n9hq"), ([0xd4, 0x7a, 0x04], "4t7ye"),
            (
                [
                    0xa8, 0x3e, 0xe9, 0x4b, 0xe8, 0x9c, 0x48, 0xa1, 0x1e, 0xd2, 0x5a, 0xb4, 0x4c,
                    0xfd, 0xc8, 0x48, 0x83, 0x3c, 0x8b, 0x6e,
                ], "iy9q119eutrkn8s1mk4r39qejnbu3n5q"
            ),
        ]
        for (bytes, text) in published {
            #expect(ZBase32.encode(bytes) == text)
            #expect(ZBase32.decode(text) == bytes)
            #expect(ZBase32.decode(text.uppercased()) == bytes)
        }
        for count in 0..<40 {
            let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 * 37) }
            #expect(ZBase32.decode(ZBase32.encode(bytes)) == bytes)
        }
        for text in ["b", "yb", "0y", "2y", "yv", "yé"] { #expect(ZBase32.decode(text) == nil) }
    }

    @Test func crc32cVectors() {
        // RFC 3720 appendix B.4, and the check value of the catalogue of parametrised CRCs.
        #expect(CRC32C.of([UInt8](repeating: 0, count: 32)) == 0x8a91_36aa)
        #expect(CRC32C.of([UInt8](repeating: 0xff, count: 32)) == 0x62a8_ab43)
        #expect(CRC32C.of((0..<32).map { UInt8($0) }) == 0x46dd_794e)
        #expect(CRC32C.of(Array("123456789".utf8)) == 0xe306_9283)
        #expect(CRC32C.of([]) == 0)
        // However many bytes are taken at a time.
        let bytes = (0..<100).map { UInt8(truncatingIfNeeded: $0 * 37 ^ $0 >> 2) }
        for start in 0..<9 {
            for end in start...bytes.count {
                var single = CRC32C()
                for byte in bytes[start..<end] { single.update([byte]) }
                #expect(CRC32C.of(bytes[start..<end]) == single.value)
            }
        }
    }

    @Test func crc32cIsTheSameInPieces() {
        var random = RandomSource(seed: 1)
        for _ in 0..<200 {
            let bytes = random.bytes(random.uniform(0..<300))
            let cut = random.uniform(0..<bytes.count + 1)
            var crc = CRC32C()
            crc.update(bytes[..<cut])
            var rest = CRC32C(seed: crc.value)
            rest.update(bytes[cut...])
            #expect(rest.value == CRC32C.of(bytes))
        }
    }

    @Test func base32VectorsOfRFC4648() {
        let vectors = [
            ("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"), ("foobar", "mzxw6ytboi"),
        ]
        for (plain, text) in vectors {
            #expect(Base32.encode(Array(plain.utf8)) == text)
            #expect(Base32.decode(text) == Array(plain.utf8))
            #expect(Base32.decode(text.uppercased()) == Array(plain.utf8))
        }
    }

    @Test func base32RoundTripsAndHasOneTextPerValue() {
        var random = RandomSource(seed: 2)
        for _ in 0..<500 {
            let bytes = random.bytes(random.uniform(0..<80))
            #expect(Base32.decode(Base32.encode(bytes)) == bytes)
        }
        #expect(Base32.decode("mz") == nil)  // non-zero bits at the end
        #expect(Base32.decode("a") == nil)
        #expect(Base32.decode("m1") == nil)
        #expect(Base32.decode("mé") == nil)
    }

    @Test func writerAndReaderRoundTrip() throws {
        var random = RandomSource(seed: 3)
        for _ in 0..<200 {
            let (a, b, c) = (
                random.next(), UInt16(truncatingIfNeeded: random.next()), random.next()
            )
            let blob = random.bytes(random.uniform(0..<100))
            var writer = ByteWriter()
            writer.integer(a)
            writer.integer(b)
            writer.flag(c & 1 == 1)
            writer.blob(blob)
            writer.string("aé✓")
            var reader = ByteReader(writer.bytes)
            #expect(try reader.integer("a", as: UInt64.self) == a)
            #expect(try reader.integer("b", as: UInt16.self) == b)
            #expect(try reader.flag("c") == (c & 1 == 1))
            #expect(try reader.blob("blob", max: 100) == blob)
            #expect(try reader.string("text", max: 100) == "aé✓")
            try reader.end()
        }
    }

    @Test func readerRefusesWhatItCannotTrust() {
        var short = ByteReader([1, 2, 3])
        #expect(throws: DecodeError.truncated(field: "n")) {
            try short.integer("n", as: UInt32.self)
        }
        var flag = ByteReader([2])
        #expect(throws: DecodeError.unknown(field: "f")) { try flag.flag("f") }
        var long = ByteReader([0xff, 0xff, 0xff, 0xff])
        #expect(throws: DecodeError.outOfRange(field: "b")) { try long.blob("b", max: 1000) }
        var hungry = ByteReader([0xff, 0, 0, 0, 1])
        #expect(throws: DecodeError.truncated(field: "c")) {
            try hungry.count("c", max: 1000, elementBytesMin: 4)
        }
        var text = ByteReader([1, 0, 0, 0, 0xff])
        #expect(throws: DecodeError.malformed(field: "s")) { try text.string("s", max: 10) }
        let rest = ByteReader([0])
        #expect(throws: DecodeError.trailing(count: 1)) { try rest.end() }
    }

    @Test func endpointIDsAreTextAndBytes() throws {
        var random = RandomSource(seed: 4)
        for _ in 0..<100 {
            let bytes = random.bytes(32)
            let id = try #require(EndpointID(bytes: bytes))
            #expect(id.bytes == bytes)
            #expect(EndpointID(id.description) == id)
            #expect(id.description.count == 52)
        }
        #expect(EndpointID(bytes: [1, 2, 3]) == nil)
        #expect(EndpointID("notlongenough") == nil)
    }
}

@Suite struct MachineTests {
    @Test func randomSourceIsUniformAndRepeatable() {
        var first = RandomSource(seed: 7)
        var second = RandomSource(seed: 7)
        for _ in 0..<100 { #expect(first.next() == second.next()) }
        var counts = [Int](repeating: 0, count: 10)
        for _ in 0..<10_000 { counts[first.uniform(0..<10)] += 1 }
        #expect(counts.allSatisfy { (850...1150).contains($0) })
    }

    @Test func instantsSaturate() {
        let start = MonotonicInstant(nanoseconds: 10)
        #expect(start + .nanoseconds(5) - start == .nanoseconds(5))
        #expect((start + .nanoseconds(-20)).nanoseconds == 0)
        #expect((MonotonicInstant(nanoseconds: .max) + .seconds(1)).nanoseconds == .max)
        #expect(MonotonicInstant.zero - start == .nanoseconds(-10))
        #expect(Duration.milliseconds(1500).nanoseconds == 1_500_000_000)
    }
}

extension RandomSource {
    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
    }
}
