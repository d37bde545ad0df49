// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import ServiceKit
import Testing

@testable import Configuration

@Suite struct PrecedenceTests {
    /// All sixteen ways of setting one thing in up to four places: the strongest wins, the others
    /// are told in order.
    @Test(arguments: 0..<16)
    func theStrongestWins(places: Int) throws {
        let scratch = Scratch()
        if places & 1 != 0 { scratch.write("aspen.toml", "[log]\n\nlevel = \"trace\"") }
        if places & 2 != 0 { scratch.write("aspen.toml.d/50-a.toml", "log.level = \"debug\"") }
        let environment = places & 4 != 0 ? ["ASPEN_LOG_LEVEL": "notice"] : [:]
        let flags = places & 8 != 0 ? ["log-level": ["error"]] : [:]
        let settings = EffectiveSettings(
            flags: flags, environment: { environment[$0] }, files: scratch.files)
        #expect(settings.problems.isEmpty)
        let entry = try #require(settings["log-level"])
        let all: [(Int, String, Origin)] = [
            (8, "error", .flag("log-level")), (4, "notice", .environment("ASPEN_LOG_LEVEL")),
            (2, "debug", .file(path: "\(scratch.path)/aspen.toml.d/50-a.toml", line: 1)),
            (1, "trace", .file(path: "\(scratch.path)/aspen.toml", line: 3)),
            (0, "info", .standard),
        ]
        let set = all.filter { $0.0 & places != 0 }
        let winner = set.first ?? all[4]
        #expect(entry.value == .text(winner.1))
        #expect(entry.origin == winner.2)
        #expect(entry.overridden.map(\.origin) == set.dropFirst().map(\.2))
    }

    @Test func dropInsWinInTheOrderOfTheirNames() {
        let scratch = Scratch()
        scratch.write("aspen.toml.d/9.toml", "node.id = 9")
        scratch.write("aspen.toml.d/10.toml", "node.id = 10\nlog.level = 'debug'")
        scratch.write("aspen.toml.d/99.toml.dpkg-new", "node.id = 99")
        scratch.write("aspen.toml.d/.99.toml", "node.id = 98")
        let files = scratch.files
        #expect(files.problems.isEmpty)
        #expect(files.values["node-id"]?.map(\.value) == [.integer(10), .integer(9)])
        #expect(files.values["log-level"]?.count == 1)
        #expect(
            files.paths.map { $0.dropFirst(scratch.path.count + 1) }
                == ["aspen.toml.d/10.toml", "aspen.toml.d/9.toml"])
    }

    /// One peer or ticket a line, in as many files as somebody or some program likes.
    @Test func peersInFilesOfTheirOwnAddUp() {
        let scratch = Scratch()
        let key = String(repeating: "a", count: 52)
        scratch.write("aspen.toml", "node.peers = ['1@\(key)']")
        scratch.write(
            "peers.d/b", "\n# the cellar\n  2@\(key)@192.0.2.2:7700   # rack 2\r\naspenabc\n")
        scratch.write("peers.d/a.peer", "3@\(key)@[2001:db8::3]:1@192.0.2.3:1")
        scratch.write("peers.d/b~", "nonsense")
        scratch.write("peers.d/.hidden", "nonsense")
        let files = scratch.files
        #expect(files.problems.isEmpty, "\(files.problems)")
        #expect(
            files.peers.flatMap(\.value.texts) == [
                "3@\(key)@[2001:db8::3]:1@192.0.2.3:1", "2@\(key)@192.0.2.2:7700", "aspenabc",
            ])
        #expect(files.peers.last?.origin == .file(path: "\(scratch.path)/peers.d/b", line: 4))
        #expect(files.values["peers"]?.last?.value == .list(["1@\(key)"]))
        let before = files.fingerprint
        scratch.write("peers.d/c", "")
        #expect(scratch.files.fingerprint != before)
        for (line, complaint) in [
            ("2@abc", "has no endpoint id"), ("2@\(key)@host:1", "numeric address"),
            ("aspenA", "is no ticket"), ("2@\(key) 3@\(key)", "a line of its own"),
            (String(repeating: "x", count: 70_000), "over 65536 bytes"),
        ] {
            scratch.write("peers.d/c", line)
            #expect(
                scratch.files.problems.map(\.description).contains { $0.contains(complaint) },
                "\(complaint): \(scratch.files.problems)")
        }
    }

    @Test func listsAreReplacedNotJoined() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "node.advertise = ['192.0.2.1:1', '192.0.2.2:2']")
        scratch.write("aspen.toml.d/a.toml", "node.advertise = '192.0.2.3:3'")
        let files = scratch.files
        let settings = EffectiveSettings(environment: { _ in nil }, files: files)
        #expect(settings["advertise"]?.value == .list(["192.0.2.3:3"]))
        let fromVariable = EffectiveSettings(
            environment: { $0 == "ASPEN_ADVERTISE" ? "192.0.2.4:4,192.0.2.5:5" : nil },
            files: files)
        #expect(fromVariable["advertise"]?.value == .list(["192.0.2.4:4", "192.0.2.5:5"]))
    }

    @Test func whatFilesCannotBeReadIsTold() {
        let scratch = Scratch()
        #expect(ConfigurationFiles(directory: "/nonexistent").problems.isEmpty)
        let named = ConfigurationFiles(directory: "/nonexistent", mustExist: true)
        #expect(named.problems.first?.kind == .unreadable)
        mkdir("\(scratch.path)/aspen.toml.d/a.toml", 0o755)
        mkfifo("\(scratch.path)/aspen.toml", 0o644)
        let files = scratch.files
        #expect(files.problems.map(\.kind) == [.unreadable, .unreadable])
        #expect(files.problems.first?.description.contains("regular") == true)
        symlink("/nonexistent", "\(scratch.path)/aspen.toml.d/b.toml")
        #expect(scratch.files.problems.count == 3, "a link to nothing is no file")
    }

    @Test func moreDropInsThanTheLimitAreRefused() {
        let scratch = Scratch()
        for number in 0...ConfigurationFiles.dropInsMax {
            scratch.write("aspen.toml.d/\(number).toml", "")
        }
        #expect(scratch.files.problems.first?.message.contains("at most 64") == true)
    }

    @Test func theFingerprintFollowsTheFiles() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "node.id = 1")
        let first = scratch.files.fingerprint
        #expect(scratch.files.fingerprint == first)
        scratch.write("aspen.toml.d/a.toml", "")
        #expect(scratch.files.fingerprint != first)
        unlink("\(scratch.path)/aspen.toml.d/a.toml")
        #expect(scratch.files.fingerprint == first)
    }

    @Test func wrongVariablesAndFlagsAreNamed() {
        let settings = EffectiveSettings(
            flags: ["node-id": ["x"]],
            environment: { $0 == "ASPEN_LOG_LEVEL" ? "loud" : nil }, files: ConfigurationFiles())
        #expect(
            settings.problems.map(\.description).contains {
                $0.hasPrefix("--node-id: node.id must be a whole number")
            })
        #expect(
            settings.problems.map(\.description).contains {
                $0.hasPrefix("environment ASPEN_LOG_LEVEL: log.level must be one of")
            })
        #expect(settings["log-level"]?.value == .text("info"))
    }

    @Test(arguments: [
        ("heartbeat_interval_ms = 800", "raft.heartbeat_interval_ms"),
        ("election_timeout_min_ms = 900", "raft.election_timeout_min_ms"),
        ("election_timeout_max_ms = 1500", "raft.election_timeout_max_ms"),
        ("election_timeout_min_ms = 3000", "raft.election_timeout_min_ms"),
    ])
    func valuesMustGoTogether(line: String, blamed: String) {
        let scratch = Scratch()
        scratch.write("aspen.toml", "[raft]\n\(line)")
        let settings = EffectiveSettings(environment: { _ in nil }, files: scratch.files)
        #expect(settings.problems.map(\.kind) == [.conflict])
        #expect(settings.problems.first?.path == blamed)
        #expect(
            settings.problems.first?.origin
                == .file(path: "\(scratch.path)/aspen.toml", line: 2))
    }
}

