// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Configuration
import Glibc
import QUIC
import ServiceKit
import Testing

@testable import NetService

extension NetServiceTests {
    /// `--help` and `--version`, which touch nothing.
    @Suite struct ManualTests {
        @Test func theVersionIsOneLine() {
            let (output, errors, code) = NetProcess.run(["--version"])
            #expect(output == "aspend-net \(ProgramVersion.text)\n")
            #expect(errors.isEmpty)
            #expect(code == 0)
        }

        @Test(arguments: [["--help"], ["-h"], ["--state-dir", "/nowhere", "--help", "--no-such"]])
        func helpNamesEveryFlag(arguments: [String]) {
            let (output, errors, code) = NetProcess.run(arguments)
            #expect(output.hasPrefix("aspend-net \(ProgramVersion.text): "))
            #expect(errors.isEmpty)
            #expect(code == 0)
            for name in NetSettings.known.union(["config", "log-level", "print-identity"]) {
                #expect(output.contains("\n  --\(name)"), "\(name)")
            }
            #expect(!output.contains("--heartbeat-interval-ms"), "that is aspend-raft's")
        }

        @Test func helpGoesBeforePrintingTheIdentity() {
            let scratch = Scratch()
            let (output, _, code) = NetProcess.run([
                "--print-identity", "--state-dir", scratch.path, "--version",
            ])
            #expect(output == "aspend-net \(ProgramVersion.text)\n")
            #expect(code == 0)
            #expect(access("\(scratch.path)/identity.key", F_OK) != 0, "no key is made")
        }

        @Test func everySettingIsExplained() {
            let manual = DaemonManual(
                name: "aspend-x", abstract: "all",
                known: Set(SettingsCatalogue.all.map(\.name)))
            for setting in SettingsCatalogue.all {
                #expect(manual.help.contains("  --\(setting.name) "))
                #expect(manual.help.contains(setting.summary))
            }
            #expect(manual.answer(to: ["--node-id", "1"]) == nil)
        }
    }

    /// The node's key as a credential.
    @Suite struct HandedOverKeyTests {
        private func text(_ scratch: Scratch) throws -> [UInt8] {
            _ = try IdentityFile.loadOrCreate(stateDirectory: scratch.path)
            return Array(NetProcess.text("\(scratch.path)/identity.key").utf8)
        }

        @Test func itIsWhatTheFileHolds() throws {
            let scratch = Scratch()
            let bytes = try text(scratch)
            let key = try IdentityFile.loadOrCreate(stateDirectory: scratch.path)
            #expect(try IdentityFile.key(handedOver: Secret(bytes))?.endpoint == key.endpoint)
            // `Secret.take` drops the last line end.
            let shorter = Secret(Array(bytes.dropLast()))
            #expect(try IdentityFile.key(handedOver: shorter)?.endpoint == key.endpoint)
        }

        @Test func theFallbackOfTheUnitMeansNone() throws {
            #expect(try IdentityFile.key(handedOver: Secret(Array("none".utf8))) == nil)
        }

        @Test func aDamagedOrEmptyOneIsAnErrorThatDoesNotShowIt() throws {
            let bytes = try text(Scratch())
            for wrong in [[], Array(bytes.prefix(40)), Array("None".utf8), [7] + bytes.dropFirst()]
            {
                let error = #expect(throws: AspenError.self) {
                    try IdentityFile.key(handedOver: Secret(wrong))
                }
                #expect(error?.code == .corrupt)
                #expect(error?.message.contains("/etc/aspen/credentials/key") == true)
                let secret = String(decoding: bytes.dropFirst(26).prefix(20), as: UTF8.self)
                #expect(error?.message.contains(secret) == false)
            }
        }
    }
}
