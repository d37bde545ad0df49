// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenBytes
import AspenClient
import AspenTypes

struct ClusterTrustRoot: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "trust-root", abstract: "Say whose capability tokens the cluster believes.",
        usage: """
            aspen-cli cluster trust-root KEY [OPTIONS]
                   aspen-cli cluster trust-root --remove KEY [OPTIONS]
                   aspen-cli cluster trust-root --list [OPTIONS]
            """,
        discussion: """
            KEY is the public key that `aspen-token generate-root` prints. With its root removed, a \
            token is refused at once, on connections that are open too.

            EXAMPLES
              aspen-cli cluster trust-root $(aspen-token generate-root)
              aspen-cli cluster trust-root --list
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The root's public key.")
    var key: String?

    @Option(help: ArgumentHelp("The key that shall no longer be believed.", valueName: "key"))
    var remove: String?

    @Flag(help: "Print the keys that are believed.")
    var list = false

    private enum Wish {
        case add(EndpointID)
        case remove(EndpointID)
        case list
    }

    func prepare() throws { _ = try wish() }

    private func wish() throws -> Wish {
        switch (key, remove, list) {
        case (let key?, nil, false): return .add(try Self.parse(key))
        case (nil, let key?, false): return .remove(try Self.parse(key))
        case (nil, nil, true): return .list
        default:
            throw CommandFailure.usage("give a key, or --remove and a key, or --list")
        }
    }

    private static func parse(_ text: String) throws -> EndpointID {
        guard let key = EndpointID(text) else {
            throw CommandFailure.usage(
                "a root's key has 52 characters of base 32, as `aspen-token generate-root` prints it"
            )
        }
        return key
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        switch try wish() {
        case .add(let root):
            let isNew = try await context.client.addTokenRoot(root)
            say(context, root, isNew ? "is trusted now" : "was trusted already", isNew)
        case .remove(let root):
            guard try await context.client.removeTokenRoot(root) else {
                throw AspenError(
                    .notFound,
                    "\(root) was not trusted: `aspen-cli cluster trust-root --list` shows what is")
            }
            say(context, root, "is trusted no more", true)
        case .list:
            let roots = try await context.client.tokenRoots()
            if context.isJSON {
                let names = roots.map { JSON.string($0.description) }
                context.output.write(JSON.object([("roots", .array(names))]).text + "\n")
            } else {
                for root in roots { context.output.write("\(root)\n") }
            }
        }
        return .done
    }

    private func say(
        _ context: CommandContext, _ root: EndpointID, _ what: String, _ isChanged: Bool
    ) {
        context.output.write(
            context.isJSON
                ? JSON.object([
                    ("success", .bool(true)), ("root", .string(root.description)),
                    ("changed", .bool(isChanged)),
                ]).text + "\n" : "root \(root) \(what)\n")
    }
}
