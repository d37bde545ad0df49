// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenTypes
import AspenWire
import CAspenSystem
import Configuration
import Glibc
import ServiceKit

/// `aspen-node`: one node in the foreground, without systemd.
package struct AspenNode: ParsableCommand {
    package static let configuration = CommandConfiguration(
        commandName: "aspen-node",
        abstract: "Run one Aspen node in the foreground: its daemons, supervised, without systemd.",
        discussion: """
            Starts aspend-net, aspend-raft and aspend-gossip with the sockets they need (and aspend-egress, if DNS \
            is to be asked), restarts what dies, and prefixes their logs. SIGTERM or Ctrl-C stops all of it in order. Every option may also \
            come from the environment: --data-dir is ASPEN_DATA_DIR.

            EXAMPLE
              aspen-node --node-id 1 --cookie-file cookie --listen 127.0.0.1:7701
              aspen-cli cluster init          # in the same directory
            """,
        version: "aspen-node \(ProgramVersion.text)")

    @Option(help: "This node's number, unique in the cluster, at least 1.")
    var nodeID: UInt64?
    @Option(help: "The secret that the nodes share. Wiped from the process list at once.")
    var cookie: String?
    @Option(help: "A file that holds the cookie.")
    var cookieFile: String?
    @Option(
        help: "A file with another cookie that others may show, while the cluster changes its own.")
    var cookieAcceptedFile: String?
    @Option(help: "Where keys, log and state live (default: ./data/node-ID).")
    var dataDir: String?
    @Option(help: "'persistent' (default) or 'inmemory'.")
    var storageBackend: String?
    @Option(help: "UDP address of the QUIC endpoint (default: 127.0.0.1:7700).")
    var listen: String?
    @Option(help: "Address told to others (default: the one listened on).")
    var advertise: String?
    @Option(help: "A peer: NODE@ENDPOINT@ADDRESS, for example 2@…@127.0.0.1:7702; repeatable.")
    var peers: [String] = []
    @Option(help: "A ticket of the cluster, in place of --peers.")
    var ticket: String?
    @Option(help: "'false' lets clients in without a token; loopback addresses only.")
    var tokensRequired: String?
    @Option(help: "Milliseconds between heartbeats (500).")
    var heartbeatIntervalMs: Int?
    @Option(help: "Shortest election timeout in milliseconds (1500).")
    var electionTimeoutMinMs: Int?
    @Option(help: "Longest election timeout in milliseconds (3000).")
    var electionTimeoutMaxMs: Int?
    @Flag(
        name: .customLong("disable-mdns"),
        help: "Neither looks for nodes on the local link nor tells it of this one.")
    var disableMDNS = false
    @Flag(help: "While this node leads, nodes with the same cookie become members by themselves.")
    var autoJoin = false
    @Flag(help: "Takes no part in gossip: nodes are found in the other ways alone.")
    var disableGossip = false
    @Flag(
        name: .customLong("enable-dns-discovery"),
        help: "Asks DNS where nodes are whose endpoint id is known.")
    var enableDNSDiscovery = false
    @Option(
        name: [.customLong("dns-discovery-origin"), .customLong("dns-discovery-url")],
        help: "The domain below which DNS has them, as TXT records at _iroh.ENDPOINT.ORIGIN.")
    var dnsDiscoveryOrigin: String?
    @Option(
        name: .customLong("dns-servers"),
        help: "A name server to ask, ADDRESS:PORT; repeatable (default: those of /etc/resolv.conf)."
    )
    var dnsServers: [String] = []
    @Flag(help: "Not yet.")
    var enablePkarr = false
    @Option(help: "Directory with aspen.toml and aspen.toml.d; without it no file is read.")
    var config: String?
    @Flag(help: "Print this node's endpoint id (made on first use), then exit.")
    var printIdentity = false

    package init() {}

    package static func main() {
        // It holds the cookie; its daemons inherit the limit.
        aspen_forbid_core_files()
        let arguments = Array(CommandLine.arguments.dropFirst())
        ArgumentList.wipe(option: "--cookie")
        _ = EnvironmentSecret.cookie
        main(arguments)
    }

    package func run() throws {
        do throws(AspenError) {
            let directory = try DaemonPrograms.directory()
            if printIdentity { try execIdentity(directory) }
            let files = ServiceSettings.files(flag: config)
            if let problem = files.problems.first {
                Terminal.error("aspen-node: \(problem)")
                Glibc.exit(DaemonExit.configuration.rawValue)
            }
            let options = try resolve(files)
            var supervisor = try Supervisor(options: options, programs: directory)
            Glibc.exit(supervisor.run())
        } catch {
            Terminal.error("aspen-node: \(error.message)")
            Glibc.exit(error.code == .invalidArgument ? DaemonExit.usage.rawValue : 1)
        }
    }

    /// The identity is aspend-net's: it alone opens the key.
    private func execIdentity(_ programs: String) throws(AspenError) -> Never {
        let id = nodeID ?? Environment["ASPEN_NODE_ID"].flatMap(UInt64.init)
        let given = dataDir ?? Environment["ASPEN_DATA_DIR"]
        guard let data = given ?? id.map({ "./data/node-\($0)" }) else {
            throw AspenError(.invalidArgument, "--print-identity needs --node-id or --data-dir")
        }
        let state = "\(data)/net"
        try Directories.create(state)
        let program = "\(programs)/aspend-net"
        let words = [program, "--print-identity", "--state-dir", state]
        withCStrings(words) { _ = execv(program, $0) }
        throw AspenError(.internal, "\(program) cannot be started")
    }
}

enum Terminal {
    static func error(_ line: String) {
        let text = line + "\n"
        _ = text.withCString { write(2, $0, strlen($0)) }
    }
}

/// Calls `body` with a null-terminated array of C strings.
func withCStrings<Result>(
    _ words: [String], _ body: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> Result
) -> Result {
    var pointers = words.map { strdup($0) }
    pointers.append(nil)
    defer { pointers.forEach { free($0) } }
    return pointers.withUnsafeMutableBufferPointer { buffer in
        guard let base = buffer.baseAddress else { preconditionFailure("the array is not empty") }
        return body(base)
    }
}
