// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import QUIC
import Testing

/// Project Wycheproof's tests of the verification of Ed25519 signatures, all of them: what is wrong with
/// a signature in ways that implementations are known to miss.
@Suite struct WycheproofTests {
    struct Vector: Sendable {
        var number: Int, result: String, flag: String
        var key: [UInt8], message: [UInt8], signature: [UInt8]
    }

    /// Empty if the file cannot be read.
    static let vectors: [Vector] = {
        let folder = #filePath.split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" }
        guard let file = fopen("\(folder)/Vectors/ed25519.txt", "r") else { return [] }
        defer { fclose(file) }
        var content: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while case let count = fread(&buffer, 1, buffer.count, file), count > 0 {
            content += buffer.prefix(count)
        }
        return String(decoding: content, as: UTF8.self).split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ").map(String.init)
            guard words.count == 6, let number = Int(words[0]) else { return nil }
            let bytes = words[3...].map { $0 == "-" ? [] : Ed25519Tests.bytes($0) }
            return Vector(
                number: number, result: words[1], flag: words[2], key: bytes[0], message: bytes[1],
                signature: bytes[2])
        }
    }()

    @Test func theyAreAllThere() {
        #expect(Self.vectors.map(\.number) == Array(1...210))
        #expect(Self.vectors.count { $0.result == "valid" } == 117)
        #expect(Self.vectors.count { $0.result == "invalid" } == 64)
    }

    @Test func eachIsJudgedAsPublished() throws {
        for vector in Self.vectors {
            let key = try #require(EndpointID(bytes: vector.key))
            let holds = NodeKey.verify(vector.signature, of: vector.message, by: key)
            switch (vector.result, vector.flag) {
            // Nobody has chosen such a key: it holds for signatures that nobody has made.
            case ("acceptable", "SmallOrderPublicKey"): #expect(!holds, "\(vector.number)")
            // Made on purpose, by whoever has the private key; the published equation decides.
            case ("acceptable", _): #expect(holds, "\(vector.number)")
            case ("valid", _): #expect(holds, "\(vector.number)")
            case ("invalid", _): #expect(!holds, "\(vector.number)")
            default: Issue.record("\(vector.number): \(vector.result)")
            }
        }
    }

    /// RFC 8032 section 7.1, TEST 1024: its text is here as number 83.
    @Test func theLongMessageOfTheStandardIsSignedAsThere() throws {
        let seed = "f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5"
        let vector = try #require(Self.vectors.first { $0.number == 83 })
        let key = try #require(NodeKey(seed: Ed25519Tests.bytes(seed)))
        #expect(vector.message.count == 1023)
        #expect(key.endpoint.bytes == vector.key)
        #expect(key.sign(vector.message) == vector.signature)
    }
}
