// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenTypes
import CAspenSystem
import Configuration
import Glibc
import ServiceKit

/// What `aspen-node` is asked to run. Each option is also an environment variable
/// (`--data-dir`: ASPEN_DATA_DIR); flags go before the environment, and that before the files of
/// `--config`. The daemons get the outcome as environment and read no files themselves.
struct NodeOptions {
    var nodeID: UInt64
    var dataDirectory: String
    var cookie: [UInt8]
    /// Empty: none besides `cookie`.
    var acceptedCookie: [UInt8]
    var listenHost: String
    var listenPort: UInt16
    var isMDNSDisabled: Bool
    /// Something has to be asked outside: aspend-egress runs.
    var needsEgress: Bool
    /// Passed on to the daemons as environment.
    var settings: [String: String]
}

extension AspenNode {
    /// Joins flags, environment, files and defaults.
    func resolve(_ files: ConfigurationFiles) throws(AspenError) -> NodeOptions {
        func setting(_ name: String) -> String? {
            self.setting(name) ?? files.values[name]?.last?.value.texts.joined(separator: ",")
        }
        guard let id = nodeID ?? setting("node-id").flatMap(UInt64.init), id > 0 else {
            throw AspenError(
                .invalidArgument,
                "a node needs a number that no other node of the cluster has: --node-id 1 (or "
                    + "ASPEN_NODE_ID), at least 1")
        }
        let backend = storageBackend ?? setting("storage-backend") ?? "persistent"
        guard ["persistent", "inmemory", "redb"].contains(backend) else {
            throw AspenError(
                .invalidArgument,
                "--storage-backend is 'persistent' or 'inmemory', not '\(backend)'")
        }
        let (host, port) = try Self.parseListen(listen ?? setting("listen") ?? "127.0.0.1:7700")
        var settings = ["ASPEN_NODE_ID": String(id), "ASPEN_STORAGE_BACKEND": backend]
        let peers = peers.isEmpty ? setting("peers") : peers.joined(separator: ",")
        let inFiles = files.peers.flatMap(\.value.texts)
        let all = (peers.map { [$0] } ?? []) + inFiles
        settings["ASPEN_PEERS"] = all.isEmpty ? nil : all.joined(separator: ",")
        settings["ASPEN_TICKET"] = ticket ?? setting("ticket")
        settings["ASPEN_ADVERTISE"] = advertise ?? setting("advertise")
        settings["ASPEN_TOKENS_REQUIRED"] = tokensRequired ?? setting("tokens-required")
        settings["ASPEN_HEARTBEAT_INTERVAL_MS"] =
            heartbeatIntervalMs.map(String.init) ?? setting("heartbeat-interval-ms")
        settings["ASPEN_ELECTION_TIMEOUT_MIN_MS"] =
            electionTimeoutMinMs.map(String.init) ?? setting("election-timeout-min-ms")
        settings["ASPEN_ELECTION_TIMEOUT_MAX_MS"] =
            electionTimeoutMaxMs.map(String.init) ?? setting("election-timeout-max-ms")
        let isMDNSDisabled = try isSwitched(on: disableMDNS, "disable-mdns", setting)
        settings["ASPEN_DISABLE_MDNS"] = isMDNSDisabled ? "true" : "false"
        let isGossipDisabled = try isSwitched(on: disableGossip, "disable-gossip", setting)
        settings["ASPEN_DISABLE_GOSSIP"] = isGossipDisabled ? "true" : "false"
        let isDNSEnabled = try isSwitched(
            on: enableDNSDiscovery, "enable-dns-discovery", setting)
        settings["ASPEN_ENABLE_DNS_DISCOVERY"] = isDNSEnabled ? "true" : "false"
        let origin = dnsDiscoveryOrigin ?? setting("dns-discovery-origin")
        settings["ASPEN_DNS_DISCOVERY_ORIGIN"] = origin
        settings["ASPEN_DNS_SERVERS"] =
            dnsServers.isEmpty ? setting("dns-servers") : dnsServers.joined(separator: ",")
        if try isSwitched(on: enablePkarr, "enable-pkarr", setting) {
            throw AspenError(
                .invalidArgument,
                "--enable-pkarr (ASPEN_ENABLE_PKARR): not yet. Nodes are found by multicast DNS, gossip, "
                    + "DNS (--enable-dns-discovery), --peers and --ticket")
        }
        if isDNSEnabled, origin == nil {
            throw AspenError(
                .invalidArgument,
                "--enable-dns-discovery needs --dns-discovery-origin (ASPEN_DNS_DISCOVERY_ORIGIN): the "
                    + "domain below which the nodes' records are")
        }
        settings["ASPEN_AUTO_JOIN"] =
            try isSwitched(on: autoJoin, "auto-join", setting) ? "true" : "false"
        settings["ASPEN_LOG_LEVEL"] = setting("log-level")
        settings["ASPEN_LOG_TAIL_ENTRIES"] = setting("log-tail-entries")
        settings["ASPEN_HISTORY_REVISIONS"] = setting("history-revisions")
        settings["ASPEN_HISTORY_BYTES_MAX"] = setting("history-bytes-max")
        return NodeOptions(
            nodeID: id, dataDirectory: dataDir ?? setting("data-dir") ?? "./data/node-\(id)",
            cookie: try readCookie(),
            acceptedCookie: try (cookieAcceptedFile ?? setting("cookie-accepted-file")).map {
                path throws(AspenError) in try Self.readSecret(path)
            } ?? [], listenHost: host, listenPort: port,
            isMDNSDisabled: isMDNSDisabled, needsEgress: isDNSEnabled, settings: settings)
    }

