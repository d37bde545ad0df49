// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import DNSWire
import Testing

@Suite struct DNSWireTests {
    private func name(_ text: String) throws -> DNSName { try #require(DNSName(text)) }

    private func hex(_ text: String) -> [UInt8] {
        let digits = Array(text.filter { !$0.isWhitespace })
        return stride(from: 0, to: digits.count, by: 2).compactMap {
            UInt8(String(digits[$0...$0 + 1]), radix: 16)
        }
    }

    private func announcement() throws -> DNSMessage {
        let instance = try name("abc._aspen._udp.local")
        let host = try name("aspen-abc.local")
        var message = DNSMessage(flags: [.response, .authoritative])
        message.answers = [
            DNSRecord(try name("_aspen._udp.local"), ttl: 4500, .pointer(instance)),
            DNSRecord(
                instance, ttl: 120,
                .service(priority: 0, weight: 0, port: 7700, target: host), flushesCache: true),
            DNSRecord(
                instance, ttl: 4500, .text([Array("v=1".utf8), []]), flushesCache: true),
            DNSRecord(host, ttl: 120, .address(.v4(0xc000_0201)), flushesCache: true),
            DNSRecord(
                host, ttl: 120, .address(try #require(IPAddress("2001:db8::1"))),
                flushesCache: true),
            DNSRecord(host, ttl: 120, .exists(next: host, types: [1, 28]), flushesCache: true),
        ]
        return message
    }

    @Test func bothBitsOfMulticastSurvive() throws {
        var message = try announcement()
        var question = DNSQuestion(try name("_aspen._udp.local"), DNSType.ptr, wantsUnicast: true)
        question.class = DNSClass.any
        message.questions = [question]
        let again = try DNSMessage(decoding: message.encoded())
        #expect(again == message)
        #expect(again.answers.map(\.flushesCache) == [false, true, true, true, true, true])
        #expect(again.questions[0].wantsUnicast)
        #expect(try DNSMessage(decoding: message.encoded(style: .classic)) == message)
        #expect(message.encoded().count < message.encoded(style: .classic).count)
    }

    /// What another implementation makes of it, byte by byte.
    @Test func theBytesAreThoseOfTheStandard() throws {
        var message = DNSMessage(id: 0x1234, flags: .recursionDesired)
        message.questions = [DNSQuestion(try name("F.ISI.ARPA"), DNSType.a)]
        message.answers = [
            DNSRecord(try name("FOO.F.ISI.ARPA"), ttl: 1, .address(.v4(0x0a00_0001)))
        ]
        #expect(
            message.encoded()
                == hex(
                    "1234 0100 0001 0001 0000 0000 01 46 03 495349 04 41525041 00 0001 0001"
                        + "03 464f4f c00c 0001 0001 00000001 0004 0a000001"))
    }

    @Test func namesDoNotDependOnCaseAndHaveLimits() throws {
        #expect(try name("A.Example") == name("a.eXAMPLE."))
        #expect(try name("a.example").hashValue == name("A.EXAMPLE").hashValue)
        #expect(try name("a.example") != name("b.example"))
        #expect(DNSName("a..b") == nil)
        #expect(DNSName(String(repeating: "a", count: 64)) == nil)
        let long = Array(repeating: [UInt8](repeating: 97, count: 63), count: 3)
        #expect(DNSName(labels: long + [[UInt8](repeating: 97, count: 61)])?.wire.count == 255)
        #expect(DNSName(labels: long + [[UInt8](repeating: 97, count: 62)]) == nil)
        #expect(DNSName(labels: [[0x2e, 0xff, 0x61]])?.description == "\\046\\255a.")
        #expect(DNSName("") == .root)
        #expect(try name("a.b").child([99]) == name("c.a.b"))
        #expect(try name("c.a.b").parent == name("a.b"))
    }

    @Test func hostileBytesAreErrors() throws {
        let whole = try announcement().encoded()
        for count in 0..<whole.count {
            #expect(throws: DecodeError.self) { try DNSMessage(decoding: Array(whole[..<count])) }
        }
        let header = hex("0000 8400 0000 0001 0000 0000")
        let bad: [(String, String)] = [
            ("a name that points at itself", "c00c 0001 0001 00000000 0004 0a000001"),
            ("a name that points forward", "c020 0001 0001 00000000 0004 0a000001"),
            ("a label of another kind", "40 00 0001 0001 00000000 0004 0a000001"),
            ("an address of five bytes", "00 0001 0001 00000000 0005 0a00000100"),
            ("a pointer with something behind it", "00 000c 0001 00000000 0002 0000"),
            ("a string beyond its record", "00 0010 0001 00000000 0002 0261"),
            ("an empty window", "00 002f 0001 00000000 0003 00 0000"),
        ]
        for (what, rest) in bad {
            #expect(throws: DecodeError.self, "\(what)") {
                try DNSMessage(decoding: header + hex(rest))
            }
        }
        #expect(throws: DecodeError.outOfRange(field: "message")) {
            try DNSMessage(decoding: [UInt8](repeating: 0, count: DNSMessage.bytesMax + 1))
        }
    }

    @Test func moreEntriesThanAllowedAreRefused() throws {
        var message = DNSMessage(flags: .response)
        let record = DNSRecord(.root, ttl: 1, .other(type: 999, []))
        message.answers = Array(repeating: record, count: DNSMessage.entriesMax)
        #expect(try DNSMessage(decoding: message.encoded()) == message)
        message.answers.append(record)
        #expect(throws: DecodeError.outOfRange(field: "count")) {
            try DNSMessage(decoding: message.encoded())
        }
    }

    /// A chain of compressed names, which some resolvers follow 65,535 steps for each of many records.
    @Test func aChainOfPointersHasAnEnd() throws {
        var bytes = hex("0000 8400 0000 0002 0000 0000 00 ff00 0001 00000000")
        let count = 200
        bytes += [UInt8((count * 2) >> 8), UInt8((count * 2) & 0xff)]
        var last = 12
        for _ in 0..<count {
            let place = bytes.count
            bytes += [UInt8(0xc0 | last >> 8), UInt8(last & 0xff)]
            last = place
        }
        let pointer = [UInt8(0xc0 | last >> 8), UInt8(last & 0xff)]
        bytes += pointer + hex("ff00 0001 00000000 0000")
        #expect(throws: DecodeError.malformed(field: "record")) {
            try DNSMessage(decoding: bytes)
        }
    }

    /// As many steps back as a name can have labels are no attack: a writer that compresses well makes them.
    @Test func theLongestNameThatIsWrittenWellIsRead() throws {
        var message = DNSMessage(flags: .response)
        var labels: [[UInt8]] = []
        for place in 0..<127 {
            labels.insert([UInt8(97 + place % 26)], at: 0)
            let name = try #require(DNSName(labels: labels))
            message.answers.append(DNSRecord(name, ttl: 1, .address(.v4(1))))
        }
        #expect(try DNSMessage(decoding: message.encoded()) == message)
    }

    @Test func aWriterSaysWhatFits() throws {
        let record = DNSRecord(try name("a.example"), ttl: 1, .address(.v4(1)))
        let other = DNSRecord(try name("b.example"), ttl: 1, .address(.v4(2)))
        var writer = DNSWriter(flags: .response, bytesMax: 12 + 25 + 18)
        let fits = [record, other, other].map { writer.append($0, to: .answers) }
        #expect(fits == [true, true, false])
        let message = try DNSMessage(decoding: writer.finished(adding: .truncated))
        #expect(message.answers == [record, other])
        #expect(message.flags == [.response, .truncated])
    }

    @Test func addressesAreTextAndBack() throws {
        let same = [
            "0.0.0.0", "192.0.2.1", "255.255.255.255", "::", "::1", "2001:db8::1", "fe80::1:2",
            "1:2:3:4:5:6:7:8", "1:0:0:2::3", "1::8", "1:2:3:4:5:6:7:0", "1:0:3:4:5:6:7:8",
        ]
        for text in same {
            let address = try #require(IPAddress(text), "\(text)")
            #expect(address.description == text)
            #expect(IPAddress(bytes: address.bytes) == address)
            let parsed = try #require(IPAddress.parse(address.text(port: 7700)))
            #expect(parsed.address == address && parsed.port == 7700)
        }
        #expect(IPAddress("1:2:3:4:5:6::8")?.description == "1:2:3:4:5:6:0:8")
        let wrong = [
            "", "1.2.3", "1.2.3.256", "1.2.3.4.5", "01.2.3.4", "1.2.3.+4", ":", ":::", "1::2::3",
            "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::", "g::", "1:2:3:4:5:6:7::8", "fe80::1%2",
            "::1.2.3.4", "+1::",
        ]
        for text in wrong { #expect(IPAddress(text) == nil, "\(text)") }
        for text in ["1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "::1:7", "[1.2.3.4]:7", "1.2.3.4:65536"] {
            #expect(IPAddress.parse(text) == nil, "\(text)")
        }
    }

    @Test func prefixesSayWhatIsOnTheLink() throws {
        let four = IPPrefix(try #require(IPAddress("192.0.2.200")), 25)
        #expect(four.contains(.v4(0xc000_02ff)) && !four.contains(.v4(0xc000_0201)))
        let six = IPPrefix(try #require(IPAddress("2001:db8::1")), 64)
        #expect(six.contains(try #require(IPAddress("2001:db8::ffff:0:0:1"))))
        #expect(!six.contains(try #require(IPAddress("2001:db8:0:1::1"))))
        #expect(!six.contains(.v4(1)))
        #expect(IPPrefix(.v4(0), 0).contains(.v4(7)) && IPPrefix(.v4(7), 99).bitCount == 32)
        #expect(try #require(IPAddress("169.254.3.4")).isLinkLocal)
        #expect(try #require(IPAddress("fe80::1")).isLinkLocal)
        #expect(try #require(IPAddress("127.0.0.1")).isLoopback)
        #expect(!(try #require(IPAddress("224.0.0.251"))).isUnicast)
        #expect(!(try #require(IPAddress("ff02::fb"))).isUnicast)
    }
}
