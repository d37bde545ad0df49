// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Testing

@testable import AspenCLI

@Suite struct TextTests {
    @Test func jsonEscapesWhatItMust() {
        #expect(
            JSON.string("a\"b\\c\u{8}\t\n\u{c}\r\u{0}\u{1f}\u{7f}é😀/").text
                == #""a\"b\\c\b\t\n\f\r\u0000\u001f\u007fé😀/""#)
        let value = JSON.object([
            ("n", .number(.max)), ("t", .bool(true)), ("f", .bool(false)), ("z", .null),
            ("a", .array([.number(0), .object([]), .array([])])), ("k\"", .string("")),
        ])
        #expect(
            value.text
                == #"{"n":18446744073709551615,"t":true,"f":false,"z":null,"#
                + #""a":[0,{},[]],"k\"":""}"#)
    }

    @Test func tokensAreNotRepeated() {
        func shown(_ text: String) -> String {
            String(decoding: withoutTokens(Array(text.utf8)), as: UTF8.self)
        }
        let digits = String(repeating: "abcdefghijklmnopqrstuvwxyz234567", count: 10)
        #expect(
            shown("2 unexpected arguments: 'inspect', 'aspentoken\(digits)'\n")
                == "2 unexpected arguments: 'inspect', 'aspentoken…'\n")
        #expect(shown("'AspenTokenifzvi'") == "'AspenToken…'")
        // Without its beginning.
        #expect(shown("\(digits) is unknown") == "abcdefghij… is unknown")
        for text in [
            "", "a token begins with 'aspentoken'", "see `aspen-token inspect`", "größer",
            "no such key: \(digits.prefix(199))", "ticket aspen\(digits.prefix(100))",
        ] { #expect(shown(text) == text) }
    }

    @Test func jsonKeepsBytes() {
        #expect(JSON.bytes(Array("text".utf8)).text == #""text""#)
        #expect(JSON.bytes([]).text == #""""#)
        #expect(JSON.bytes([0xff]).text == #"{"base64":"/w=="}"#)
        // An overlong slash and a surrogate are no UTF-8.
        #expect(JSON.bytes([0xc0, 0xaf]).text == #"{"base64":"wK8="}"#)
        #expect(JSON.bytes([0xed, 0xa0, 0x80]).text == #"{"base64":"7aCA"}"#)
    }

    // RFC 4648 section 10.
    @Test(arguments: [
        ("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="),
        ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy"),
    ])
    func base64Vectors(plain: String, encoded: String) {
        #expect(Base64.encode(Array(plain.utf8)) == encoded)
        #expect(Base64.decode(encoded) == Array(plain.utf8))
        #expect(Base64.decode(encoded.filter { $0 != "=" }) == Array(plain.utf8))
    }

