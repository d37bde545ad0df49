// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Testing
import TokenCore

@Suite struct CapabilityTests {
    @Test(arguments: [
        "cluster:read", "cluster:admin", "kv:read:*", "kv:write:*", "kv:read:app/*",
        "kv:write:app/x", "kv:read:%00%FF*", "kv:write:a%2Ab%25", "kv:read:%2A", "kv:read:a%20b",
    ])
    func textComesBackUnchanged(_ text: String) throws {
        #expect(try Capability(parsing: text).description == text)
    }

    @Test(arguments: [
        "", "kv", "kv:read", "kv:read:", "kv:read:a*b", "kv:read:**", "kv:read:%", "kv:read:%4",
        "kv:read:%zz", "KV:read:a", "cluster:*", "blob:read:x", "forge:all", " cluster:read",
    ])
    func whatIsNoCapabilityIsRefused(_ text: String) {
        #expect(throws: AspenError.self) { try Capability(parsing: text) }
    }

    @Test func keysAreBytes() throws {
        #expect(capability("kv:read:ä") == capability("kv:read:%C3%A4"))
        #expect(capability("kv:read:ä").description == "kv:read:%C3%A4")
        #expect(KeyPattern.exactly([UInt8](repeating: 1, count: 1025)) == nil)
    }

    @Test func writingIsNotReadingAndKeysAreNotTheCluster() {
        let rights = CapabilitySet(capabilities("kv:write:a*", "kv:read:b"))
        #expect(rights.allows(.write, key: Array("ab".utf8)))
        #expect(!rights.allows(.read, key: Array("ab".utf8)))
        #expect(rights.allows(.read, key: Array("b".utf8)))
        #expect(!rights.allows(.read, key: Array("bb".utf8)))
        #expect(!rights.includes(.clusterRead) && !rights.includes(.clusterAdmin))
        #expect(CapabilitySet([.clusterAdmin]).includes(.clusterRead))
        #expect(!CapabilitySet([.clusterAdmin]).allowsAny(.read))
        #expect(!CapabilitySet([.clusterRead]).includes(.clusterAdmin))
    }

    @Test func severalCapabilitiesCoverARangeTogether() {
        let rights = CapabilitySet(capabilities("kv:read:a*", "kv:read:b*", "kv:read:d*"))
        func allows(_ from: String, _ to: String?) -> Bool {
            rights.allows(.read, from: Array(from.utf8), to: to.map { Array($0.utf8) })
        }
        #expect(allows("a", "b") && allows("a", "c") && allows("ab", "ac") && allows("d", "e"))
        #expect(!allows("a", "c\0") && !allows("a", "e") && !allows("a", nil) && !allows("", "b"))
        #expect(CapabilitySet(capabilities("kv:read:*")).allows(.read, from: [], to: nil))
        let last = CapabilitySet(capabilities("kv:read:%FF*"))
        #expect(
            last.allows(.read, from: [255], to: nil) && !last.allows(.read, from: [254], to: nil))
    }

    /// Against a model that asks for each key of a small world.
    @Test func rangesAgreeWithKeysOneByOne() {
        var random = RandomSource(seed: 7)
        let letters: [UInt8] = [0, 1, 254, 255]
        // Every key of up to three letters, and, as the space between is never empty, neighbours.
        var world: [[UInt8]] = [[]]
        for first in letters {
            world.append([first])
            for second in letters {
                world.append([first, second])
                for third in letters { world.append([first, second, third]) }
            }
        }
        world.sort { $0.lexicographicallyPrecedes($1) }
        func word(_ random: inout RandomSource) -> [UInt8] {
            (0..<random.uniform(0..<3)).map { _ in letters[random.uniform(0..<4)] }
        }
        var allowed = 0
        for _ in 0..<3000 {
            let patterns = (0..<random.uniform(1..<6)).compactMap { _ in
                KeyPattern.all(beginningWith: word(&random))
            }
            let rights = CapabilitySet(patterns.map { .readKeys($0) })
            let from = word(&random)
            let to = random.chance(1, in: 4) ? nil : word(&random)
            let inside = world.filter { key in
                !key.lexicographicallyPrecedes(from)
                    && (to.map { key.lexicographicallyPrecedes($0) } ?? true)
            }
            guard !inside.isEmpty else { continue }
            let each = inside.allSatisfy { rights.allows(.read, key: $0) }
            let whole = rights.allows(.read, from: from, to: to)
            if whole {
                allowed += 1
                #expect(each, "a range was allowed with a forbidden key: \(patterns)")
            }
            // The world has gaps (letters 2 to 253): not all that is allowed here is in truth.
            if !each { #expect(!whole) }
        }
        #expect(allowed > 100)
    }
}
