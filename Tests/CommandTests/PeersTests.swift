// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import FakeRaftServer
import GossipCore
import Testing

@testable import AspenCLI

/// `peers list` and `why peer`, where the manual's page does not reach: a daemon that misbehaves, and
/// each reason that there is.
@Suite struct PeersTests {
    private static func run(
        _ answer: FakeGossipServer.Answer, _ command: String
    ) async throws -> (lines: [String], status: Int32) {
        let raft = FakeRaftServer()
        try await raft.start()
        let gossip = FakeGossipServer(beside: raft.path, answer: answer)
        try await gossip.start()
        let shell = Shell(socket: raft.path)
        let (bytes, status) = try await shell.run(command)
        try await shell.remove()
        await gossip.stop()
        await raft.stop()
        return (ManualTests.lines(bytes), status)
    }

    @Test func whoeverKnowsNobodySaysSo() async throws {
        let table = try await Self.run(.reply(.peers([])), "aspen-cli peers list")
        #expect(table.lines == ["aspen-cli: no peers"])
        #expect(table.status == 0)
        let json = try await Self.run(.reply(.peers([])), "aspen-cli peers list --json")
        #expect(json.lines == [#"{"peers":[]}"#])
    }

    @Test(arguments: [
        (FakeGossipServer.Answer.hangUp, "(UNAVAILABLE)", Int32(6)),
        (.garbage, "(UNSUPPORTED_VERSION)", 1),
        (.reply(.discovered([])), "(INTERNAL)", 1),
        (.reply(.failed(code: .permissionDenied, message: "not you")), "(PERMISSION_DENIED)", 4),
        (.reply(.failed(code: .unavailable, message: "not now")), "(UNAVAILABLE)", 6),
    ])
    func whatTheDaemonDoesWrongIsSaid(
        answer: FakeGossipServer.Answer, code: String, expected: Int32
    ) async throws {
        let (lines, status) = try await Self.run(answer, "aspen-cli peers list")
        #expect(lines.count == 1)
        #expect(lines.first?.hasSuffix(code) == true, "\(lines)")
        #expect(status == expected)
    }

    @Test func aDaemonThatIsSilentIsGivenUpInTime() async throws {
        let (lines, status) = try await Self.run(.silence, "aspen-cli peers list --timeout 50ms")
        #expect(lines.first?.hasSuffix("(DEADLINE_EXCEEDED)") == true, "\(lines)")
        #expect(status == 6)
    }

    /// What another node says of itself does not move the cursor.
    @Test func whatPeersSayIsPrintedOnOneLine() async throws {
        var peer = try #require(PeerLine.examples.first)
        peer.version = "1\u{1b}[2J\n2"
        peer.reason = "\u{1b}[2J\nno"
        let answer = FakeGossipServer.Answer.reply(.peers([peer]))
        let table = try await Self.run(answer, "aspen-cli peers list")
        #expect(table.lines.count == 2)
        #expect(table.lines.last?.hasSuffix(#"1\u{1b}[2J\n2"#) == true, "\(table.lines)")
        let why = try await Self.run(
            answer, "aspen-cli why peer \(peer.endpoint)")
        #expect(why.lines.count == 1, "\(why.lines)")
    }

    /// A number that two nodes were given shows in both.
    @Test func allNodesWithTheNumberAreExplained() async throws {
        var peers = PeerLine.examples
        for place in peers.indices { peers[place].node = NodeID(2) }
        let (lines, status) = try await Self.run(.reply(.peers(peers)), "aspen-cli why peer 2")
        #expect(lines.count == peers.count)
        #expect(status == 0)
    }

    @Test(arguments: [
        DisconnectionReason.neverSeen, .noAddress, .wrongCookie,
        .refusedKey(address: "192.0.2.1:7700"), .unreachable(address: "192.0.2.1:7700"),
        .version("9.9.9"), .clock, .gone, .shunned(.flooding), .shunned(.forged),
        .shunned(.malformed),
    ])
    func eachReasonComesWithWhatToDo(reason: DisconnectionReason) throws {
        // A new reason does not compile here until somebody has thought of its advice.
        let words =
            switch reason {
            case .neverSeen, .noAddress: "--peers"
            case .wrongCookie: "set the same cookie"
            case .refusedKey: "cluster endpoint"
            case .unreachable: "firewall"
            case .version: "same version"
            case .clock: "time server"
            case .gone: "is it running"
            case .shunned: "one of yours"
            }
        let advice = try #require(PeerLine.advice(on: reason.text), "\(reason.text)")
        #expect(advice.contains(words))
    }

    @Test func otherReasonsAreSaidAsTheyAre() {
        #expect(PeerLine.advice(on: "it does not like us") == nil)
    }

    @Test(
        arguments: [
            (0, "0 µs"), (999, "999 µs"), (1000, "1.0 ms"), (9999, "9.9 ms"), (10_000, "10 ms"),
            (.max, "18446744073709551 ms"),
        ] as [(UInt64, String)])
    func roundTrips(microseconds: UInt64, text: String) {
        #expect(Display.time(microseconds: microseconds) == text)
    }

    @Test(
        arguments: [
            (999, "now"), (1000, "1s ago"), (59_999, "59s ago"), (60_000, "1m ago"),
            (3_600_000, "1h ago"), (172_800_000, "2d ago"),
        ] as [(UInt64, String)])
    func ages(milliseconds: UInt64, text: String) {
        #expect(Display.ago(milliseconds: milliseconds) == text)
    }

    @Test func peersAreNamedByNumberOrEndpoint() {
        let endpoint = PeerLine.examples[0].endpoint.description
        for word in ["7", endpoint, endpoint.uppercased(), endpoint.prefix(10) + "…"] {
            #expect(PeerName(argument: word) != nil, "\(word)")
        }
        for word in ["0", "-1", "", "node-1", "abcdefghi", "abcdefghi1", endpoint + "a"] {
            #expect(PeerName(argument: word) == nil, "\(word)")
        }
    }
}
