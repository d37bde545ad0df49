// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOCore
import QUIC
import ServiceKit
import Testing

@testable import NetService

@Suite struct IdentityTests {
    @Test func theKeyIsMadeOnceForItsOwnerAlone() throws {
        let scratch = Scratch()
        let first = try IdentityFile.loadOrCreate(stateDirectory: scratch.path)
        let second = try IdentityFile.loadOrCreate(stateDirectory: scratch.path)
        #expect(first.endpoint == second.endpoint)
        var status = stat()
        #expect(stat("\(scratch.path)/identity.key", &status) == 0)
        #expect(status.st_mode & 0o777 == 0o600)
        #expect(try names(scratch) == ["identity.key"], "nothing is left over")
    }

    private func names(_ scratch: Scratch) throws -> [String] {
        let folder = try #require(opendir(scratch.path))
        defer { closedir(folder) }
        var names: [String] = []
        while let entry = readdir(folder) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    private func code(_ path: String) -> AspenErrorCode? {
        do {
            _ = try IdentityFile.loadOrCreate(stateDirectory: path)
            return nil
        } catch {
            return error.code
        }
    }

    @Test func aKeyThatOthersCanReadIsRefused() throws {
        let scratch = Scratch()
        _ = try IdentityFile.loadOrCreate(stateDirectory: scratch.path)
        for mode: mode_t in [0o640, 0o604, 0o660] {
            chmod("\(scratch.path)/identity.key", mode)
            #expect(code(scratch.path) == .permissionDenied)
        }
        chmod("\(scratch.path)/identity.key", 0o600)
        #expect(code(scratch.path) == nil)
    }

    @Test func aDamagedKeyIsRefusedUnlessOneBitMendsIt() throws {
        let scratch = Scratch()
        let path = "\(scratch.path)/identity.key"
        let key = try IdentityFile.loadOrCreate(stateDirectory: scratch.path)
        var bytes = [UInt8](repeating: 0, count: 4096)
        let descriptor = open(path, O_RDWR)
        defer { close(descriptor) }
        let count = pread(descriptor, &bytes, bytes.count, 0)
        let whole = Array(bytes.prefix(count))
        for place in whole.indices.dropLast() {
            var damaged = whole
            damaged[place] ^= 1
            #expect(pwrite(descriptor, damaged, count, 0) == count)
            let mended = try IdentityFile.loadOrCreate(stateDirectory: scratch.path)
            #expect(mended.endpoint == key.endpoint, "byte \(place)")
            damaged[place == 0 ? 1 : 0] ^= 4
            #expect(pwrite(descriptor, damaged, count, 0) == count)
            #expect(code(scratch.path) == .corrupt, "byte \(place)")
        }
        #expect(ftruncate(descriptor, 0) == 0)
        #expect(code(scratch.path) == .corrupt)
    }

    @Test func withoutADirectoryTheReasonIsTold() {
        #expect(code("/nonexistent/aspen") == .storage)
    }
}

@Suite struct SettingsTests {
    private func settings(_ arguments: String...) throws -> NetSettings {
        try NetSettings(
            ServiceSettings(
                arguments: ["--state-dir", "/s"] + arguments, known: NetSettings.known))
    }

    private func message(_ body: () throws -> Void) -> String? {
        do {
            try body()
            return nil
        } catch let error as AspenError {
            return DaemonExit(error) == .configuration ? error.message : nil
        } catch {
            return nil
        }
    }

    @Test func peersAreNodeEndpointAndAddresses() throws {
        let key = NodeKey.generate().endpoint
        let text = "2@\(key)@127.0.0.1:7002@[::1]:7003"
        let peer = try #require(try settings("--peers", text).peers.first)
        #expect(peer.node == NodeID(2))
        #expect(peer.peer == NetPeer(endpoint: key, addresses: ["127.0.0.1:7002", "[::1]:7003"]))
        for wrong in [
            "", "2", "\(key)", "0@\(key)", "x@\(key)", "2@abc", "2@\(key)@host:1",
            "2@\(key)@127.0.0.1", "2@\(key)@127.0.0.1:0", "2@\(key)@::1:7", "2@\(key)@",
        ] {
            let text = message { _ = try settings("--peers", wrong) }
            #expect(text?.contains("--peers") == true, "\(wrong): \(text ?? "accepted")")
        }
    }

