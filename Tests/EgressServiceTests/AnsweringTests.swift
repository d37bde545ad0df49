// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import DNSWire
import EgressService
import Glibc
import Testing

private let loopback = IPAddress.v4(0x7f00_0001)

@Suite struct AnsweringTests {
    private func failure(_ exchange: Exchange) throws -> AspenErrorCode? {
        let (reply, descriptor) = try exchange.receive()
        #expect(descriptor == nil)
        guard case .failed(let code, let message) = reply else { return nil }
        #expect(!message.isEmpty)
        return code
    }

    @Test func itTellsWhichServersThereAre() throws {
        let servers = [NameServer(loopback, port: 53), NameServer(.v6(1), port: 5300)]
        let exchange = try Exchange(servers: servers)
        exchange.send(frame: EgressRequest.nameServers.encoded())
        #expect(try exchange.receive().reply == .nameServers(["127.0.0.1:53", "[::1]:5300"]))
    }

    @Test func aDatagramSocketIsHandedOverConnected() throws {
        let server = try bind(AF_INET, isStream: false)
        defer { close(server.socket) }
        var ports: Set<UInt16> = []
        for _ in 0..<8 {
            let exchange = try Exchange(servers: [NameServer(loopback, port: server.port)])
            exchange.send(
                frame: EgressRequest.nameServer(place: 0, isStream: false).encoded())
            let (reply, descriptor) = try exchange.receive()
            #expect(reply == .connected(address: "127.0.0.1:\(server.port)"))
            let socket = try #require(descriptor)
            defer { close(socket) }
            #expect(send(socket, "hello", 5, 0) == 5)
            var buffer = [UInt8](repeating: 0, count: 16)
            #expect(recv(server.socket, &buffer, buffer.count, 0) == 5)
            ports.insert(try #require(port(of: socket)))
        }
        // The kernel draws them: eight alike are a fault.
        #expect(ports.count > 1)
    }

    @Test func aStreamIsHandedOverConnected() throws {
        let server = try bind(AF_INET, isStream: true)
        defer { close(server.socket) }
        let exchange = try Exchange(servers: [NameServer(loopback, port: server.port)])
        exchange.send(frame: EgressRequest.nameServer(place: 0, isStream: true).encoded())
        let (reply, descriptor) = try exchange.receive()
        #expect(reply == .connected(address: "127.0.0.1:\(server.port)"))
        let socket = try #require(descriptor)
        defer { close(socket) }
        let accepted = accept(server.socket, nil, nil)
        defer { close(accepted) }
        #expect(send(socket, "hello", 5, 0) == 5)
        var buffer = [UInt8](repeating: 0, count: 16)
        #expect(recv(accepted, &buffer, buffer.count, 0) == 5)
    }

    @Test func strangersAreRefused() throws {
        let exchange = try Exchange(
            access: EgressAccess(users: []), servers: [NameServer(loopback, port: 53)])
        exchange.send(frame: EgressRequest.nameServer(place: 0, isStream: false).encoded())
        #expect(try failure(exchange) == .permissionDenied)
    }

    @Test func hostileRequestsAreErrors() throws {
        let good = EgressRequest.nameServer(place: 0, isStream: false).encoded()
        let contents: [[UInt8]] = [
            [], [1], [2, 1], [1, 9], good + [0], [1, 2, 0, 7],
            [UInt8](repeating: 1, count: EgressLimits.requestBytesMax),
        ]
        for content in contents {
            let exchange = try Exchange(servers: [NameServer(loopback, port: 53)])
            exchange.send(frame: content)
            #expect(try failure(exchange) == .invalidArgument, "\(content)")
        }
        let long = try Exchange()
        long.send([UInt8(EgressLimits.requestBytesMax + 1), 0, 0, 0])
        #expect(try failure(long) == .invalidArgument)
        let broken = try Exchange()
        broken.send([9, 0])
        shutdown(broken.caller, CInt(SHUT_WR))
        #expect(try failure(broken) == .invalidArgument)
        let absent = try Exchange(servers: [NameServer(loopback, port: 53)])
        absent.send(frame: EgressRequest.nameServer(place: 1, isStream: false).encoded())
        #expect(try failure(absent) == .notFound)
    }

    @Test func whoAsksNothingIsNotWaitedFor() throws {
        let exchange = try Exchange(timeout: .milliseconds(50))
        exchange.send([9])
        #expect(try failure(exchange) == .deadlineExceeded)
        try exchange.wait()
    }

    @Test func aServerThatRefusesIsSaidToBeUnreachable() throws {
        let server = try bind(AF_INET, isStream: true)
        close(server.socket)
        let exchange = try Exchange(servers: [NameServer(loopback, port: server.port)])
        exchange.send(frame: EgressRequest.nameServer(place: 0, isStream: true).encoded())
        #expect(try failure(exchange) == .unavailable)
    }

    /// Its queue is full: the kernel answers nobody any more.
    private func silentServer() throws -> (server: NameServer, sockets: [CInt]) {
        let bound = try bind(AF_INET, isStream: true, backlog: 0)
        var sockets = [bound.socket]
        for _ in 0..<4 {
            let exchange = try Exchange(
                timeout: .milliseconds(100), servers: [NameServer(loopback, port: bound.port)])
            exchange.send(frame: EgressRequest.nameServer(place: 0, isStream: true).encoded())
            let (_, descriptor) = try exchange.receive()
            guard let descriptor else { break }
            sockets.append(descriptor)
        }
        return (NameServer(loopback, port: bound.port), sockets)
    }

    @Test func aServerThatIsSilentIsGivenUp() throws {
        let (server, sockets) = try silentServer()
        defer { for socket in sockets { close(socket) } }
        let exchange = try Exchange(timeout: .milliseconds(50), servers: [server])
        exchange.send(frame: EgressRequest.nameServer(place: 0, isStream: true).encoded())
        #expect(try failure(exchange) == .deadlineExceeded)
    }

    @Test func whenTheCallerGoesNobodyWaitsForTheServer() throws {
        let (server, sockets) = try silentServer()
        defer { for socket in sockets { close(socket) } }
        let exchange = try Exchange(timeout: .seconds(3600), servers: [server])
        exchange.send(frame: EgressRequest.nameServer(place: 0, isStream: true).encoded())
        shutdown(exchange.caller, CInt(SHUT_RDWR))
        try exchange.wait()
    }

    @Test func messagesSurviveTheWire() throws {
        let requests: [EgressRequest] = [
            .nameServers, .nameServer(place: 3, isStream: true),
            .nameServer(place: 0, isStream: false),
        ]
        for request in requests {
            #expect(try EgressRequest(decoding: request.encoded()) == request)
        }
        let replies: [EgressReply] = [
            .nameServers(["192.0.2.1:53", "[2001:db8::1]:53"]), .nameServers([]),
            .connected(address: "192.0.2.1:53"), .failed(code: .unavailable, message: "no"),
        ]
        for reply in replies {
            #expect(try EgressReply(decoding: reply.encoded()) == reply)
            for count in 0..<reply.encoded().count {
                #expect(throws: (any Error).self) {
                    try EgressReply(decoding: Array(reply.encoded().prefix(count)))
                }
            }
        }
        let many = (0...EgressLimits.nameServersMax).map { "192.0.2.\($0):53" }
        #expect(
            try EgressReply(decoding: EgressReply.nameServers(many).encoded())
                == .nameServers(Array(many.dropLast())))
    }
}