    /// What a switch says: the flag, else the variable or the files.
    private func isSwitched(
        on flag: Bool, _ name: String, _ setting: (String) -> String?
    ) throws(AspenError) -> Bool {
        if flag { return true }
        switch setting(name) {
        case nil, "false", "0", "no", "off": return false
        case "true", "1", "yes", "on": return true
        case let text?:
            throw AspenError(
                .invalidArgument,
                "--\(name) (\(ServiceSettings.variable(for: name))) is true or false, not '\(text)'"
            )
        }
    }

    private func setting(_ name: String) -> String? {
        Environment.nonEmpty(ServiceSettings.variable(for: name))
    }

    static func parseListen(_ text: String) throws(AspenError) -> (String, UInt16) {
        let problem = AspenError(
            .invalidArgument,
            "--listen is one numeric address and a UDP port, as 127.0.0.1:7700 or [::1]:7700, "
                + "not '\(text)'")
        // A port alone, as the files may have it: every address.
        if let address = ListenAddress(text), address.host == nil {
            return ("0.0.0.0", address.port)
        }
        guard let colon = text.lastIndex(of: ":"),
            let port = UInt16(text[text.index(after: colon)...])
        else { throw problem }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        guard isNumeric(host) else { throw problem }
        return (host, port)
    }

    /// Whether it is an address and no name: nothing is looked up. A link-local one may have a scope.
    private static func isNumeric(_ host: String) -> Bool {
        var address = in6_addr()
        let plain = String(host.prefix { $0 != "%" })
        return inet_pton(AF_INET, host, &address) == 1 || inet_pton(AF_INET6, plain, &address) == 1
    }

    private func readCookie() throws(AspenError) -> [UInt8] {
        var bytes: [UInt8]
        if let path = cookieFile ?? setting("cookie-file") {
            bytes = try Self.readSecret(path)
        } else {
            bytes = Array((cookie ?? EnvironmentSecret.cookie ?? "").utf8)
        }
        if bytes.last == UInt8(ascii: "\n") { bytes.removeLast() }
        guard !bytes.isEmpty, bytes != Array("aspen-cookie".utf8) else {
            throw AspenError(
                .invalidArgument,
                "a node needs the cluster's cookie, a secret of your own that all its nodes share: "
                    + "--cookie-file FILE (or --cookie, ASPEN_COOKIE). To make one: "
                    + "head -c 32 /dev/urandom | base64 > cookie")
        }
        return bytes
    }

    private static func readSecret(_ path: String) throws(AspenError) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw AspenError(
                .invalidArgument,
                "the cookie file '\(path)' cannot be opened: \(String(cString: strerror(errno)))")
        }
        defer { close(descriptor) }
        var buffer = [UInt8](repeating: 0, count: Secret.bytesMax + 1)
        let count = read(descriptor, &buffer, buffer.count)
        guard count >= 0 else {
            throw AspenError(
                .invalidArgument,
                "the cookie file '\(path)' cannot be read: \(String(cString: strerror(errno)))")
        }
        guard count <= Secret.bytesMax else {
            throw AspenError(.invalidArgument, "the cookie file is over \(Secret.bytesMax) bytes")
        }
        return Array(buffer.prefix(count))
    }
}

/// The cookie, if it comes by the environment: overwritten there and taken away as soon as somebody
/// asks for it, so that neither the process list nor a child shows it.
enum EnvironmentSecret {
    static let cookie: String? = {
        let name = ServiceSettings.variable(for: "cookie")
        let value = Environment.nonEmpty(name)
        aspen_wipe_environment(name)
        return value
    }()
}

/// Overwrites the cookie in this process's own argument list, before anything else happens.
enum ArgumentList {
    static func wipe(option: String) {
        let arguments = CommandLine.unsafeArgv
        for index in 1..<max(1, Int(CommandLine.argc)) {
            guard let argument = arguments[index] else { continue }
            let text = String(cString: argument)
            if text == option, index + 1 < Int(CommandLine.argc) {
                wipe(index + 1)
            } else if text.hasPrefix(option + "=") {
                wipe(index)
            }
        }
    }

    private static func wipe(_ index: Int) {
        aspen_wipe_argument(CommandLine.unsafeArgv, CInt(index))
    }
}