@Suite struct ServiceSettingsTests {
    private let known: Set<String> = ["node-id", "peers", "tokens-required", "advertise"]

    private func settings(_ arguments: String...) throws(AspenError) -> ServiceSettings {
        try ServiceSettings(arguments: arguments, known: known)
    }

    @Test func filesStandBelowFlags() throws {
        let scratch = Scratch()
        scratch.write(
            "aspen.toml",
            "node = { id = 5, advertise = ['192.0.2.1:1', '192.0.2.2:2'] }\n"
                + "security.tokens_required = false")
        let files = try settings("--config", scratch.path)
        #expect(try files.integer("node-id", in: 1...10) == 5)
        #expect(files.strings("advertise") == ["192.0.2.1:1", "192.0.2.2:2"])
        #expect(try files.flag("tokens-required") == false)
        #expect(files.strings("peers").isEmpty)
        let flags = try settings("--config=\(scratch.path)", "--node-id", "6", "--advertise", "x")
        #expect(try flags.integer("node-id", in: 1...10) == 6)
        #expect(flags.strings("advertise") == ["x"])
    }

    @Test func nobodyReadsTheSystemsFilesUnasked() throws {
        #expect(!Supervision.isBySystemd)
        #expect(ServiceSettings.files(flag: nil).directory == nil)
    }

    @Test func aWrongFileIsAnErrorWithItsPlace() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "\n[node]\nidd = 5")
        #expect {
            try settings("--config", scratch.path)
        } throws: { error in
            guard let error = error as? AspenError else { return false }
            return DaemonExit(error) == .configuration
                && error.message.hasPrefix("\(scratch.path)/aspen.toml:3: ")
        }
        #expect(throws: AspenError.self) { try settings("--config", "/nonexistent") }
        #expect(throws: AspenError.self) { try settings("--log-level", "loud") }
    }

    @Test func theLogLevelIsKnownBeforeAllElse() {
        let scratch = Scratch()
        scratch.write("aspen.toml", "log.level = 'debug'")
        #expect(ServiceSettings.logLevel(arguments: ["--config", scratch.path]) == "debug")
        #expect(
            ServiceSettings.logLevel(
                arguments: ["--nonsense", "--log-level=trace", "--config", scratch.path]) == "trace"
        )
        #expect(ServiceSettings.logLevel(arguments: ["--config"]) == nil)
    }
}

@Suite struct CatalogueTests {
    @Test func namesAreOneInThreeSpellings() {
        var names: Set<String> = []
        for setting in SettingsCatalogue.all {
            #expect(names.insert(setting.name).inserted)
            #expect(SettingsCatalogue.tables.contains(setting.table))
            let spelled = setting.name.map { $0 == "-" ? "_" : String($0) }.joined()
            #expect(
                spelled == setting.key || spelled == "\(setting.table)_\(setting.key)"
                    || setting.key == "level")
            #expect(!setting.users.isEmpty)
            #expect(setting.standard == nil || setting.standardValue != nil)
            if let value = setting.standardValue {
                #expect(setting.complaint(about: value, .standard) == nil)
                #expect(value.toml == setting.standard)
            }
        }
        #expect(Setting.variable(for: "election-timeout-min-ms") == "ASPEN_ELECTION_TIMEOUT_MIN_MS")
    }
}
