// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenBytes
import AspenClient
import AspenTypes
import Configuration
import Glibc

/// `aspen-cli peers dns-record`: what to publish in DNS, so that others find the node there.
struct PeersDNSRecord: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "dns-record",
        abstract: "Print the DNS records by which other nodes find the node asked.",
        usage: "aspen-cli peers dns-record [--origin DOMAIN] [--ttl SECONDS] [OPTIONS]",
        discussion: """
            Lines of a zone file, one for each address: put them into the zone of the origin. Nodes with \
            enable_dns_discovery and the same dns_discovery_origin then need to know no more of the \
            node than its endpoint id. The records hold no secret.

            EXAMPLES
              aspen-cli peers dns-record --origin nodes.example.org >>zone
              dig +short TXT "$(aspen-cli peers dns-record | cut -d' ' -f1 | head -n 1)"
            """)

    @Option(
        help: ArgumentHelp(
            "The domain below which the record is to be (default: dns_discovery_origin).",
            valueName: "domain"))
    var origin: String?

    @Option(help: "Seconds for which others may keep it.")
    var ttl: UInt32 = 300

    @OptionGroup var global: GlobalOptions

    private static let ttlMax: UInt32 = 86_400

    func validate() throws {
        guard (1...Self.ttlMax).contains(ttl) else {
            throw ValidationError("--ttl is 1 to \(Self.ttlMax) seconds, not \(ttl)")
        }
        if let origin, let complaint = TextFormat.domainName.complaint(about: origin) {
            throw ValidationError("--origin '\(origin)' \(complaint)")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        guard let origin = origin ?? Self.configuredOrigin else {
            throw CommandFailure.usage(
                "say with --origin below which domain the record is to be, or set dns_discovery_origin in "
                    + "aspen.toml")
        }
        let node = try await context.identifiedNode()
        guard let endpoint = EndpointID(node.endpointID) else {
            throw AspenError(.unsupportedVersion, "the node calls itself '\(node.endpointID)'")
        }
        guard !node.addresses.isEmpty else {
            throw AspenError(
                .unavailable,
                "no address of this node is known yet: set node.advertise, or ask again",
                retry: .safe)
        }
        let domain = origin.hasSuffix(".") ? String(origin.dropLast()) : origin
        let name = "_iroh.\(ZBase32.encode(endpoint.bytes)).\(domain)."
        if context.isJSON {
            let json = JSON.object([
                ("name", .string(name)), ("type", .string("TXT")), ("ttl", .number(UInt64(ttl))),
                ("values", .array(node.addresses.map { .string("addr=\($0)") })),
            ])
            context.output.write(json.text + "\n")
        } else {
            for address in node.addresses {
                context.output.write("\(name) \(ttl) IN TXT \"addr=\(address)\"\n")
            }
        }
        return .done
    }

    /// As the environment or this machine's files say.
    private static var configuredOrigin: String? {
        let environment: (String) -> String? = { getenv($0).map { String(cString: $0) } }
        let files = ConfigurationFiles(
            directory: environment("ASPEN_CONFIG_DIR") ?? ConfigurationFiles.standardDirectory)
        let settings = EffectiveSettings(environment: environment, files: files)
        return settings["dns-discovery-origin"]?.value?.texts.first
    }
}
