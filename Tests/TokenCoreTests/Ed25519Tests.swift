// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import QUIC
import Testing

/// RFC 8032 section 7.1: the signatures that tokens rest on are those of the standard.
@Suite struct Ed25519Tests {
    struct Vector: Sendable {
        var seed: String, key: String, message: String, signature: String
    }

    static let vectors = [
        Vector(
            seed: "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            key: "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", message: "",
            signature: "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
                + "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
        Vector(
            seed: "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            key: "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            message: "72",
            signature: "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
                + "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
        Vector(
            seed: "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            key: "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            message: "af82",
            signature: "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
                + "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
        // SHA(abc): of 64 bytes.
        Vector(
            seed: "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
            key: "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
            message: "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
                + "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            signature: "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
                + "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"),
    ]

    static func bytes(_ hexadecimal: String) -> [UInt8] {
        let digits = Array(hexadecimal.utf8).map { character -> UInt8 in
            character < 58 ? character - 48 : character - 87
        }
        return stride(from: 0, to: digits.count - 1, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }

    @Test(arguments: vectors.indices)
    func signaturesAreThoseOfTheStandard(_ index: Int) throws {
        let vector = Self.vectors[index]
        let key = try #require(NodeKey(seed: Self.bytes(vector.seed)))
        let message = Self.bytes(vector.message)
        let signature = Self.bytes(vector.signature)
        #expect(key.endpoint.bytes == Self.bytes(vector.key))
        #expect(key.sign(message) == signature)
        #expect(NodeKey.verify(signature, of: message, by: key.endpoint))
        #expect(!NodeKey.verify(signature, of: message + [0], by: key.endpoint))
        for place in signature.indices {
            var wrong = signature
            wrong[place] ^= 1
            #expect(!NodeKey.verify(wrong, of: message, by: key.endpoint))
        }
    }

    /// A signature is one text: S beyond the group's order, and keys of small order, are refused
    /// (as in Wycheproof's tests).
    @Test func malleatedSignaturesAndWeakKeysAreRefused() throws {
        let key = try #require(NodeKey(seed: [UInt8](repeating: 5, count: 32)))
        let message = Array("hello".utf8)
        var signature = key.sign(message)
        // S + L, little-endian: the group's order is 2^252 + 27742317777372353535851937790883648493.
        let order = Self.bytes("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
        var carry = 0
        for place in 0..<32 {
            let sum = Int(signature[32 + place]) + Int(order[place]) + carry
            signature[32 + place] = UInt8(sum & 255)
            carry = sum >> 8
        }
        #expect(!NodeKey.verify(signature, of: message, by: key.endpoint))
        let zero = try #require(EndpointID(bytes: [UInt8](repeating: 0, count: 32)))
        let one = try #require(EndpointID(bytes: [1] + [UInt8](repeating: 0, count: 31)))
        for weak in [zero, one] {
            #expect(!NodeKey.verify([UInt8](repeating: 0, count: 64), of: message, by: weak))
            let trivial = [1] + [UInt8](repeating: 0, count: 63)
            #expect(!NodeKey.verify(trivial, of: message, by: weak))
        }
    }
}