    @Test func aTicketNamesPeersWithoutNumbers() throws {
        let key = NodeKey.generate().endpoint
        let ticket = Ticket(
            cluster: ClusterID(7),
            endpoints: [Ticket.Endpoint(endpoint: key, addresses: ["127.0.0.1:1"])])
        let both = try settings("--ticket", ticket.encoded(), "--peers", "3@\(key)@127.0.0.1:2")
        #expect(both.peers.count == 1, "a peer that is named twice is one peer")
        #expect(both.peers.first?.node == NodeID(3))
        #expect(both.peers.first?.peer.addresses == ["127.0.0.1:2", "127.0.0.1:1"])
        let scratch = Scratch()
        mkdir("\(scratch.path)/peers.d", 0o700)
        let file = "\(scratch.path)/peers.d/one"
        defer {
            unlink(file)
            rmdir("\(scratch.path)/peers.d")
        }
        let stream = try #require(fopen(file, "w"))
        fputs("4@\(key)\n\(ticket.encoded())\n", stream)
        fclose(stream)
        let inFile = try settings("--config", scratch.path)
        #expect(inFile.peers.map(\.node) == [NodeID(4)])
        #expect(inFile.peers.first?.peer.addresses == ["127.0.0.1:1"])
        let alone = try settings("--ticket", ticket.encoded())
        #expect(
            alone.peers == [
                ConfiguredPeer(
                    node: nil, peer: NetPeer(endpoint: key, addresses: ["127.0.0.1:1"]))
            ])
    }

    @Test func addressesHaveOneText() throws {
        for (host, text) in [
            ("192.0.2.1", "192.0.2.1:7"), ("::ffff:192.0.2.1", "192.0.2.1:7"),
            ("2001:db8::1", "[2001:db8::1]:7"),
        ] {
            #expect(NetAddress.text(try SocketAddress(ipAddress: host, port: 7)) == text)
        }
        #expect(NetAddress.text(nil) == "unknown")
    }

    @Test func withoutTokensOnlyTheLoopbackInterfaceWillDo() throws {
        let outside = try SocketAddress(ipAddress: "192.0.2.1", port: 7)
        let open = try settings("--tokens-required", "false")
        let text = message { _ = try open.addresses(boundTo: outside) }
        #expect(text?.contains("loopback") == true)
        for wildcard in ["0.0.0.0", "::"] {
            let address = try SocketAddress(ipAddress: wildcard, port: 7)
            #expect(message { _ = try open.addresses(boundTo: address) } != nil)
        }
        for loopback in ["127.0.0.1", "127.3.2.1", "::1"] {
            let address = try SocketAddress(ipAddress: loopback, port: 7)
            #expect(throws: Never.self) { try open.addresses(boundTo: address) }
        }
        #expect(try settings().addresses(boundTo: outside) == ["192.0.2.1:7"])
    }

    @Test func boundToEveryAddressANodeLeavesItToItsInterfacesWhatItAdvertises() throws {
        let any = try SocketAddress(ipAddress: "::", port: 7)
        #expect(try settings().addresses(boundTo: any) == [])
        let told = try settings("--advertise", "192.0.2.1:7", "--advertise", "[2001:db8::1]:7")
        #expect(try told.addresses(boundTo: any) == ["192.0.2.1:7", "[2001:db8::1]:7"])
    }

    @Test func aMissingOrPublishedCookieIsRefusedAndAShortOneWarnedAbout() throws {
        for bad in [nil, "", "aspen-cookie", "aspen-cookie-UNSAFE-CHANGE-ME", "changeme"] {
            let text = message { _ = try CookieRule.check(bad.map { Secret(Array($0.utf8)) }) }
            #expect(text?.contains("aspen-cli setup") == true, "\(bad ?? "none")")
        }
        let large = [UInt8](repeating: 5, count: 4097)
        #expect(message { _ = try CookieRule.check(Secret(large)) }?.contains("over 4096") == true)
        #expect(try CookieRule.check(Secret(Array("my-cluster".utf8))) != nil)
        #expect(try CookieRule.check(Secret([UInt8](repeating: 5, count: 32))) == nil)
    }
}

