// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Configuration
import GeneratorTool
import Glibc
import Testing

@Suite struct GeneratorTests {
    private static let dropIn = "normal/aspend-net-quic.socket.d/50-listen.conf"

    /// - Returns: the exit status, what was said, and the drop-in, if any.
    private func generate(
        _ scratch: Scratch, scope: String? = nil
    ) -> (status: CInt, said: [String], dropIn: String?) {
        for name in ["normal", "early", "late"] { mkdir("\(scratch.path)/\(name)", 0o755) }
        var said: [String] = []
        let status = Generator.run(
            ["normal", "early", "late"].map { "\(scratch.path)/\($0)" },
            environment: { name in
                switch name {
                case "ASPEN_CONFIG_DIR": scratch.path
                case "SYSTEMD_SCOPE": scope
                default: nil
                }
            }, say: { said.append($0) })
        #expect(rmdir("\(scratch.path)/early") == 0, "nothing is early")
        #expect(rmdir("\(scratch.path)/late") == 0, "nothing is late")
        return (status, said, scratch.read(Self.dropIn))
    }

    @Test(arguments: [
        ("':7700'", "ListenDatagram=7700\n"), ("'7701'", "ListenDatagram=7701\n"),
        ("'0.0.0.0:7700'", "ListenDatagram=7700\n"), ("['[::]:7700']", "ListenDatagram=7700\n"),
        ("'192.0.2.1:7700'", "ListenDatagram=192.0.2.1:7700\nFreeBind=yes\n"),
        ("'[2001:db8::1]:7700'", "ListenDatagram=[2001:db8::1]:7700\nFreeBind=yes\n"),
    ])
    func theAddressIsRendered(listen: String, lines: String) {
        let scratch = Scratch()
        scratch.write("aspen.toml.d/50-setup.toml", "\n[node]\nlisten = \(listen)\n")
        let (status, said, dropIn) = generate(scratch)
        #expect(status == 0)
        #expect(said.isEmpty)
        #expect(
            dropIn == """
                # Rendered by aspen-generator from node.listen \
                (\(scratch.path)/aspen.toml.d/50-setup.toml:3).
                [Socket]
                ListenDatagram=
                \(lines)
                """)
        // Calling again, as `systemctl daemon-reload` does, gives the same.
        #expect(generate(scratch).dropIn == dropIn)
    }

    @Test func versionAndHelpTouchNothing() {
        #expect(
            Generator.answer(to: ["--version"]) == "aspen-generator \(ProgramVersion.text)\n")
        #expect(Generator.answer(to: ["--help"])?.contains("NORMAL-DIR EARLY-DIR LATE-DIR") == true)
        #expect(Generator.answer(to: ["--help", "early", "late"]) == nil, "a directory")
        #expect(Generator.answer(to: []) == nil)
    }

    @Test func severalAddressesAreRenderedOnceEach() {
        let addresses = ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", ":1"].compactMap {
            ListenAddress($0)
        }
        #expect(addresses.count == 4)
        let text = Generator.dropIn(addresses, from: .file(path: "f", line: 1))
        #expect(
            text.split(separator: "\n").dropFirst() == [
                "[Socket]", "ListenDatagram=", "ListenDatagram=1", "ListenDatagram=192.0.2.1:1",
                "FreeBind=yes",
            ])
    }

    @Test(arguments: ["", "[node]\nid = 1\n"])
    func nothingConfiguredIsNothingRendered(text: String) {
        let scratch = Scratch()
        scratch.write("aspen.toml", text)
        let (status, said, dropIn) = generate(scratch)
        #expect(status == 0 && said.isEmpty && dropIn == nil)
    }

    @Test(arguments: [
        "[node\n", "node = 3", "[node]\nlisten = 7700", "[node]\nlisten = 'localhost:1'",
        "[node]\nlisten = ':0'", "[node]\nlisten = ':1\\nListenStream=/run/x'", "\u{0}",
    ])
    func whatIsWrongIsSaidAndTheBootGoesOn(text: String) {
        let scratch = Scratch()
        scratch.write("aspen.toml", text)
        let (status, said, dropIn) = generate(scratch)
        #expect(status == 0)
        #expect(said.count == 2 && said[0].hasPrefix("\(scratch.path)/aspen.toml:"), "\(said)")
        #expect(dropIn == nil)
    }

    /// One bad drop-in may have been meant to change it.
    @Test func aFileThatCannotBeReadLeavesItInDoubt() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "node.listen = ':1'")
        scratch.write("aspen.toml.d/a.toml", "[[[")
        #expect(generate(scratch).dropIn == nil)
    }

    /// The daemons refuse it; the socket is right all the same when it has been mended.
    @Test func anErrorElsewhereIsNoDoubt() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "node.listen = ':1'\nlog.levle = 'info'")
        let (status, said, dropIn) = generate(scratch)
        #expect(status == 0)
        #expect(said.count == 1)
        #expect(dropIn?.contains("\nListenDatagram=1\n") == true)
    }

    @Test func aUsersSystemdIsNotMeant() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "node.listen = ':1'")
        #expect(generate(scratch, scope: "user").dropIn == nil)
        #expect(generate(scratch, scope: "system").dropIn != nil)
    }

    @Test func aWrongCallIsToldFromABadConfiguration() {
        var said: [String] = []
        #expect(Generator.run([], environment: { _ in nil }, say: { said.append($0) }) == 1)
        #expect(said.count == 1)
    }

    @Test func aDirectoryThatCannotBeWrittenIsSaid() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "node.listen = ':1'")
        var said: [String] = []
        let status = Generator.run(
            ["/proc/none", "/proc/none", "/proc/none"],
            environment: { $0 == "ASPEN_CONFIG_DIR" ? scratch.path : nil },
            say: { said.append($0) })
        #expect(status == 0)
        #expect(said.count == 1 && said[0].contains("/proc/none"))
    }
}