@Suite struct NameServerTests {
    private func parsed(_ text: String) -> [String] {
        NameServers.parse(Array(text.utf8)).map(\.text)
    }

    @Test func theResolversFileIsUnderstood() {
        #expect(
            parsed(
                """
                # nameserver 192.0.2.9
                ; nameserver 192.0.2.8
                search example.org
                nameserver 192.0.2.1
                nameserver\t2001:db8::1   # behind it
                nameserver fe80::1%eth0
                nameserver example.org
                nameserver 224.0.0.1
                nameserver
                 nameserver
                options edns0
                nameserver 192.0.2.1
                nameserver 192.0.2.3
                """) == ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"])
    }

    @Test func withoutAnyTheMachineItselfIsAsked() {
        #expect(parsed("") == ["127.0.0.1:53"])
        #expect(NameServers.ofMachine("/nowhere").map(\.text) == ["127.0.0.1:53"])
    }

    @Test func theirNumberAndTheFileAreBounded() throws {
        let lines = (1...9).map { "nameserver 192.0.2.\($0)\n" }.joined()
        #expect(parsed(lines).count == EgressLimits.nameServersMax)
        var template = Array("/tmp/aspen-resolver-XXXXXX".utf8CString)
        let file = mkstemp(&template)
        let path = String(
            decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer {
            close(file)
            unlink(path)
        }
        let filler = [UInt8](
            repeating: UInt8(ascii: "\n"), count: EgressLimits.resolverFileBytesMax)
        let text =
            Array("nameserver 192.0.2.1\n".utf8) + filler + Array("nameserver 192.0.2.2".utf8)
        #expect(write(file, text, text.count) == text.count)
        #expect(NameServers.ofMachine(path).map(\.text) == ["192.0.2.1:53"])
        // A file that has no end.
        #expect(NameServers.ofMachine("/dev/zero").map(\.text) == ["127.0.0.1:53"])
    }

    @Test func theSettingSaysWhatIsWrong() throws {
        #expect(
            try NameServers.ofSetting(["192.0.2.1:53", "[2001:db8::1]:5353"]).map(\.text)
                == ["192.0.2.1:53", "[2001:db8::1]:5353"])
        for wrong in [["192.0.2.1"], ["example.org:53"], ["0.0.0.0:53"], ["192.0.2.1:0"]] {
            #expect(throws: AspenError.self) { try NameServers.ofSetting(wrong) }
        }
        let many = (0...EgressLimits.nameServersMax).map { "192.0.2.\($0 + 1):53" }
        #expect(throws: AspenError.self) { try NameServers.ofSetting(many) }
    }
}