@Suite struct AccessTests {
    private let table = AccessTable(
        daemons: [101: .raft, 102: .blob], owner: 100, adminGroup: 50, userGroup: 60)

    private func role(_ uid: uid_t, _ groups: [gid_t] = []) -> LocalRole {
        var peer = LocalPeer(descriptor: Sockets.pair().0)
        peer?.uid = uid
        peer?.gid = 999
        peer?.groups = groups
        return peer.map { table.role(of: $0) } ?? .stranger
    }

    @Test func rolesFollowUsersAndGroups() {
        #expect(role(100) == .owner)
        #expect(role(101) == .daemon(.raft))
        #expect(role(102) == .daemon(.blob))
        #expect(role(0) == .admin)
        #expect(role(1000, [50]) == .admin)
        #expect(role(1000, [60]) == .user)
        #expect(role(1000, [61]) == .stranger)
    }

    @Test func theTableOfWhoMayDoWhat() throws {
        let peer = NodeKey.generate().endpoint
        let requests: [(NetRequest, allowed: [LocalRole])] = [
            (.identify, [.owner, .daemon(.raft), .daemon(.blob), .daemon(.gossip), .admin, .user]),
            (.subscribe, [.owner, .daemon(.raft), .daemon(.blob), .daemon(.gossip)]),
            (.setPeers(peers: [], isClosed: true), [.owner, .daemon(.raft)]),
            (
                .openStream(endpoint: peer, alpn: .raft, service: .raft), [.owner, .daemon(.raft)]
            ),
            (
                .openStream(endpoint: peer, alpn: .client, service: .raft),
                [.owner, .daemon(.raft), .admin, .user]
            ),
            (
                .openStream(endpoint: peer, alpn: .blob, service: .blob), [.owner, .daemon(.blob)]
            ),
            (
                .openStream(endpoint: peer, alpn: .gossip, service: .gossip),
                [.owner, .daemon(.gossip)]
            ),
            (.learned(peers: []), [.owner, .daemon(.gossip)]),
            (.members([]), [.owner, .daemon(.raft)]),
            (.listConnections, [.owner, .daemon(.gossip)]),
            (.located(addresses: []), [.owner, .daemon(.gossip)]),
            (.gossipSetup, [.owner, .daemon(.gossip)]),
            (.listLearned, [.owner, .daemon(.gossip), .daemon(.raft)]),
            (.sign(context: "raft", bytes: []), [.owner, .daemon(.raft)]),
            (.sign(context: "blob", bytes: []), [.owner, .daemon(.blob)]),
            (.sign(context: "TLS 1.3, server CertificateVerify", bytes: []), []),
        ]
        let roles: [LocalRole] = [
            .owner, .daemon(.raft), .daemon(.blob), .daemon(.gossip), .admin, .user, .stranger,
        ]
        for (request, allowed) in requests {
            for role in roles {
                let refusal = table.refusal(of: request, to: role)
                #expect((refusal == nil) == allowed.contains(role), "\(role): \(request)")
            }
        }
    }
}

@Suite struct EdgeLogTests {
    @Test func aFloodOfCulpritsMakesFewLines() {
        let book = LogBook()
        var log = EdgeLog(logger: book.logger("edge"))
        let start = NIODeadline.now()
        for number in 0..<10_000 { log.warning("no", culprit: "\(number)", now: start) }
        #expect(book.all.count == 20)
        for _ in 0..<100 { log.warning("no", culprit: "0", now: start + .minutes(2)) }
        #expect(book.all.count == 20, "the same culprit is no news")
        log.warning("no", culprit: "new", now: start + .minutes(2))
        #expect(book.count("more of this") == 1)
    }
}
