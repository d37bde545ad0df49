// SPDX-License-Identifier: GPL-2.0-or-later

import Foundation
import Testing

/// The rules of the house that SwiftPM cannot enforce, read once by a machine.
@Suite struct SourceRulesTests {
    static let root: URL = {
        var url = URL(filePath: #filePath)
        for _ in 0..<3 { url.deleteLastPathComponent() }
        return url
    }()

    struct Source {
        var path: String
        var lines: [Substring]
    }

    static func sources(under folder: String, suffixes: [String] = [".swift"]) -> [Source] {
        let base = root.appending(path: folder)
        guard let walk = FileManager.default.enumerator(atPath: base.path) else { return [] }
        return walk.compactMap { $0 as? String }
            .filter { name in suffixes.contains { name.hasSuffix($0) } }
            .sorted()
            .compactMap { name in
                guard
                    let text = try? String(
                        contentsOf: base.appending(path: name), encoding: .utf8)
                else { return nil }
                let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
                return Source(path: "\(folder)/\(name)", lines: lines)
            }
    }

    static func imports(of source: Source) -> [String] {
        source.lines.compactMap { line in
            let words = line.split(separator: " ")
            guard let place = words.firstIndex(of: "import"), place <= 2,
                !line.hasPrefix("//"), words.count > place + 1
            else { return nil }
            return String(words.last ?? "")
        }
    }

    static let generated = ".pb.swift"

    // MARK: - Layers

    static let foundations = ["AspenTypes", "AspenBytes"]
    static let cores = [
        "AspenMachine", "RaftCore", "ProposalCore", "KVCore", "WatchCore", "LinkCore", "TokenCore",
        "DNSWire", "MDNSCore", "ResolverCore", "GossipCore",
    ]

    @Test func foundationsAndCoresImportNothingFromTheWorld() {
        let allowed = Set(Self.foundations + Self.cores + ["DequeModule"])
        let all = Self.sources(under: "Sources/Foundations") + Self.sources(under: "Sources/Cores")
        #expect(all.count > 10)
        for source in all {
            for name in Self.imports(of: source) {
                #expect(allowed.contains(name), "\(source.path) imports \(name)")
            }
        }
    }

    @Test func coresTouchNoClockNoRandomnessNoOutput() {
        // Words, not regular expressions: each is a call that a machine without hands cannot make.
        let banned = [
            "ContinuousClock", "SuspendingClock", " Date(", "(Date(", "SystemRandomNumberGenerator",
            ".random(in:", ".randomElement(", ".shuffled()", "print(", "Task {", "Task.sleep",
            " await ", "getenv", "Hasher()", ".hashValue",
        ]
        for source in Self.sources(under: "Sources/Foundations")
            + Self.sources(under: "Sources/Cores")
        {
            for (number, line) in source.lines.enumerated()
            where !line.drop(while: { $0 == " " }).hasPrefix("//") {
                for word in banned where line.contains(word) {
                    Issue.record("\(source.path):\(number + 1) uses \(word)")
                }
            }
        }
    }

    @Test func daemonsDoNotImportFoundation() {
        for folder in ["Sources/System", "Sources/Services", "Sources/Wire"] {
            for source in Self.sources(under: folder) where !source.path.hasSuffix(Self.generated) {
                let names = Self.imports(of: source)
                #expect(!names.contains("Foundation"), "\(source.path) imports Foundation")
            }
        }
    }

    @Test func onlyTheNetworkLayerKnowsQUIC() {
        let allowed = [
            "Sources/System/QUIC/", "Sources/Services/Net/Service/",
            "Sources/Services/Raft/Client/",
        ]
        for source in Self.sources(under: "Sources") {
            let names = Self.imports(of: source)
            guard names.contains("QUIC") || names.contains("CNgtcp2") else { continue }
            #expect(
                allowed.contains { source.path.hasPrefix($0) }, "\(source.path) imports QUIC")
        }
    }

    /// The library's writer of such logs has had holes that a peer could reach.
    @Test func nothingWritesQLogs() {
        let all = Self.sources(under: "Sources", suffixes: [".swift", ".c", ".h"])
        #expect(all.contains { $0.path.hasSuffix("quic.c") })
        for source in all {
            for (number, line) in source.lines.enumerated()
            where line.lowercased().contains("qlog") {
                Issue.record("\(source.path):\(number + 1) mentions qlog")
            }
        }
    }

