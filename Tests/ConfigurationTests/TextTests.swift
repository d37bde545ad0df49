// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import Testing

@testable import Configuration

/// The texts that are made of the catalogue are checked in, so that a reader sees them; with
/// ASPEN_REWRITE=1 they are written anew.
@Suite struct CatalogueTextTests {
    private static let isRewriting = getenv("ASPEN_REWRITE").map { String(cString: $0) } == "1"
    private static let reference = "Sources/Documentation/Aspen.docc/Configuration.md"

    @Test func theDefaultFileIsTheCatalogues() throws {
        if Self.isRewriting {
            try AtomicFile.write(
                Array(DefaultFile.toml.utf8), to: "\(Repository.root)/etc/aspen.toml", mode: 0o644)
        }
        #expect(Repository.text("etc/aspen.toml") == DefaultFile.toml)
    }

    @Test func theDefaultFileSetsNothing() {
        let file = TOMLFile(Array(DefaultFile.toml.utf8), path: "aspen.toml")
        #expect(file.problems.isEmpty && file.values.isEmpty)
    }

    /// Each commented-out line is a right one, and says the default if there is one.
    @Test func theDefaultFilesExamplesAreRight() throws {
        var table = ""
        var count = 0
        for line in DefaultFile.toml.split(separator: "\n") {
            if line.hasPrefix("[") { table = String(line) }
            guard line.hasPrefix("#"), !line.hasPrefix("# "), line.contains(" = ") else { continue }
            count += 1
            let text = "\(table)\n\(line.dropFirst())"
            if text.contains("aspen…") { continue }
            let file = TOMLFile(Array(text.utf8), path: "aspen.toml")
            #expect(file.problems.isEmpty, "\(line): \(file.problems)")
            let found = try #require(file.values.first)
            if let standard = found.setting.standardValue { #expect(found.value == standard) }
        }
        #expect(count == SettingsCatalogue.all.count)
    }

    @Test func theReferenceTableIsTheCatalogues() throws {
        let page = Repository.text(Self.reference)
        let begin = "<!-- The table is made of the catalogue; ASPEN_REWRITE=1 writes it. -->\n"
        let parts = page.split(separator: "\n", omittingEmptySubsequences: false)
        let table = parts.filter { $0.hasPrefix("| ") }.map { $0 + "\n" }.joined()
        #expect(page.contains(begin))
        if Self.isRewriting, table != DefaultFile.markdown {
            let before = parts.prefix { !$0.hasPrefix("| ") }.joined(separator: "\n")
            let after = parts.reversed().prefix { !$0.hasPrefix("| ") }.reversed()
            let isThere = !table.isEmpty
            let text =
                before + "\n" + DefaultFile.markdown
                + (isThere ? after.joined(separator: "\n") : "")
            try AtomicFile.write(
                Array(text.utf8), to: "\(Repository.root)/\(Self.reference)", mode: 0o644)
        }
        #expect(table == DefaultFile.markdown)
    }

    @Test func cookiesAreJudged() {
        #expect(CookieRules.judge([]) == .missing)
        #expect(CookieRules.judge(Array("aspen-cookie".utf8)) == .published)
        #expect(CookieRules.judge([UInt8](repeating: 1, count: 15)) == .short)
        #expect(CookieRules.judge([UInt8](repeating: 1, count: 16)) == .good)
        #expect(CookieRules.judge([UInt8](repeating: 1, count: 4096)) == .good)
        #expect(CookieRules.judge([UInt8](repeating: 1, count: 4097)) == .large)
        #expect(CookieRules.trimmed([1, 10, 10]) == [1, 10])
        #expect(CookieRules.trimmed([]) == [])
    }
}
