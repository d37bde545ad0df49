// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import Configuration
import Glibc

/// Writes a node's configuration: aspen.toml.d/50-setup.toml and credentials/cookie. Never the
/// conffile, which belongs to the package and to the person.
struct Setup {
    /// What the file is to say.
    struct Plan: Equatable {
        fileprivate var values: [String: SettingValue]
    }

    struct Cookie: Equatable {
        fileprivate var bytes: [UInt8]
        fileprivate var isToBeWritten: Bool
        /// Of random bytes, just now.
        var isMade: Bool
        var isShort: Bool { CookieRules.judge(bytes) == .short }
    }

    static let fileName = "50-setup.toml"
    let directory: String

    private var dropIns: String { "\(directory)/\(ConfigurationFiles.dropInDirectory)" }
    private var path: String { "\(dropIns)/\(Self.fileName)" }
    private var credentials: String { "\(directory)/\(Credentials.directory)" }
    private var cookiePath: String { "\(credentials)/\(Credentials.cookieName)" }

    // MARK: - Settings

    /// What was given, over what an earlier setup has written.
    /// - Parameter given: by the setting's name.
    func plan(_ given: [String: [String]]) throws -> Plan {
        var values: [String: SettingValue] = [:]
        if let bytes = Self.read(path) {
            let file = TOMLFile(bytes, path: path)
            if let problem = file.problems.first {
                throw CommandFailure.failed(
                    "\(problem). Mend or remove that file, which an earlier setup has written")
            }
            for found in file.values { values[found.setting.name] = found.value }
        }
        // A ticket or peers take the place of one another.
        if given["ticket"] != nil, given["peers"] == nil { values["peers"] = nil }
        if given["peers"] != nil, given["ticket"] == nil { values["ticket"] = nil }
        // Addresses found out for another port are none.
        if given["listen"] != nil { values["advertise"] = nil }
        for setting in SettingsCatalogue.all {
            guard let texts = given[setting.name] else { continue }
            do throws(ConfigurationError) {
                values[setting.name] = try setting.parse(texts, .flag(setting.name))
            } catch {
                throw CommandFailure.usage("\(error)")
            }
        }
        guard values["node-id"] != nil else {
            throw CommandFailure.usage(
                "say with --node-id which number this node has: 1 or more, and different from all "
                    + "other nodes of the cluster")
        }
        return Plan(values: values)
    }

    private func text(_ plan: Plan) -> String {
        var text = """
            # Written by `aspen-cli setup`, which writes it anew when it is run again. Settings of
            # your own belong into another file here; the lexically last file wins.

            """
        for table in SettingsCatalogue.tables {
            let lines = SettingsCatalogue.all.filter { $0.table == table }.compactMap { setting in
                plan.values[setting.name].map { "\(setting.key) = \($0.toml)\n" }
            }
            if !lines.isEmpty { text += "\n[\(table)]\n" + lines.joined() }
        }
        return text
    }

    // MARK: - Cookie

    /// The cookie to use: that of the file, else that which is there, else a new one.
    func cookie(file: String?, isForced: Bool) throws -> Cookie {
        let present = Self.read(cookiePath).map(CookieRules.trimmed)
        if present == nil, errno != ENOENT, errno != ENOTDIR {
            throw CommandFailure.failed(
                "cannot read \(cookiePath): \(String(cString: strerror(errno))); run it as root "
                    + "(sudo)")
        }
        guard let file else {
            if let present, !present.isEmpty, !isForced {
                try refuseUnfit(present, advice: "; --force makes another")
                return Cookie(bytes: present, isToBeWritten: false, isMade: false)
            }
            return Cookie(
                bytes: Self.random(), isToBeWritten: true, isMade: true)
        }
        let bytes = CookieRules.trimmed(try Self.readCookie(file))
        try refuseUnfit(bytes, advice: "")
        guard let present, !present.isEmpty, present != bytes else {
            return Cookie(bytes: bytes, isToBeWritten: present != bytes, isMade: false)
        }
        guard isForced else {
            throw CommandFailure(
                status: .preconditionFailed,
                text:
                    "there is another cookie in \(cookiePath) already: nodes whose cookies differ "
                    + "do not talk to each other. To replace it, say --force", error: nil)
        }
        return Cookie(bytes: bytes, isToBeWritten: true, isMade: false)
    }

    private func refuseUnfit(_ bytes: [UInt8], advice: String) throws {
        switch CookieRules.judge(bytes) {
        case .good, .short: return
        case .missing: throw CommandFailure.usage("the cookie is empty")
        case .published:
            throw CommandFailure.usage(
                "this cookie is a well-known default that anybody can guess: leave --cookie-file "
                    + "out, and one of 32 random bytes is made" + advice)
        case .large:
            throw CommandFailure.usage("a cookie has at most \(CookieRules.bytesMax) bytes")
        }
    }

    private static func readCookie(_ file: String) throws -> [UInt8] {
        if file == "-", let bytes = Credentials.read(descriptor: STDIN_FILENO) { return bytes }
        let descriptor = open(file, O_RDONLY | O_CLOEXEC)
        defer { if descriptor >= 0 { close(descriptor) } }
        guard descriptor >= 0, let bytes = Credentials.read(descriptor: descriptor) else {
            throw CommandFailure.failed(
                "cannot read the cookie from \(file): \(String(cString: strerror(errno)))")
        }
        return bytes
    }

    /// 32 random bytes as text, so that a person can carry it over.
    private static func random() -> [UInt8] {
        var generator = SystemRandomNumberGenerator()
        return Array(
            Base32.encode((0..<32).map { _ in UInt8.random(in: 0...255, using: &generator) }).utf8)
    }

    // MARK: - Writing

    /// - Returns: a line for each file: what was done to it.
    func write(_ plan: Plan, _ cookie: Cookie) throws -> [String] {
        do throws(AtomicFile.Failure) {
            try makeDirectories()
            return [try writeSettings(plan), try writeCookie(cookie)]
        } catch {
            throw CommandFailure.failed(error.text)
        }
    }

    private func makeDirectories() throws(AtomicFile.Failure) {
        try AtomicFile.makeDirectory(directory, mode: 0o755)
        try AtomicFile.makeDirectory(dropIns, mode: 0o755)
        try AtomicFile.makeDirectory(credentials, mode: 0o700)
    }

    private func writeSettings(_ plan: Plan) throws(AtomicFile.Failure) -> String {
        let bytes = Array(text(plan).utf8)
        if Self.read(path) == bytes { return "\(path) is as it should be" }
        try AtomicFile.write(bytes, to: path, mode: 0o644)
        return "wrote \(path)"
    }

    private func writeCookie(_ cookie: Cookie) throws(AtomicFile.Failure) -> String {
        guard cookie.isToBeWritten else { return "\(cookiePath) is as it should be" }
        try AtomicFile.write(cookie.bytes + [UInt8(ascii: "\n")], to: cookiePath, mode: 0o600)
        return cookie.isMade
            ? "made a cookie of 32 random bytes: \(cookiePath)" : "wrote \(cookiePath)"
    }

    /// - Returns: nil with errno set.
    private static func read(_ path: String) -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var buffer = [UInt8](repeating: 0, count: TOMLFile.bytesMax)
        let count = Glibc.read(descriptor, &buffer, buffer.count)
        return count >= 0 ? Array(buffer.prefix(count)) : nil
    }
}
