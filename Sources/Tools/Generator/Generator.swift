// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Configuration
import Glibc

/// `aspen-generator NORMAL-DIR EARLY-DIR LATE-DIR`, which systemd calls before it loads units
/// (systemd.generator(7)): renders `node.listen` into a drop-in of the UDP socket.
///
/// It never fails a boot: what it cannot read it says, and renders nothing. It needs the root file
/// system alone; nothing else is mounted yet.
package enum Generator {
    package static let unit = "aspend-net-quic.socket"
    package static let dropInName = "50-listen.conf"

    /// What `--version` and `--help` print, and nothing else to do; nil when neither was asked for.
    package static func answer(to arguments: [String]) -> String? {
        if arguments == ["--version"] { return "aspen-generator \(ProgramVersion.text)\n" }
        guard arguments == ["--help"] || arguments == ["-h"] else { return nil }
        return """
            aspen-generator \(ProgramVersion.text): renders node.listen of aspen.toml for systemd.

            Usage: aspen-generator NORMAL-DIR EARLY-DIR LATE-DIR

            systemd calls it before it loads units. Writes \(unit).d/\(dropInName) in NORMAL-DIR.

            Flags:
              --version
                  Print name and version, and exit.
              --help
                  Print this, and exit.

            """
    }

    /// - Returns: the exit status, 0 whatever happened but for a wrong call.
    package static func run(
        _ arguments: [String], environment: (String) -> String?, say: (String) -> Void
    ) -> CInt {
        guard arguments.count == 3 else {
            say("usage: aspen-generator NORMAL-DIR EARLY-DIR LATE-DIR; systemd calls it")
            return 1
        }
        // Users' own systemd looks for generators elsewhere; but should it find this one, the node
        // is not its business.
        if environment("SYSTEMD_SCOPE") == "user" { return 0 }
        let named = environment("ASPEN_CONFIG_DIR") ?? ""
        let files = ConfigurationFiles(
            directory: named.isEmpty ? ConfigurationFiles.standardDirectory : named)
        for problem in files.problems { say("\(problem)") }
        // An error elsewhere in the files is the daemons' to refuse: with the right socket, mending
        // it does not take a restart of the socket.
        let isInDoubt = files.problems.contains {
            $0.kind == .unreadable || $0.kind == .syntax || $0.path == nil
                || $0.path == "node.listen" || $0.path == "node"
        }
        if isInDoubt {
            say("no drop-in for \(unit): its own ListenDatagram= holds")
            return 0
        }
        guard let found = files.values["listen"]?.last else { return 0 }
        let addresses = found.value.texts.compactMap { ListenAddress($0) }
        guard !addresses.isEmpty else { return 0 }
        do throws(AtomicFile.Failure) {
            let directory = "\(arguments[0])/\(unit).d"
            try AtomicFile.makeDirectory(directory, mode: 0o755)
            try AtomicFile.write(
                Array(dropIn(addresses, from: found.origin).utf8), to: "\(directory)/\(dropInName)",
                mode: 0o644)
        } catch {
            say(error.text)
        }
        return 0
    }

    package static func dropIn(_ addresses: [ListenAddress], from origin: Origin) -> String {
        var text = """
            # Rendered by aspen-generator from node.listen (\(origin)).
            [Socket]
            ListenDatagram=

            """
        var rendered: [String] = []
        for address in addresses where !rendered.contains(address.systemd) {
            rendered.append(address.systemd)
            text += "ListenDatagram=\(address.systemd)\n"
        }
        // An address that comes up later than this socket can be bound all the same.
        if addresses.contains(where: { !$0.isWildcard }) { text += "FreeBind=yes\n" }
        return text
    }

    /// To the kernel's log when systemd calls, as there may be no journal yet; else to stderr.
    package static func log(_ line: String) {
        let isBoot = getenv("SYSTEMD_SCOPE") != nil
        let kernel = isBoot ? open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY) : -1
        defer { if kernel >= 0 { close(kernel) } }
        let text = (kernel >= 0 ? "<3>" : "") + "aspen-generator: \(line)\n"
        _ = text.withCString { write(kernel >= 0 ? kernel : 2, $0, strlen($0)) }
    }
}