    @Test(arguments: ["Z", "Zg=", "Zg===", "====", "Zh==", "Zm9v!", "=Zg=", "Zm8=Zm8="])
    func base64Refuses(text: String) { #expect(Base64.decode(text) == nil) }

    @Test func base64AndHexRoundTrip() {
        var generator = SystemRandomNumberGenerator()
        for count in 0..<100 {
            let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
            #expect(Base64.decode(Base64.encode(bytes)) == bytes)
            #expect(Hex.decode(Hex.encode(bytes)) == bytes)
        }
        #expect(Hex.decode("Ff0") == nil)
        #expect(Hex.decode("0g") == nil)
        #expect(Hex.decode("fFaA") == [0xff, 0xaa])
    }

    @Test(
        arguments: [
            [], Array("plain".utf8), Array("é😀".utf8), [0xff], [0xc3], [0xc3, 0x28],
            [0xf4, 0x8f, 0xbf, 0xbf], [0xf4, 0x8f, 0xbe, 0x80], [0xed, 0xa0, 0x80], [0xf0, 0x9f],
            [0x80, 0xe2, 0x82, 0xac, 0xe2, 0x82], [0xf8, 0x88, 0x80, 0x80, 0x80],
        ] as [[UInt8]])
    func argumentsAreBytes(bytes: [UInt8]) {
        let text = ArgumentBytes.text(bytes)
        #expect(ArgumentBytes.bytes(text) == bytes)
        // Text stays the text it is.
        if let plain = String(validating: bytes, as: UTF8.self), bytes.first != 0xf4 {
            #expect(Array(text.utf8) == Array(plain.utf8))
        }
    }

    @Test(arguments: [
        ("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("250", 250), ("1", 1),
        ("24h", 86_400_000),
    ])
    func timeLimits(text: String, milliseconds: Int) {
        #expect(TimeLimit(argument: text)?.duration == .milliseconds(milliseconds))
    }

    @Test(arguments: ["", "0", "s", "-1s", "25h", "1.5s", "99999999999999999999", "١s", "2000m"])
    func noTimeLimits(text: String) { #expect(TimeLimit(argument: text) == nil) }

    /// Elsewhere a number alone is seconds.
    @Test func leaseTimesHaveAUnit() {
        #expect(LeaseTime(argument: "30s")?.duration == .seconds(30))
        #expect(LeaseTime(argument: "2h")?.duration == .seconds(7200))
        for text in ["3600", "5", "", "s", "25h"] { #expect(LeaseTime(argument: text) == nil) }
    }

    @Test func tablesAlign() {
        var table = Table([.init(title: "A"), .init(title: "LONG", alignment: .right)])
        #expect(table.render([["abc", "1"], ["d", "22"]]) == "A    LONG\nabc     1\nd      22\n")
        #expect(table.render([["e", "333"]]) == "e     333\n")
    }

    @Test func valuesFitTheirCell() {
        #expect(Display.value([]) == "<empty>")
        #expect(Display.value([0xff, 0]) == "<binary: 2 bytes>")
        #expect(Display.value(Array("a\nb\u{202e}c".utf8)) == "<binary: 7 bytes>")
        #expect(Display.value(Array("a\nb".utf8)) == #"a\nb"#)
        let long = Display.value(Array(repeating: UInt8(ascii: "x"), count: 61))
        #expect(long.count == 60 && long.hasSuffix("x…"))
        #expect(Display.value(Array(repeating: UInt8(ascii: "x"), count: 60)).hasSuffix("xx"))
        #expect(Display.oneLine("\u{1b}[31mred") == #"\u{1b}[31mred"#)
    }

    @Test(
        arguments: [
            (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (10240, "10 KiB"),
            (1_048_576, "1.0 MiB"), (.max, "16 EiB"),
        ] as [(UInt64, String)])
    func sizes(bytes: UInt64, text: String) { #expect(Display.size(bytes) == text) }

    @Test(arguments: [
        ("--json kv get k", "kv get --json k"), ("-o json kv get k", "kv get -o json k"),
        ("-ojson kv get k", "kv get -ojson k"), ("--timeout=5s kv get k", "kv get --timeout=5s k"),
        ("--timeout 5s --json kv get -- -x", "kv get --timeout 5s --json -- -x"),
        ("kv get k --json", "kv get k --json"), ("--help", "--help"),
        ("--json --version", "--json --version"),
    ])
    func globalOptionsMayStandFirst(given: String, parsed: String) {
        let arguments = given.split(separator: " ").map(String.init)
        #expect(
            CommandLineProgram.hoistGlobalOptions(arguments).joined(separator: " ") == parsed)
    }

    /// The whole table of exit statuses, so that a new code is thought about.
    @Test func exitStatuses() {
        let expected: [AspenErrorCode: Int32] = [
            .invalidArgument: 2, .notFound: 3, .unauthenticated: 4, .permissionDenied: 4,
            .preconditionFailed: 5, .unavailable: 6, .deadlineExceeded: 6, .resourceExhausted: 1,
            .sessionExpired: 1, .compacted: 1, .notInitialized: 6, .alreadyInitialized: 5,
            .corrupt: 1, .storage: 1, .unsupportedVersion: 1, .unknownOutcome: 6, .internal: 1,
        ]
        for code in AspenErrorCode.allCases {
            #expect(ExitStatus(AspenError(code, "")).rawValue == expected[code])
        }
        #expect(ExitStatus(AspenError(.resourceExhausted, "", retry: .safe)) == .unavailable)
    }
}
