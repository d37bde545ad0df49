// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import QUIC
import Testing
import TokenCore

@Suite struct TokenChainTests {
    /// The example of Tokens.md: whoever writes another implementation starts here.
    @Test func theFixedVectorHolds() throws {
        let chain = try sampleChain()
        #expect(chain.text() == Self.vector)
        let parsed = try TokenChain(parsing: Self.vector)
        #expect(parsed == chain)
        #expect(try judge(parsed).rights.capabilities == chain.links[1].capabilities)
    }

    static let vector =
        "aspentokenifzvi2ybrkeohxlubhyzl7ks3mwtzos5olfgocn7dwkbeg7toseadnapn5ofqaaaaairca"
        + "aaaaaaaaaaaaaaaaaaaaaicolxb2uh2f27k2rvizwdjr7mzs4nrki3j3rxujo7md23r7e3hfhiamaaaa"
        + "aaaaaiqeyaaaaaaaaaaiaaaaadaecaaaaamfyhalyeaecaaaaamfyhal2vkyqmrip4gsef6usxbvi6y6"
        + "zr36oojgo6lswl6qmja3h5cx4ndd4k2rrhlik7ccekzzfzfdfc4xov5jmpxcbacgruyu255ar56rfqg2"
        + "aaaaaceiqaaaaaaaaaaaaaaaaaaaaab3kjfddcruocy3vosazysbmzkyjjlettuxdd7e3dnqkgcswion"
        + "6r3qcqaaaaaaaabiapaaaaaaaaaabqaaaaamaqiaaaabqxa4bpaqaakaaaabqxa4bppacacciaaaagc4"
        + "dqf5vg6yttf5aizhuqyalumpkljk5sjwtk2aqvfmbbmrqwetimmggsppt7mrik3c6g4ypkddflbn5bu2"
        + "3qegqhljzmasqfg3ejloy4rn4ywla5ykiamlkct5i"

    @Test func theRightChainGrantsWhatItsLastLinkSays() throws {
        let grant = try judge(try sampleChain())
        #expect(grant.root == key(1).endpoint && grant.client == key(3).endpoint)
        #expect(grant.expires == 4000)
        #expect(grant.ids == [TokenID(0x1111), TokenID(0x2222)])
        #expect(grant.rights.allows(.read, key: Array("app/anything".utf8)))
        #expect(grant.rights.allows(.write, key: Array("app/jobs/1".utf8)))
        #expect(!grant.rights.allows(.write, key: Array("app/y".utf8)))
    }

    @Test func eachThingThatCanBeWrongHasItsName() throws {
        let chain = try sampleChain()
        func refusal(
            client: EndpointID = key(3).endpoint, now: UInt64 = 2000,
            roots: Set<EndpointID> = [key(1).endpoint], revoked: Set<TokenID> = []
        ) -> TokenRefusal? {
            do {
                _ = try judge(chain, client: client, now: now, roots: roots, revoked: revoked)
                return nil
            } catch { return error }
        }
        #expect(refusal() == nil)
        #expect(refusal(roots: [key(9).endpoint]) == .untrustedRoot(key(1).endpoint))
        #expect(refusal(roots: []) == .untrustedRoot(key(1).endpoint))
        #expect(refusal(client: key(2).endpoint) == .wrongAudience(key(3).endpoint))
        #expect(refusal(now: 4000) == .expired(4000))
        #expect(refusal(now: 3999) == nil)
        #expect(refusal(now: .max) == .expired(4000))
        #expect(refusal(now: 1500 - 31) == .notYetValid(notBefore: 1500))
        #expect(refusal(now: 1500 - 30) == nil)
        #expect(refusal(revoked: [TokenID(0x1111)]) == .revoked(TokenID(0x1111)))
        #expect(refusal(revoked: [TokenID(0x2222)]) == .revoked(TokenID(0x2222)))
        #expect(refusal(revoked: [TokenID(0x3333)]) == nil)
    }

    /// What the library refuses to make, made by hand: signed by the right key, and too wide.
    @Test(arguments: [
        ("kv:read:*", UInt64(1500), UInt64(4000)), ("kv:write:app/*", 1500, 4000),
        ("cluster:read", 1500, 4000), ("kv:read:ap*", 1500, 4000),
        ("kv:read:app/*", 999, 4000), ("kv:read:app/*", 1500, 5001),
    ])
    func aChildThatWidensIsRefused(_ wanted: String, _ from: UInt64, _ until: UInt64) throws {
        let parent = try TokenChain(
            root: key(1).endpoint,
            link(1, to: key(2).endpoint, capabilities("kv:read:app/*", "kv:write:app/x")),
            sign: key(1).sign)
        let child = link(2, to: key(3).endpoint, from: from, until: until, [capability(wanted)])
        #expect(throws: AspenError.self) { try parent.delegating(child, sign: key(2).sign) }
        let forged = try Forge.append(child, to: parent, by: key(2))
        #expect(throws: TokenRefusal.self) { try judge(forged) }
        do {
            _ = try judge(forged)
        } catch {
            switch error {
            case .widened(link: 2, capability(wanted)), .outlivesParent(link: 2): break
            default: Issue.record("refused for another reason: \(error)")
            }
        }
    }