    @Test func clientsDoNotImportServices() {
        for service in ["Egress", "Gossip", "Net", "Raft"] {
            let folder = "Sources/Services/\(service)/Client"
            for source in Self.sources(under: folder) {
                for name in Self.imports(of: source) {
                    #expect(!name.hasSuffix("Service"), "\(source.path) imports \(name)")
                }
            }
        }
    }

    // MARK: - Sizes

    @Test func filesAreChapters() {
        for folder in ["Sources", "Tests"] {
            for source in Self.sources(under: folder) where !source.path.hasSuffix(Self.generated) {
                #expect(source.lines.count <= 620, "\(source.path): \(source.lines.count) lines")
            }
        }
    }

    @Test func functionsFitAScreen() {
        for source in Self.sources(under: "Sources") where !source.path.hasSuffix(Self.generated) {
            for (name, start, length) in Self.functions(in: source) where length > 80 {
                Issue.record("\(source.path):\(start) \(name) has \(length) lines")
            }
        }
    }

    /// Function declarations and their lengths, by indentation: swift-format guarantees that a
    /// declaration's closing brace stands in the column of its first line.
    static func functions(in source: Source) -> [(name: String, start: Int, length: Int)] {
        var found: [(String, Int, Int)] = []
        for (number, line) in source.lines.enumerated() {
            let indent = line.prefix { $0 == " " }
            let text = line.dropFirst(indent.count)
            guard text.contains("func ") || text.hasPrefix("init(") || text.contains(" init("),
                !text.hasPrefix("//"), !text.hasPrefix("case")
            else { continue }
            // A requirement of a protocol has no body: nothing deeper follows it.
            let following = source.lines.dropFirst(number + 1).first ?? ""
            let isDeeper = following.prefix { $0 == " " }.count > indent.count
            guard line.hasSuffix("{") || line.hasSuffix("("), isDeeper else { continue }
            let closing = indent + "}"
            guard
                let end = source.lines[number...].firstIndex(where: {
                    $0 == closing || $0.hasPrefix(closing + " ")
                })
            else { continue }
            found.append((String(text.prefix(60)), number + 1, end - number + 1))
        }
        return found
    }

    @Test func executablesHoldNoLogic() {
        let mains = Self.sources(under: "Sources/Executables")
        #expect(mains.count >= 6)
        for source in mains {
            #expect(source.lines.count <= 60, "\(source.path)")
        }
    }

    // MARK: - Words

    @Test func everyFileNamesItsLicence() {
        for folder in ["Sources", "Tests"] {
            let all = Self.sources(under: folder, suffixes: [".swift", ".c", ".h", ".proto"])
            #expect(!all.isEmpty)
            for source in all {
                let head = source.lines.prefix(2).joined()
                #expect(
                    head.contains("SPDX-License-Identifier: GPL-2.0-or-later"), "\(source.path)")
            }
        }
    }

    @Test func nothingIsForcedOrLeftUndone() {
        let banned = ["try! ", "as! ", "TODO", "FIXME", "fatalError(\"not"]
        for source in Self.sources(under: "Sources") where !source.path.hasSuffix(Self.generated) {
            for (number, line) in source.lines.enumerated() {
                for word in banned where line.contains(word) {
                    Issue.record("\(source.path):\(number + 1) has \(word)")
                }
                if line.contains("@unchecked Sendable") {
                    let above = source.lines[
                        max(0, number - 14)...min(number + 3, source.lines.count - 1)
                    ].joined(separator: "\n")
                    #expect(
                        above.contains("SAFETY:"),
                        "\(source.path):\(number + 1) does not say why it is safe")
                }
            }
        }
    }

    /// Looking again and again until something holds is no sleep; such a line says `// polls`.
    @Test func testsDoNotSleep() {
        let banned = ["Thread.sleep", "Task.sleep", "usleep(", "nanosleep("]
        for source in Self.sources(under: "Tests") where !source.path.contains("SourceRules") {
            for (number, line) in source.lines.enumerated() {
                for word in banned where line.contains(word) && !line.hasSuffix("// polls") {
                    Issue.record("\(source.path):\(number + 1) uses \(word)")
                }
            }
        }
    }
}
