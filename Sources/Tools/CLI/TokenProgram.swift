// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenBytes
import AspenClient
import AspenTypes
import Glibc
import TokenCore

/// `aspen-token`: makes, shows, checks and revokes capability tokens. All but `revoke` need no
/// cluster and no network.
package enum TokenProgram {
    package static func run() async -> Int32 {
        Output.occupyStandardDescriptors()
        Output.forbidCoreFiles()
        return await CommandLineProgram.run(TokenCommand.self, ArgumentBytes.ofProcess())
    }

    /// Seconds since 1970.
    static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(max(0, time.tv_sec))
    }
}

struct TokenCommand: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "aspen-token",
        abstract: "Make, show, check and revoke capability tokens.",
        discussion: """
            A token says what a client on another machine may do, until when, and for which client \
            key it was made. Its holder can pass a part of it on, never more.

            EXAMPLES
              # on the laptop
              aspen-token client-key
              # on a node, as administrator
              aspen-cli cluster trust-root $(aspen-token generate-root)
              aspen-token delegate --audience CLIENTKEY --capability 'kv:read:app/*' --lifetime 1h
              # on the laptop
              ASPEN_TICKET=… ASPEN_TOKEN=… aspen-cli kv get app/x

            CAPABILITIES
              kv:read:KEY  kv:read:PREFIX*  kv:write:KEY  kv:write:PREFIX*
              cluster:read  cluster:admin

            EXIT STATUS
              0 done                 2 usage or argument
              1 failed               4 the token does not hold
            """,
        version: "aspen-token \(programVersion)",
        subcommands: [
            TokenGenerateRoot.self, TokenClientKey.self, TokenDelegate.self, TokenInspect.self,
            TokenVerify.self, TokenRevoke.self,
        ])
}

struct TokenGenerateRoot: LocalCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate-root", abstract: "Make a root key; print its public part.",
        usage: "aspen-token generate-root [--out FILE]",
        discussion: """
            Whoever has the file can make any token that a cluster believes which trusts the key: keep \
            it where an administrator's secrets are. Without --out it is \
            ~/.config/aspen/token-root.key.

            EXAMPLES
              aspen-cli cluster trust-root $(aspen-token generate-root --out root.key)
            """)

    @Option(help: ArgumentHelp("The file to make, readable by its owner alone.", valueName: "file"))
    var out: String?

    static func defaultPath() throws(AspenError) -> String {
        let client = try ClientKey.defaultPath()
        return String(client.dropLast("client.key".count)) + "token-root.key"
    }

    func run(_ output: Output) throws -> ExitStatus {
        let path = try out ?? Self.defaultPath()
        // Its directory is made with the client's key.
        if out == nil { _ = try ClientKey.ofClient(at: try ClientKey.defaultPath()) }
        let key = ClientKey.generate()
        try key.save(as: .root, at: path)
        output.write("\(key.endpoint)\n")
        return .done
    }
}

struct TokenClientKey: LocalCommand {
    static let configuration = CommandConfiguration(
        commandName: "client-key", abstract: "Print this client's public key.",
        usage: "aspen-token client-key",
        discussion: """
            The audience of tokens for you on this machine. The key is in ~/.config/aspen/client.key, \
            and is made when there is none.

            EXAMPLES
              aspen-token client-key
            """)

    func run(_ output: Output) throws -> ExitStatus {
        let key = try ClientKey.ofClient(at: try ClientKey.defaultPath())
        output.write("\(key.endpoint)\n")
        return .done
    }
}

struct TokenDelegate: LocalCommand {
    static let configuration = CommandConfiguration(
        commandName: "delegate", abstract: "Make a token, or narrow one for somebody else.",
        usage: """
            aspen-token delegate --capability WHAT ... --lifetime TIME [--audience CLIENTKEY]
                [--not-before TIME] [--key FILE] [--from TOKEN]
            """,
        discussion: """
            Without --from it is signed by the root key in --key, and, without --audience, for your own \
            client key on this machine. With --from it passes on a part of that token, signed by its \
            holder's client key, to the --audience; it begins no earlier and ends no later than that \
            token. The lifetime counts from now, or from --not-before.

            EXAMPLES
              aspen-token delegate --key root.key --audience CLIENTKEY \\
                --capability 'kv:read:app/*' --capability 'kv:write:app/jobs/*' --lifetime 12h
              aspen-token delegate --audience CLIENTKEY --capability cluster:read \
                --not-before 2026-12-24T08:00:00Z --lifetime 8h
              aspen-token delegate --from @mine --audience CLIENTKEY \\
                --capability 'kv:read:app/x' --lifetime 10m
            """)

