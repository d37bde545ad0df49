// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenBytes
import AspenClient
import AspenTypes
import Glibc
import TokenCore

struct TokenInspect: LocalCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect", abstract: "Show what a token says.",
        usage: "aspen-token inspect [TOKEN|@FILE] [--json]",
        discussion: """
            Without an argument, the token in ASPEN_TOKEN. Nothing is checked: see verify.

            EXAMPLES
              aspen-token inspect @laptop.token
            """)

    @Argument(help: "The token, or @ and a file.")
    var token: String?

    @Flag(help: "Print JSON.")
    var json = false

    var isJSON: Bool { json }

    static func given(_ token: String?) throws -> TokenChain {
        let environment = getenv("ASPEN_TOKEN").map { String(cString: $0) }
        guard let text = token ?? environment, !text.isEmpty else {
            throw CommandFailure.usage("name a token, or set ASPEN_TOKEN")
        }
        return try TokenArgument.chain(text)
    }

    func run(_ output: Output) throws -> ExitStatus {
        let chain = try Self.given(token)
        guard !json else {
            output.write(Self.json(of: chain).text + "\n")
            return .done
        }
        output.write("root        \(chain.root)\n")
        for (place, link) in chain.links.enumerated() {
            output.write("link \(place + 1)\n")
            output.write("  id        \(link.id)\n")
            output.write("  holder    \(link.audience)\n")
            output.write("  from      \(WallClock.text(link.notBefore))\n")
            output.write("  until     \(WallClock.text(link.expires))\n")
            for capability in link.capabilities { output.write("  may       \(capability)\n") }
        }
        return .done
    }

    private static func json(of chain: TokenChain) -> JSON {
        .object([
            ("root", .string(chain.root.description)),
            (
                "links",
                .array(
                    chain.links.map { link in
                        .object([
                            ("id", .string(link.id.description)),
                            ("holder", .string(link.audience.description)),
                            ("not_before", .number(link.notBefore)),
                            ("expires", .number(link.expires)),
                            (
                                "capabilities",
                                .array(link.capabilities.map { .string($0.description) })
                            ),
                        ])
                    })
            ),
        ])
    }
}

struct TokenVerify: LocalCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify", abstract: "Check a token without a cluster.",
        usage: "aspen-token verify --root KEY [TOKEN|@FILE] [--client KEY]",
        discussion: """
            Signatures, narrowing, times. Without --client, whoever it was made for. Revocations are \
            the cluster's to know. A token that does not hold is exit status 4.

            EXAMPLES
              aspen-token verify --root ROOTKEY @laptop.token
            """)

    @Option(help: ArgumentHelp("The root that is believed.", valueName: "key"))
    var root: String

    @Option(help: ArgumentHelp("The client that shows it.", valueName: "key"))
    var client: String?

    @Argument(help: "The token, or @ and a file.")
    var token: String?

    func run(_ output: Output) throws -> ExitStatus {
        guard let root = EndpointID(root) else {
            throw CommandFailure.usage("--root is a public key of 52 characters")
        }
        let chain = try TokenInspect.given(token)
        var bearer = chain.audience
        if let client {
            guard let key = EndpointID(client) else {
                throw CommandFailure.usage("--client is a public key of 52 characters")
            }
            bearer = key
        }
        do {
            let grant = try chain.verify(
                roots: [root], client: bearer, now: TokenProgram.now(), revoked: [],
                checkSignature: ClientKey.verify)
            output.write("the token holds until \(WallClock.text(grant.expires))\n")
            return .done
        } catch {
            throw AspenError(.unauthenticated, error.message)
        }
    }
}

struct TokenRevoke: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "revoke", abstract: "Make the cluster refuse a token, and all made from it.",
        usage: "aspen-token revoke TOKEN|@FILE|ID [--link N] [OPTIONS]",
        discussion: """
            For administrators. Connections that use it are closed. An ID is what `inspect` shows; \
            with a whole token, its last link is meant, or the one named.

            EXAMPLES
              aspen-token revoke @laptop.token
              aspen-token revoke @laptop.token --link 1
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The token, @ and a file, or the id of a link.")
    var what: String

    @Option(help: ArgumentHelp("Which link, counted from 1.", valueName: "n"))
    var link: Int?

    func prepare() throws { _ = try target() }

    private func target() throws -> (id: TokenID, expires: UInt64) {
        if !what.hasPrefix("@"), !what.hasPrefix(TokenChain.prefix), let id = TokenID(what) {
            return (id, 0)
        }
        let links = try TokenArgument.chain(what).links
        let number = link ?? links.count
        guard (1...links.count).contains(number) else {
            throw CommandFailure.usage("the token has the links 1 to \(links.count)")
        }
        return (links[number - 1].id, links[number - 1].expires)
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let (id, expires) = try target()
        try await context.client.revokeToken(id: id.bytes, expires: expires)
        context.output.write(
            context.isJSON
                ? JSON.object([("success", .bool(true)), ("id", .string(id.description))]).text
                    + "\n" : "\(id) is revoked\n")
        return .done
    }
}
