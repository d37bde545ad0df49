// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import Testing

@testable import Configuration

/// What a text says, on one line, in the order of the text: `{a=1, b={c="x"}}`.
private func rendered(_ table: TOMLTable) -> String {
    "{" + table.keys.map { "\($0)=\(rendered(table[$0]?.value))" }.joined(separator: ", ") + "}"
}

private func rendered(_ value: TOMLValue?) -> String {
    switch value {
    case .text(let text): SettingValue.quote(text)
    case .integer(let number): "\(number)"
    case .boolean(let truth): "\(truth)"
    case .float: "float"
    case .date: "date"
    case .array(let items): "[" + items.map { rendered($0.value) }.joined(separator: ", ") + "]"
    case .table(let table): rendered(table)
    case nil: "nothing"
    }
}

@Suite struct TOMLReaderTests {
    @Test(
        arguments: [
            // Documents, comments, ends of lines.
            ("", "{}"), ("\n\r\n \t\n", "{}"), ("# only\twords ü", "{}"), ("a = 1", "{a=1}"),
            ("a=1#x\nb=2 # y\r\n#z\r\nc=3\r\n", "{a=1, b=2, c=3}"), ("  a\t=\t1  ", "{a=1}"),
            // Keys.
            ("a-b_C9 = 1\n1234 = 2\n- = 3", "{a-b_C9=1, 1234=2, -=3}"),
            ("\"127.0.0.1\" = 1\n'a \"b\"' = 2\n\"ʎǝʞ\" = 3", "{127.0.0.1=1, a \"b\"=2, ʎǝʞ=3}"),
            ("\"\" = 1\n'a#=]' = 2", "{=1, a#=]=2}"), ("\"\\u0061\" = 1", "{a=1}"),
            ("a.b.c = 1\na . d = 2\na.\"x.y\" = 3", "{a={b={c=1}, d=2, x.y=3}}"),
            ("3.14159 = 1\ntrue = 2\n1979-05-27 = 3", "{3={14159=1}, true=2, 1979-05-27=3}"),
            ("\"\u{e9}\" = 1\n\"e\u{301}\" = 2", "{\u{e9}=1, e\u{301}=2}"),
            // Tables.
            ("[a]\n[b]\nx = 1", "{a={}, b={x=1}}"),
            ("[ a . \"b.c\" . 'd' ] # x\ny = 1", "{a={b.c={d={y=1}}}}"),
            ("[x.y.z.w]\n[x]\na = 1", "{x={y={z={w={}}}, a=1}}"),
            ("[a.b]\nx = 1\n[c]\n[a.d]\n[a]\ny = 2", "{a={b={x=1}, d={}, y=2}, c={}}"),
            (
                "[fruit]\napple.color = 1\n[fruit.apple.taste]\nsweet = true",
                "{fruit={apple={color=1, taste={sweet=true}}}}"
            ),
            (
                "apple.type = 1\norange.type = 2\napple.skin = 3",
                "{apple={type=1, skin=3}, orange={type=2}}"
            ),
            ("[a.b.c]\n[a]\nb.x = 1", "{a={b={c={}, x=1}}}"),
            // Strings.
            ("a = \"\"\nb = ''", "{a=\"\", b=\"\"}"),
            (#"a = "\b\t\n\f\r\"\\""#, #"{a="\u0008\t\n\u000C\u000D\"\\"}"#),
            (#"a = "\u00e9\U0001F600\u00E9""#, "{a=\"é😀é\"}"),
            (#"a = 'C:\new\u0000'"#, #"{a="C:\\new\\u0000"}"#),
            ("a = '<\\i\\c*\\s*> \"q\"' # '", #"{a="<\\i\\c*\\s*> \"q\""}"#),
            ("a = \"\"\"\"\"\"", "{a=\"\"}"), ("a = ''''''", "{a=\"\"}"),
            ("a = \"\"\"\nRoses\nViolets\"\"\"", #"{a="Roses\nViolets"}"#),
            ("a = \"\"\"\r\nRoses\r\nViolets\"\"\"", #"{a="Roses\nViolets"}"#),
            ("a = \"\"\"The \\\n\n   \t\r\n  fox \\   \n  jumps\"\"\"", #"{a="The fox jumps"}"#),
            ("a = \"\"\"\\\n  x\\\n  \"\"\"", #"{a="x"}"#),
            ("a = \"\"\"1 \"\"2 \\\"\"\"\\\"3\"\"\"\"\"", #"{a="1 \"\"2 \"\"\"\"3\"\""}"#),
            ("a = \"\"\"\"x\"\"\"\"", #"{a="\"x\""}"#),
            ("a = '''\nno \\ fold\n'it''s'''''", #"{a="no \\ fold\n'it''s''"}"#),
            ("a = '''\n\n\tx'''", #"{a="\n\tx"}"#),
            ("a = \"x\ty\u{2028}ü\"", "{a=\"x\\ty\u{2028}ü\"}"),
            // Whole numbers.
            ("a = [+99, 42, 0, -17, +0, -0]", "{a=[99, 42, 0, -17, 0, 0]}"),
            ("a = [1_000, 5_349_221, 1_2_3]", "{a=[1000, 5349221, 123]}"),
            (
                "a = [0xDEADBEEF, 0xdead_beef, 0x00, 0o01234567, 0b1101_0110]",
                "{a=[3735928559, 3735928559, 0, 342391, 214]}"
            ),
            (
                "a = 9223372036854775807\nb = -9223372036854775808",
                "{a=9223372036854775807, b=-9223372036854775808}"
            ),
            ("a = 0x7fffffffffffffff", "{a=9223372036854775807}"),
            // Truth values, numbers with a fraction, dates.
            ("a = true\nb = false", "{a=true, b=false}"),
            (
                "a = [+1.0, 3.1415, -0.01, 5e+22, 1e06, -2E-2, 6.626e-34, 224_617.445_991_228, 0e0, 0.0]",
                "{a=[float, float, float, float, float, float, float, float, float, float]}"
            ),
            (
                "a = [inf, +inf, -inf, nan, +nan, -nan]",
                "{a=[float, float, float, float, float, float]}"
            ),
            (
                "a = [1979-05-27T07:32:00Z, 1979-05-27t00:32:00.999999-07:00, 1979-05-27 07:32:00z]",
                "{a=[date, date, date]}"
            ),
            (
                "a = [1979-05-27T07:32:00, 1979-05-27 07:32:00.5, 2000-02-29, 07:32:00, 00:32:00.9]",
                "{a=[date, date, date, date, date]}"
            ),
            ("a = 1979-05-27 # x\nb = 1979-05-27 ", "{a=date, b=date}"),
            // Arrays.
            ("a = []\nb = [ ]\nc = [[], [1]]", "{a=[], b=[], c=[[], [1]]}"),
            ("a = [ 1, 'x', [ true, ], {b = 2}, ]", "{a=[1, \"x\", [true], {b=2}]}"),
            ("a = [ # one ]\n\n 1 # two\r\n , # three\n 2,\n # four\n]\nb = 3", "{a=[1, 2], b=3}"),
            ("a = [\"\"\"x\ny\"\"\", '''z''']", #"{a=["x\ny", "z"]}"#),
            // Inline tables.
            ("a = {}\nb = { }", "{a={}, b={}}"),
            (
                "a = { x = 1, \"y z\" = 'w', n.o.p = [1,\n2], n.q = {} }",
                "{a={x=1, y z=\"w\", n={o={p=[1, 2]}, q={}}}}"
            ),
            ("a = {b = \"\"\"1\n2\"\"\"}", #"{a={b="1\n2"}}"#),
        ] as [(String, String)])
    func whatIsTOMLIsRead(text: String, says: String) throws {
        #expect(rendered(try TOMLReader.read(Array(text.utf8))) == says)
    }

    @Test(
        arguments: [
            // Keys and lines.
            ("a", 1, "'=' must follow a key; here is the end of the file"),
            ("\na =\nb = 1", 2, "a value is missing; here is the end of the line"),
            ("a = # none", 1, "a value is missing; here is '#'"), ("= 1", 1, "a key is missing"),
            ("a = 1 b = 2", 1, "the line must end here; here is 'b'"),
            ("a. = 1", 1, "a key is missing"),
            (".a = 1", 1, "a key is missing"), ("a..b = 1", 1, "a key is missing"),
            ("a b = 1", 1, "'=' must follow"), ("a\n= 1", 1, "'=' must follow"),
            ("ü = 1", 1, "U+00FC"), ("\u{feff}a = 1", 1, "U+FEFF"), ("a = 1\u{a0}", 1, "U+00A0"),
            ("\"\"\"a\"\"\" = 1", 1, "'=' must follow"),
            ("'a\n' = 1", 1, "a text ends with its quote"),
            ("a = 1\rb = 2", 1, "U+000D"), ("a = 1\r", 1, "U+000D"), ("\r", 1, "U+000D"),
            ("\u{c}", 1, "U+000C"), ("a = 1\n\u{0}", 2, "a NUL"), ("a := 1", 1, "'=' must follow"),
            ("# \u{1}", 1, "a comment has no control characters; here is U+0001"),
            ("# x\n# \u{7f}", 2, "U+007F"), ("# \rx", 1, "U+000D"),
            // Tables.
            ("[]", 1, "a key is missing"), ("[a", 1, "']' must follow"),
            ("[a.]", 1, "a key is missing"),
            ("[a b]", 1, "']' must follow"), ("[a]b = 1", 1, "the line must end here"),
            ("[a\n]", 1, "']' must follow"), ("[a]]", 1, "the line must end here"),
            ("[[a]", 1, "']' must follow"), ("[[]]", 1, "a key is missing"),
            ("[a] [b]", 1, "the line must end here"),
            // What is defined once only.
            ("a = 1\n\na = 2", 3, "'a' cannot be set here: it is set already, on line 1"),
            ("a = 1\n\"a\" = 2", 2, "on line 1"), ("spelling = 1\n'spelling' = 2", 2, "on line 1"),
            ("[a]\n[b]\n[a]", 3, "'a' cannot be set here: it is defined already, on line 1"),
            ("[a]\nb = 1\n[a.b]", 3, "it is defined already, on line 2"),
            ("a = 1\na.b = 2", 2, "'a' is a value, on line 1"),
            ("a.b = 1\na = 2", 2, "it is set already, on line 1"),
            ("a = 1\n[a.b.c]", 2, "'a' is a value, on line 1"),
            ("a = [1]\n[a.b]", 2, "'a' is a value, on line 1"),
            ("[fruit]\napple.color = 1\n[fruit.apple]", 3, "it is defined already, on line 2"),
            ("[a.b.c]\nz = 9\n[a]\nb.c.t = 1", 4, "the table 'c' is complete, on line 1"),
            (
                "[product]\ntype = { name = 1 }\ntype.edible = false", 3,
                "the table 'type' is complete"
            ),
            ("a = {}\n[a]", 2, "it is defined already, on line 1"),
            ("a = {}\n[a.b]", 2, "'a' is a value, on line 1"),
            ("a = {b = {c = 1}, b.d = 2}", 1, "the table 'b' is complete"),
            ("a = {b = 1, b = 2}", 1, "it is set already"),
            ("[a.b]\n[a]\n[a]", 3, "it is defined already"),
            // Strings.
            ("a = \"x", 1, "the text that begins here does not end"),
            ("a = 'x\n", 1, "a text ends"),
            ("x = 1\na = \"\"\"\n\n", 2, "the text that begins here does not end"),
            ("a = '''x''", 1, "does not end"), ("a = \"x\\\"", 1, "does not end"),
            ("a = \"\"\"\"\"\"\"\"\"\"", 1, "the line must end here"),
            ("a = \"\\x41\"", 1, "a backslash is followed by"),
            ("a = \"\\", 1, "the end of the file"),
            ("a = \"\"\"\n\\ x\"\"\"", 2, "a backslash is followed by"),
            ("a = \"\\u12\"", 1, "4 hexadecimal digits"),
            ("a = \"\\U0001F60\"", 1, "8 hexadecimal"),
            ("a = \"\\ud800\"", 1, "U+D800 is no character"),
            ("a = \"\\U00110000\"", 1, "U+110000 is no character"),
            ("a = \"\\UFFFFFFFF\"", 1, "no character"), ("a = \"\\u0000\"", 1, "a NUL"),
            ("a = \"\u{1}\"", 1, "U+0001"), ("a = '\u{7f}'", 1, "U+007F"),
            ("a = '''\nx\ry'''", 2, "U+000D"), ("a = \"\"\"\n\n\u{0}\"\"\"", 3, "a NUL"),
            ("a = hello", 1, "'hello' is no value (a text stands in quotes"),
            // Words.
            ("a = 01", 1, "'01' is no value"), ("a = -01", 1, "no value"),
            ("a = 1__0", 1, "no value"),
            ("a = _1", 1, "no value"), ("a = 1_", 1, "no value"), ("a = +", 1, "no value"),
            ("a = ++1", 1, "no value"), ("a = +0x1", 1, "no value"), ("a = 0x", 1, "no value"),
            ("a = 0X1", 1, "no value"), ("a = 0x_1", 1, "no value"), ("a = 0o8", 1, "no value"),
            ("a = 0b2", 1, "no value"), ("a = 0xg", 1, "no value"),
            ("a = 1 000", 1, "must end here"),
            ("a = 9223372036854775808", 1, "'9223372036854775808' is beyond 64 bits"),
            ("a = -9223372036854775809", 1, "beyond 64 bits"),
            ("a = 0x8000000000000000", 1, "beyond 64 bits"), ("a = True", 1, "no value"),
            ("a = .5", 1, "no value"), ("a = 5.", 1, "no value"), ("a = 1.e5", 1, "no value"),
            ("a = 1e", 1, "no value"), ("a = 1.2.3", 1, "no value"), ("a = 01.5", 1, "no value"),
            ("a = 1._5", 1, "no value"), ("a = Inf", 1, "no value"), ("a = 1e1.5", 1, "no value"),
            ("a = 1979-13-01", 1, "no value"), ("a = 1979-02-29", 1, "no value"),
            ("a = 1900-02-29", 1, "no value"), ("a = 1979-5-27", 1, "no value"),
            ("a = 1979-05-27T", 1, "no value"), ("a = 1979-05-27T25:00:00", 1, "no value"),
            ("a = 07:32", 1, "no value"), ("a = 07:60:00", 1, "no value"),
            ("a = 07:32:00.", 1, "no value"),
            ("a = 07:32:00Z", 1, "no value"), ("a = 1979-05-27T07:32:00+24:00", 1, "no value"),
            ("a = 1979-05-27 07:32", 1, "'1979-05-27 07:32' is no value"),
            // Arrays and inline tables.
            ("x = 1\na = [1,\n2\n", 2, "the list that begins here does not end"),
            ("a = [1 2]", 1, "',' or ']' must follow a value in the list of line 1; here is '2'"),
            ("a = [\":1\"\nb = 1", 2, "in the list of line 1; here is 'b'"),
            ("a = [,]", 1, "a value is missing"), ("a = [1,,2]", 1, "a value is missing"),
            ("a = ]", 1, "a value is missing"), ("a = [1]]", 1, "must end here"),
            ("a = [1}", 1, "',' or ']' must follow"), ("a = {b = 1,}", 1, "a key is missing"),
            ("a = {\nb = 1}", 1, "a key is missing"), ("a = {b = 1\n}", 1, "on the same line"),
            ("a = {b = 1, # x\nc = 2}", 1, "a key is missing"), ("a = {b}", 1, "'=' must follow"),
            ("a = {b = 1", 1, "',' or '}' must follow"), ("a = {", 1, "a key is missing"),
            ("a = {b = }", 1, "a value is missing"), ("a = {,}", 1, "a key is missing"),
            ("a = {b = 1 c = 2}", 1, "',' or '}' must follow"),
        ] as [(String, Int, String)])
    func whatIsNoTOMLIsRefused(text: String, line: Int, says: String) {
        let error = #expect(throws: TOMLError.self) { try TOMLReader.read(Array(text.utf8)) }
        #expect(error?.kind == .syntax)
        #expect(error?.line == line)
        #expect(error?.message.contains(says) == true, "\(error?.message ?? "")")
    }

    @Test func arraysOfTablesAreRefusedAsSuch() {
        let error = #expect(throws: TOMLError.self) {
            try TOMLReader.read(Array("a = 1\n[[b.c]]\nd = 1".utf8))
        }
        #expect(error?.kind == .unsupported)
        #expect(error?.line == 2)
        #expect(error?.message.contains("no setting is a list of tables") == true)
    }

    /// Exactly `depthMax` levels are read, however they are made; one more is an error.
    @Test func depthIsBounded() throws {
        func texts(_ depth: Int) -> [String] {
            let keys = Array(repeating: "a", count: depth).joined(separator: ".")
            return [
                "[\(keys)]", "\(keys) = 1",
                "x = " + String(repeating: "[", count: depth - 1)
                    + String(repeating: "]", count: depth - 1),
                "x = " + String(repeating: "{a=", count: depth - 1) + "1"
                    + String(repeating: "}", count: depth - 1),
                "[\(keys.dropLast(4))]\na.a = 1",
                "[\(keys.dropLast(8))]\na.a = [{a = 1}]",
            ]
        }
        for text in texts(TOMLReader.depthMax) { _ = try TOMLReader.read(Array(text.utf8)) }
        for text in texts(TOMLReader.depthMax + 1) {
            let error = #expect(throws: TOMLError.self, "\(text)") {
                try TOMLReader.read(Array(text.utf8))
            }
            #expect(error?.message.contains("inside each other") == true)
        }
    }

    @Test func everythingHasItsLine() throws {
        let root = try TOMLReader.read(
            Array(
                "a = [\n 1,\n\n '''\n''', 2 ]\n\n[b.c]\nd = \"\"\"x\\\n\n y\"\"\"\ne.f=1\n[b]".utf8)
        )
        guard case .array(let items)? = root["a"]?.value, case .table(let b)? = root["b"]?.value,
            case .table(let c)? = b["c"]?.value, case .table(let e)? = c["e"]?.value
        else {
            Issue.record("\(rendered(root))")
            return
        }
        #expect(items.map(\.line) == [2, 4, 5])
        #expect([root["a"]?.line, root["b"]?.line, b["c"]?.line] == [1, 7, 7])
        #expect([c["d"]?.line, c["e"]?.line, e["f"]?.line] == [8, 11, 11])
    }

    /// Damaged documents, 20,000 of them: a table or an error with a line of the text. What was
    /// read is bounded by what was given.
    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func damageIsNoTrap(seed: UInt64) {
        var random = RandomSource(seed: seed)
        let sample = Array(
            """
            title = "T\\u00e9\\n" # ü
            [a."b c".d]
            e.f = [ 1_0, -31, 0x1F, 0b1, { g = 'h', i.j = [ ] }, # k
              1979-05-27 07:32:00.5Z, 1e-3, true, ]
            [a]
            k = \"""
            l \\
               m""n\"""
            o = '''p'q''\'''
            """.utf8)
        let signs = [
            "[", "]", "{", "}", "=", ".", ",", "#", "\"", "'", "\\", "\n", "\r", "\u{0}",
            "\"\"\"", "'''", "\\u", "\\U", "[[", "ü", "\u{2028}", "0x", "_", "-", ":", "T", " ",
        ].map { Array($0.utf8) }
        #expect(throws: Never.self) { try TOMLReader.read(sample) }
        var read = 0
        for _ in 0..<2500 {
            var bytes = sample
            for _ in 0..<random.uniform(1..<4) {
                let place = random.uniform(0..<max(1, bytes.count))
                switch random.uniform(0..<5) {
                case 0: bytes.removeSubrange(place..<min(bytes.count, place + 3))
                case 1:
                    let from = random.uniform(0..<max(1, bytes.count))
                    bytes.insert(
                        contentsOf: bytes[from...].prefix(random.uniform(0..<40)), at: place)
                case 2: bytes = Array(bytes.prefix(max(1, place)))
                case 3 where place < bytes.count:
                    bytes[place] = UInt8(truncatingIfNeeded: random.next())
                default:
                    bytes.insert(contentsOf: signs[random.uniform(0..<signs.count)], at: place)
                }
            }
            // The reader itself takes any bytes, though its caller gives it UTF-8 only.
            let lines = bytes.count { $0 == 10 } + 1
            do throws(TOMLError) {
                let root = try TOMLReader.read(bytes)
                #expect(rendered(root).utf8.count <= bytes.count * 8 + 16)
                read += 1
            } catch {
                #expect((1...lines).contains(error.line) && !error.message.isEmpty)
            }
            _ = TOMLFile(bytes, path: "t")
        }
        #expect(read > 100 && read < 2400, "both ways were taken: \(read) of 2500 were read")
    }
}