    @Option(help: ArgumentHelp("The signer's key.", valueName: "file"))
    var key: String?

    @Option(help: ArgumentHelp("The token to pass on.", valueName: "token|@file"))
    var from: String?

    @Option(help: ArgumentHelp("The public key of who may use it.", valueName: "client-key"))
    var audience: String?

    @Option(help: ArgumentHelp("What may be done; may be repeated.", valueName: "what"))
    var capability: [String]

    @Option(help: ArgumentHelp("How long it lives: 30s, 15m, 12h, 7d.", valueName: "time"))
    var lifetime: Lifetime

    @Option(
        help: ArgumentHelp(
            "When it begins: 10m (from now), or 2026-12-24T08:00:00Z.", valueName: "time"))
    var notBefore: StartTime?

    /// Whoever is named; else, of a token that nobody has yet, this client.
    private func holder() throws -> EndpointID {
        guard let audience else {
            guard from == nil else {
                throw CommandFailure.usage(
                    "--from passes a token on: name to whom, with --audience CLIENTKEY")
            }
            return try ClientKey.ofClient(at: try ClientKey.defaultPath()).endpoint
        }
        guard let key = EndpointID(audience) else {
            throw CommandFailure.usage(
                "--audience is a client's key, as `aspen-token client-key` prints it there")
        }
        return key
    }

    func run(_ output: Output) throws -> ExitStatus {
        let audience = try holder()
        let capabilities = try capability.map { text in
            do {
                return try Capability(parsing: text)
            } catch let error as AspenError {
                throw CommandFailure.usage(error.message)
            }
        }
        let parent = try from.map { try TokenArgument.chain($0) }
        let signer = try signer(of: parent)
        let now = TokenProgram.now()
        let limit = parent?.links.last
        let begin = max(notBefore?.time(now) ?? now, limit?.notBefore ?? 0)
        let end = min(begin + lifetime.seconds, limit?.expires ?? .max)
        guard max(begin, now) < end else {
            throw CommandFailure.usage(
                limit.map { now >= $0.expires } ?? false
                    ? "the token of --from has expired: there is nothing left to pass on"
                    : "such a token would have ended before it begins, or by now (until "
                        + "\(WallClock.text(end))): see --not-before and --lifetime")
        }
        let link = TokenLink(
            id: TokenID(UInt128.random(in: .min ... .max)), audience: audience, notBefore: begin,
            expires: end, capabilities: capabilities)
        guard let link else {
            throw CommandFailure.usage(
                "a token has 1 to \(TokenLimits.capabilitiesMax) capabilities")
        }
        let chain: TokenChain
        if let parent {
            chain = try parent.delegating(link, sign: signer.sign)
        } else {
            chain = try TokenChain(root: signer.endpoint, link, sign: signer.sign)
        }
        output.write(chain.text() + "\n")
        return .done
    }

    private func signer(of parent: TokenChain?) throws -> ClientKey {
        let path: String
        if let key {
            path = key
        } else if parent == nil {
            path = try TokenGenerateRoot.defaultPath()
        } else {
            path = try ClientKey.defaultPath()
        }
        guard let signer = try ClientKey.load(path, as: parent == nil ? .root : nil) else {
            throw CommandFailure.usage(
                "there is no key \(path): "
                    + (parent == nil
                        ? "`aspen-token generate-root` makes a root, --key names one"
                        : "a token is passed on by its holder; --key names the holder's key"))
        }
        if let parent, signer.endpoint != parent.audience {
            throw AspenError(
                .permissionDenied,
                "the token was made for \(parent.audience), and \(path) is \(signer.endpoint): only "
                    + "its holder can pass it on")
        }
        return signer
    }
}
