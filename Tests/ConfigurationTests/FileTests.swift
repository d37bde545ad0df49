// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Glibc
import Testing

@testable import Configuration

private let endpoint = "abcdefgh2abcdefgh2abcdefgh2abcdefgh2abcdefgh2abcdefa"

@Suite struct FileTests {
    private func read(_ text: String) -> TOMLFile { TOMLFile(Array(text.utf8), path: "t.toml") }

    private func value(_ text: String, _ name: String) -> SettingValue? {
        let file = read(text)
        #expect(file.problems.isEmpty, "\(file.problems)")
        return file.values.first { $0.setting.name == name }?.value
    }

    @Test func everyTypeIsRead() {
        #expect(value("[node]\nid = 7\n", "node-id") == .integer(7))
        #expect(value("node.id = 0x10", "node-id") == .integer(16))
        #expect(
            value("security = { tokens_required = false }", "tokens-required") == .boolean(false))
        #expect(value("[storage]\nbackend = 'inmemory'", "storage-backend") == .text("inmemory"))
        #expect(value("[log]\nlevel = \"debug\"", "log-level") == .text("debug"))
    }

    @Test func aListMayBeOneText() {
        #expect(value("[node]\nlisten = \":7700\"", "listen") == .list([":7700"]))
        #expect(
            value("[node]\nadvertise = [\n  \"127.0.0.1:1\", # one\n  '[::1]:2',\n]", "advertise")
                == .list(["127.0.0.1:1", "[::1]:2"]))
        #expect(value("[node]\npeers = []", "peers") == .list([]))
        let peer = "2@\(endpoint)@192.0.2.2:7700@[2001:db8::2]:7700"
        #expect(value("[node]\npeers = [\"\(peer)\"]", "peers") == .list([peer]))
    }

    @Test func linesAreThoseOfTheKeys() {
        let file = read(
            """
            # A comment with [node] and id = 3

            [node]   # the node
            "id" = 1
              advertise = [
                "127.0.0.1:1",  # ]
                "127.0.0.2:2",
            ]

            [ raft ]
            heartbeat_interval_ms = 100
            election_timeout_min_ms=200
            election_timeout_max_ms = 300
            """)
        #expect(file.problems.isEmpty)
        let lines = file.values.map { "\($0.setting.name) \($0.line)" }
        #expect(
            lines == [
                "node-id 4", "advertise 5", "heartbeat-interval-ms 11",
                "election-timeout-min-ms 12",
                "election-timeout-max-ms 13",
            ])
        #expect(read("security = { tokens_required = true }").values.first?.line == 1)
        #expect(
            read("\nnode.ticket = '''aspena'''\nlog.level='info'").values.map(\.line) == [2, 3])
    }

    @Test(arguments: [
        ("[node]\nid = \"1\"", "wrong-type", 2, "node.id must be a whole number of 1 or more"),
        ("[node]\nid = 1.5", "wrong-type", 2, "not a number with a fraction"),
        ("[node]\nid = 0", "out-of-range", 2, "not 0"),
        ("[node]\nid = 99999999999999999999", "syntax", 2, "no TOML"),
        ("node = 1", "wrong-type", 1, "[node]"),
        ("[[node]]\nid = 1", "wrong-type", 1, "[node]"),
        ("[node]\nlisten = 7700", "wrong-type", 2, "a port (\":7700\")"),
        ("[node]\nlisten = [\":1\", 2]", "wrong-type", 2, "a list"),
        ("[node]\nlisten = \"localhost:7700\"", "out-of-range", 2, "localhost:7700"),
        ("[node]\nlisten = \":0\"", "out-of-range", 2, "no port"),
        ("[node]\nlisten = [\":1\", \":2\"]", "out-of-range", 2, "at most 1"),
        ("[node]\nadvertise = \"0.0.0.0:1\"", "out-of-range", 2, "nobody can dial"),
        ("[node]\nadvertise = \":1\"", "out-of-range", 2, "numeric address"),
        ("[node]\npeers = [\"2@abc\"]", "out-of-range", 2, "endpoint id"),
        ("[node]\nticket = \"nonsense!\"", "out-of-range", 2, "no ticket"),
        ("\n[storage]\nbackend = \"persistant\"", "out-of-range", 3, "did you mean \"persistent\""),
        ("[security]\ntokens_required = \"no\"", "wrong-type", 2, "true or false"),
        ("[node]\nidd = 1", "unknown-key", 2, "did you mean 'node.id'?"),
        ("[nodes]\nid = 1", "unknown-key", 1, "did you mean '[node]'?"),
        ("[node]\nheartbeat-interval-ms = 5", "unknown-key", 2, "raft.heartbeat_interval_ms"),
        ("node-id = 1", "unknown-key", 1, "node.id"),
        ("[node]\ncolour = 1", "unknown-key", 2, "[node] has id, listen"),
        ("[xyzzy]", "unknown-key", 1, "the tables are node, cluster, storage"),
        ("[node]\ncookie = \"x\"", "unknown-key", 2, "secrets stand in no TOML file"),
        ("[node]\nid = ", "syntax", 2, "no TOML"), ("[node", "syntax", 1, "no TOML"),
        ("[node]\nid = 1\nid = 2", "syntax", 3, "no TOML"),
        ("[node]\nid\u{0} = 1", "syntax", 2, "NUL"),
        ("[log]\nlevel = \"info\\u0000x\"", "syntax", 2, "NUL"),
    ])
    func everyErrorHasItsPlace(text: String, kind: String, line: Int, says: String) {
        let file = read(text)
        #expect(file.problems.count == 1, "\(file.problems)")
        let problem = file.problems.first
        #expect(problem?.kind.rawValue == kind)
        #expect(problem?.origin == .file(path: "t.toml", line: line))
        #expect(problem?.description.contains(says) == true, "\(problem.map { "\($0)" } ?? "")")
        #expect(problem?.description.contains("\n") == false)
    }

    @Test func allErrorsAreToldFromTheTop() {
        let file = read("[raft]\nzzz = 1\n[node]\nid = -1\nlisten = \":7700\"\n[log]\nlevel = 3")
        #expect(file.problems.map { $0.kind } == [.unknownKey, .outOfRange, .wrongType])
        #expect(file.values.map(\.setting.name) == ["listen"], "what is right is read")
    }

    @Test func bytesThatAreNoTextAreRefused() {
        let file = TOMLFile(Array("[node]\n".utf8) + [0xff, 0xfe], path: "t")
        #expect(file.problems.first?.description == "t:2: the text is not UTF-8")
        let large = TOMLFile([UInt8](repeating: 0x23, count: TOMLFile.bytesMax + 1), path: "t")
        #expect(large.problems.first?.kind == .unreadable)
        let whole = TOMLFile([UInt8](repeating: 0x23, count: TOMLFile.bytesMax), path: "t")
        #expect(whole.problems.isEmpty)
    }

    /// Recursion in the parser and in its destructors must not reach the end of the stack.
    @Test func depthIsRefused() {
        let keys = String(repeating: "a.", count: 32_000) + "a"
        for text in ["[\(keys)]\n=", "\(keys) = 1", "x = {\(keys) = 1}"] {
            #expect(read(text).problems.first?.kind == .syntax)
        }
        let open = String(repeating: "[", count: 60_000)
        #expect(read("x = \(open)").problems.first?.kind == .syntax)
        #expect(
            read("x = " + String(repeating: "{a=", count: 20_000)).problems.first?.kind == .syntax)
    }

    /// Other readers have stopped the program at some of these.
    @Test(arguments: [
        "[=", "[", "[[", "[.a]", "[ \t=]", "[[ ,", "a = 1\r[=", "\u{feff}[=", "\u{a0}[=",
        "a = 1\u{2028}[=", "[\u{a0}=", "[ü]", "[\r\n", "\u{c}[=", "x = [\n[=",
    ])
    func headersWithoutANameAreRefused(text: String) {
        #expect(read(text).problems.first?.kind == .syntax)
    }

    @Test func linesMayEndAsInWindows() {
        #expect(value("[node]\r\nid = 7\r\n", "node-id") == .integer(7))
    }

    /// Any bytes give values or errors: random ones, and damaged files, which go further.
    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func garbageIsNoTrap(seed: UInt64) {
        var random = RandomSource(seed: seed)
        let sample = Array(
            """
            [node]
            id = 3
            listen = ["0.0.0.0:7700", '[::1]:7701'] # both
            peers = [ "2@\(endpoint)@192.0.2.1:1" ]
            ticket = "aspen\\u0061b"
            [raft]
            heartbeat_interval_ms = 1_000
            [[x]]
            y = { z = 1979-05-27T07:32:00Z, w.v = \"""a
            b\""", f = -1.5e3 }
            """.utf8)
        let alphabet = Array("[]{}=.,#\"'\\\n\r\t abin01-_:+eExo\u{0}ü".utf8)
        for round in 0..<1500 {
            var bytes = sample
            if round % 3 == 0 {
                bytes = (0..<random.uniform(0..<200)).map { _ in
                    UInt8(truncatingIfNeeded: random.next())
                }
            } else if round % 3 == 1 {
                bytes = (0..<random.uniform(0..<300)).map { _ in
                    alphabet[random.uniform(0..<alphabet.count)]
                }
            } else {
                for _ in 0...random.uniform(0..<4) {
                    let place = random.uniform(0..<bytes.count)
                    let byte = alphabet[random.uniform(0..<alphabet.count)]
                    if random.chance(1, in: 3) {
                        bytes.remove(at: place)
                    } else if random.chance(1, in: 2) {
                        bytes.insert(byte, at: place)
                    } else {
                        bytes[place] = byte
                    }
                }
            }
            let file = TOMLFile(bytes, path: "t")
            for problem in file.problems { #expect(!problem.description.isEmpty) }
            for value in file.values {
                #expect(value.setting.complaint(about: value.value, .standard) == nil)
                #expect(value.line >= 1 && value.line <= bytes.split(separator: 10).count + 300)
            }
        }
    }

    @Test func quotedTextsComeBack() {
        for text in ["a\"b\\c", "tab\tline\nbell\u{7}del\u{7f}", "ü😀", ""] {
            let file = read("[node]\nticket = \(SettingValue.quote(text))")
            // It is no ticket, but it was read as the text that it is.
            #expect(file.problems.first?.kind == .outOfRange)
            #expect(file.problems.first?.message.contains("'\(text)'") == true)
        }
    }
}

@Suite struct ListenAddressTests {
    @Test(arguments: [
        ("7700", "7700"), (":7700", "7700"), ("0.0.0.0:7700", "7700"), ("[::]:7700", "7700"),
        ("[0::0]:7700", "7700"), ("192.0.2.1:1", "192.0.2.1:1"),
        ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
    ])
    func good(text: String, systemd: String) { #expect(ListenAddress(text)?.systemd == systemd) }

    @Test(arguments: [
        "", ":", "0", ":0", "65536", ":-1", ":+1", "a", "host:1", "::1:1", "[::1]", "[::1]1",
        "1.2.3:4", "1.2.3.4", "1.2.3.4:", "[1.2.3.4]:1", "[fe80::1%eth0]:1", "1.2.3.4:1\n", " 1",
        "*:1", "１:1",
    ])
    func bad(text: String) { #expect(ListenAddress(text) == nil) }
}
