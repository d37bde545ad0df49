// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import Testing

/// Against the published test vectors: inputs are the bytes 0 to 250, over and over.
@Suite struct BLAKE3Tests {
    struct Vector {
        let byteCount: Int
        let hash: String
        let derivedKey: String
    }

    static let vectors = [
        Vector(
            byteCount: 0,
            hash: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            derivedKey: "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d"),
        Vector(
            byteCount: 1,
            hash: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
            derivedKey: "b3e2e340a117a499c6cf2398a19ee0d29cca2bb7404c73063382693bf66cb06c"),
        Vector(
            byteCount: 1023,
            hash: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
            derivedKey: "74a16c1c3d44368a86e1ca6df64be6a2f64cce8f09220787450722d85725dea5"),
        Vector(
            byteCount: 1024,
            hash: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
            derivedKey: "7356cd7720d5b66b6d0697eb3177d9f8d73a4a5c5e968896eb6a689684302706"),
        Vector(
            byteCount: 1025,
            hash: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
            derivedKey: "effaa245f065fbf82ac186839a249707c3bddf6d3fdda22d1b95a3c970379bcb"),
        Vector(
            byteCount: 2049,
            hash: "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030",
            derivedKey: "2ea477c5515cc3dd606512ee72bb3e0e758cfae7232826f35fb98ca1bcbdf273"),
        Vector(
            byteCount: 3073,
            hash: "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3",
            derivedKey: "72613c9ec9ff7e40f8f5c173784c532ad852e827dba2bf85b2ab4b76f7079081"),
        Vector(
            byteCount: 5121,
            hash: "628bd2cb2004694adaab7bbd778a25df25c47b9d4155a55f8fbd79f2fe154cff",
            derivedKey: "b07f01e518e702f7ccb44a267e9e112d403a7b3f4883a47ffbed4b48339b3c34"),
        Vector(
            byteCount: 7169,
            hash: "a003fc7a51754a9b3c7fae0367ab3d782dccf28855a03d435f8cfe74605e7817",
            derivedKey: "554b0a5efea9ef183f2f9b931b7497995d9eb26f5c5c6dad2b97d62fc5ac31d9"),
    ]

    @Test(arguments: vectors.indices)
    func theVectorsHold(_ place: Int) {
        let vector = Self.vectors[place]
        let input = (0..<vector.byteCount).map { UInt8($0 % 251) }
        #expect(Self.text(BLAKE3.hash(input)) == vector.hash)
        let key = BLAKE3.deriveKey(
            context: "BLAKE3 2019-12-27 16:29:52 test vectors context", material: input)
        #expect(Self.text(key) == vector.derivedKey)
    }

    private static func text(_ bytes: [UInt8]) -> String {
        let digits = Array("0123456789abcdef")
        return String(bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
    }
}
