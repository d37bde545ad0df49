// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenTypes
import AspenWire
import Configuration

struct SetupVerb: LocalCommand {
    static let configuration = CommandConfiguration(
        commandName: "setup", abstract: "Make this machine a node: write its configuration.",
        usage: "aspen-cli setup --node-id N [OPTIONS]",
        discussion: """
            Writes aspen.toml.d/50-setup.toml and, once, credentials/cookie, the secret that all \
            nodes of the cluster share. Without --cookie-file it makes one of 32 random bytes on the \
            first node; the others get the same: see the second example. What is not said stays as \
            an earlier setup left it.

            EXAMPLES
              sudo aspen-cli setup --node-id 1
              sudo cat /etc/aspen/credentials/cookie | \
            ssh two sudo aspen-cli setup --node-id 2 --cookie-file - --ticket aspen…
              sudo aspen-cli setup --auto-join
              sudo aspen-cli setup --listen 192.0.2.1:7700
            """)

    @OptionGroup var place: ConfigurationPlace

    @Option(help: "This node's number, unique in the cluster, at least 1.")
    var nodeId: String?

    @Option(
        help: ArgumentHelp("Take the cookie from there; '-' is standard input.", valueName: "file"))
    var cookieFile: String?

    @Option(help: "UDP port (':7700') or address and port to listen on.")
    var listen: [String] = []

    @Option(
        help: "Address and port that others dial; repeatable. Without it, those of the interfaces.")
    var advertise: [String] = []

    @Option(help: "A peer, NODE@ENDPOINT@ADDRESS:PORT; repeatable.")
    var peers: [String] = []

    @Option(help: "A ticket of the cluster, in place of peers.")
    var ticket: String?

    @Flag(help: "While this node leads, nodes with the same cookie become members by themselves.")
    var autoJoin = false

    @Flag(help: "Replace a cookie that is there already by another.")
    var force = false

    func run(_ output: Output) throws -> ExitStatus {
        if let ticket {
            do {
                _ = try Ticket(ticket)
            } catch {
                throw CommandFailure.usage(error.message)
            }
        }
        var given: [String: [String]] = [:]
        given["node-id"] = nodeId.map { [$0] }
        given["auto-join"] = autoJoin ? ["true"] : nil
        given["ticket"] = ticket.map { [$0] }
        for (name, texts) in [("listen", listen), ("advertise", advertise), ("peers", peers)]
        where !texts.isEmpty {
            given[name] = texts.flatMap { $0.split(separator: ",").map(String.init) }
        }
        let setup = Setup(directory: place.directory)
        let plan = try setup.plan(given)
        let cookie = try setup.cookie(file: cookieFile, isForced: force)
        for line in try setup.write(plan, cookie) { output.write(line + "\n") }
        output.write(Self.next(isCookieNew: cookie.isMade))
        if cookie.isShort {
            try output.flush()
            writeError(
                "aspen-cli: warning: the cookie is shorter than "
                    + "\(CookieRules.recommendedBytesMin) bytes and might be guessed; without "
                    + "--cookie-file, one of 32 random bytes is made\n")
        }
        return .done
    }

    private static func next(isCookieNew: Bool) -> String {
        var text = "\nNext:\n"
        if isCookieNew {
            text += "  on each other node, with this cookie on its standard input:\n"
            text += "    aspen-cli setup --node-id N --cookie-file -\n"
        }
        text += "  aspen-cli config check                  what is in force, and why\n"
        text += "  systemctl enable --now aspen.target     start this node\n"
        text += "  systemctl restart 'aspend-*'            if it runs already\n"
        text += "  aspen-cli cluster init                  on the first node of a new cluster\n"
        return text
    }
}