    /// Cutting a link off gives a token that is somebody else's.
    @Test func aTruncatedChainIsTheParentsToken() throws {
        let chain = try sampleChain()
        let parent = try TokenChain(
            root: key(1).endpoint, chain.links[0], sign: key(1).sign)
        #expect(chain.encoded().starts(with: parent.encoded()))
        #expect(throws: TokenRefusal.wrongAudience(key(2).endpoint)) { try judge(parent) }
    }

    @Test func aLinkCannotMoveToAnotherChain() throws {
        let chain = try sampleChain()
        let other = try TokenChain(
            root: key(1).endpoint,
            link(0x9999, to: key(2).endpoint, capabilities("kv:read:app/*", "kv:write:app/*")),
            sign: key(1).sign)
        let tail = chain.encoded().dropFirst(
            try TokenChain(root: key(1).endpoint, chain.links[0], sign: key(1).sign).encoded().count
        )
        let moved = try TokenChain(decoding: other.encoded() + tail)
        #expect(throws: TokenRefusal.badSignature(link: 2)) { try judge(moved) }
    }

    /// Every bit flipped, every length: none of it is the token any more.
    @Test func everyMutationIsRefused() throws {
        let bytes = try sampleChain().encoded()
        var refused = 0
        for place in bytes.indices {
            for bit in 0..<8 {
                var mutated = bytes
                mutated[place] ^= 1 << UInt8(bit)
                guard let chain = try? TokenChain(decoding: mutated) else {
                    refused += 1
                    continue
                }
                #expect(chain.encoded() == mutated, "one encoding each")
                #expect(throws: TokenRefusal.self, "bit \(bit) of byte \(place)") {
                    try judge(chain)
                }
                refused += 1
            }
        }
        #expect(refused == bytes.count * 8)
        for length in bytes.indices {
            guard let chain = try? TokenChain(decoding: Array(bytes.prefix(length))) else {
                continue
            }
            #expect(throws: TokenRefusal.self) { try judge(chain) }
        }
        #expect(throws: DecodeError.self) { try TokenChain(decoding: bytes + [0]) }
    }

    @Test func everyMutationOfTheTextIsRefused() throws {
        let text = Array(try sampleChain().text().utf8)
        for place in text.indices {
            var mutated = text
            mutated[place] =
                mutated[place] == UInt8(ascii: "a") ? UInt8(ascii: "b") : UInt8(ascii: "a")
            let word = String(decoding: mutated, as: UTF8.self)
            #expect(throws: AspenError.self) { try TokenChain(parsing: word) }
        }
        do {
            _ = try TokenChain(parsing: String(decoding: text.dropLast(), as: UTF8.self))
            Issue.record("a cut-off token was taken")
        } catch {
            #expect(!error.message.contains("aspentokenif"), "no part of a token in an error")
        }
    }

    /// Random chains: narrowed at random, they hold, and allow at most what each link before allows.
    @Test func delegationOnlyNarrows() throws {
        var random = RandomSource(seed: 11)
        let pool = [
            "kv:read:*", "kv:read:a*", "kv:read:ab*", "kv:read:ab", "kv:write:*", "kv:write:a*",
            "kv:write:abc", "cluster:read", "cluster:admin",
        ].map(capability)
        let samples = ["", "a", "ab", "abc", "b"].map { Array($0.utf8) }
        var held = 0
        var refused = 0
        for _ in 0..<400 {
            var chain: TokenChain?
            var links: [TokenLink] = []
            for depth in 0..<random.uniform(2..<6) {
                let wanted = (0..<random.uniform(1..<4)).map { _ in
                    pool[random.uniform(0..<pool.count)]
                }
                let next = link(
                    UInt128(depth), to: key(UInt8(depth + 2)).endpoint,
                    from: 1000 + random.uniform(0..<5), until: 5000 - random.uniform(0..<5), wanted)
                let signer = key(UInt8(depth + 1))
                guard let parent = chain else {
                    chain = try TokenChain(root: signer.endpoint, next, sign: signer.sign)
                    links = [next]
                    continue
                }
                if let longer = try? parent.delegating(next, sign: signer.sign) {
                    chain = longer
                    links.append(next)
                } else {
                    refused += 1
                    #expect(throws: TokenRefusal.self) {
                        try judge(
                            try Forge.append(next, to: parent, by: signer), client: next.audience)
                    }
                    break
                }
            }
            guard let chain else { continue }
            let grant = try judge(chain, client: chain.audience)
            held += 1
            for earlier in links.map({ CapabilitySet($0.capabilities) }) {
                for sample in samples where grant.rights.allows(.read, key: sample) {
                    #expect(earlier.allows(.read, key: sample))
                }
                for sample in samples where grant.rights.allows(.write, key: sample) {
                    #expect(earlier.allows(.write, key: sample))
                }
                if grant.rights.includes(.clusterRead) { #expect(earlier.includes(.clusterRead)) }
                if grant.rights.includes(.clusterAdmin) { #expect(earlier.includes(.clusterAdmin)) }
            }
        }
        #expect(held == 400 && refused > 100, "\(held) \(refused)")
    }

    @Test func limitsAreKept() throws {
        var chain = try TokenChain(
            root: key(1).endpoint, link(1, to: key(2).endpoint, capabilities("kv:read:a")),
            sign: key(1).sign)
        for number in UInt8(2)...8 {
            chain = try chain.delegating(
                link(UInt128(number), to: key(number + 1).endpoint, capabilities("kv:read:a")),
                sign: key(number).sign)
        }
        #expect(chain.links.count == TokenLimits.linksMax)
        #expect(try judge(chain, client: key(9).endpoint).ids.count == 8)
        let ninth = link(9, to: key(10).endpoint, capabilities("kv:read:a"))
        #expect(throws: AspenError.self) { try chain.delegating(ninth, sign: key(9).sign) }
        #expect(throws: DecodeError.self) { try Forge.append(ninth, to: chain, by: key(9)) }
        let many = (0..<65).map { capability("kv:read:\($0)") }
        #expect(
            TokenLink(
                id: TokenID(1), audience: key(2).endpoint, notBefore: 0, expires: 1,
                capabilities: many) == nil)
        #expect(
            TokenLink(
                id: TokenID(1), audience: key(2).endpoint, notBefore: 0, expires: 1,
                capabilities: Array(many.dropLast()))?.capabilities.count == 64)
        #expect(throws: DecodeError.self) {
            try TokenChain(decoding: [UInt8](repeating: 0, count: 65_537))
        }
    }

    @Test func timesReadWell() {
        #expect(WallClock.text(0) == "1970-01-01 00:00:00 UTC")
        #expect(WallClock.text(951_782_400) == "2000-02-29 00:00:00 UTC")
        #expect(WallClock.text(1_795_480_500) == "2026-11-24 00:35:00 UTC")
        #expect(WallClock.text(.max) == "9999-12-31 23:59:59 UTC")
    }

    @Test func timesAreReadAsTheyAreWritten() {
        var random = RandomSource(seed: 3)
        let some = (0..<2000).map { _ in random.uniform(0..<UInt64(253_402_300_800)) }
        for seconds in [0, 951_782_400, 951_868_799, 253_402_300_799] + some {
            var text = Array(WallClock.text(seconds).utf8).dropLast(4) + Array("Z".utf8)
            text[10] = UInt8(ascii: "T")
            #expect(WallClock.seconds(String(decoding: text, as: UTF8.self)) == seconds)
        }
        for wrong in [
            "", "2026-12-24", "2026-12-24 08:00:00Z", "2026-12-24T08:00:00", "2026-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z",
            "1969-12-31T23:59:59Z", "2026-12-24T08:00:00Z ", "2026-12-24T08:00:0xZ",
        ] { #expect(WallClock.seconds(wrong) == nil, "\(wrong)") }
    }
}

/// Makes what an honest program would not: the format is public, so it is written again here.
enum Forge {
    static func append(
        _ link: TokenLink, to chain: TokenChain, by key: NodeKey
    ) throws -> TokenChain {
        var body = ByteWriter()
        body.raw(link.id.bytes)
        body.raw(link.audience.bytes)
        body.integer(link.notBefore)
        body.integer(link.expires)
        body.integer(UInt32(link.capabilities.count))
        for capability in link.capabilities {
            switch capability {
            case .clusterRead: body.byte(1)
            case .clusterAdmin: body.byte(2)
            case .readKeys(let keys), .writeKeys(let keys):
                if case .readKeys = capability { body.byte(3) } else { body.byte(4) }
                body.flag(keys.isPrefix)
                body.blob(keys.bytes)
            }
        }
        var chained = ByteWriter()
        chained.raw(chain.encoded())
        chained.blob(body.bytes)
        let signature = key.sign(Array("aspen capability token v1\0".utf8) + chained.bytes)
        return try TokenChain(decoding: chained.bytes + signature)
    }
}
