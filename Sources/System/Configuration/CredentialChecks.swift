// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// What can be said of a secret's file without showing the secret.
package struct CredentialReport: Sendable, Equatable {
    package enum State: String, Sendable {
        case present
        case missing
        /// This user may not look.
        case hidden
        case wrong
    }

    package var name: String
    package var path: String
    package var state: State
    /// "44 bytes, mode 0600, owner root".
    package var detail: String
    /// What must be mended.
    package var problem: ConfigurationError?
    /// What should be.
    package var warning: String?

    package init(name: String, path: String, state: State, detail: String) {
        self.name = name
        self.path = path
        self.state = state
        self.detail = detail
    }
}

package enum Credentials {
    package static let directory = "credentials"
    package static let cookieName = "cookie"

    /// The cluster's cookie: what systemd has handed over (`$CREDENTIALS_DIRECTORY`), else the file.
    package static func cookie(
        configurationDirectory: String, handedOver: String?
    ) -> CredentialReport {
        if let handedOver {
            let path = "\(handedOver)/\(cookieName)"
            return judge(CredentialReport(name: "cookie", path: path, state: .present, detail: ""))
        }
        let path = "\(configurationDirectory)/\(directory)/\(cookieName)"
        let folder = owned(
            "credentials directory", "\(configurationDirectory)/\(directory)", kind: S_IFDIR,
            mode: 0o700)
        if folder.state != .present, folder.state != .wrong {
            return missing(folder, name: "cookie", path: path)
        }
        var report = owned("cookie", path, kind: S_IFREG, mode: 0o600)
        guard report.state == .present else { return missing(report, name: "cookie", path: path) }
        report = judge(report)
        if report.problem == nil { report.problem = folder.problem }
        return report
    }

    package static let acceptedName = "cookie-accepted"

    /// The other cookie that is accepted as well, while the cluster goes over to a new one. It opens as much
    /// as the cookie itself, and is judged like it. Nil: there is none that this user can see.
    package static func accepted(
        configurationDirectory: String, handedOver: String?
    ) -> CredentialReport? {
        let folder = handedOver ?? "\(configurationDirectory)/\(directory)"
        let path = "\(folder)/\(acceptedName)"
        guard access(path, F_OK) == 0 else { return nil }
        var report =
            handedOver != nil
            ? CredentialReport(name: acceptedName, path: path, state: .present, detail: "")
            : owned("other cookie", path, kind: S_IFREG, mode: 0o600)
        report.name = acceptedName
        if report.state == .present { report = judge(report) }
        return report.state == .missing ? nil : report
    }

    package static let keyName = "key"

    /// The node's key: the credential, if somebody has put one there, else what aspend-net makes at
    /// its first start.
    package static func key(
        configurationDirectory: String, stateDirectory: String
    ) -> CredentialReport {
        let credential = owned(
            "node key", "\(configurationDirectory)/\(directory)/\(keyName)", kind: S_IFREG,
            mode: 0o600)
        if credential.state == .present || credential.state == .wrong { return credential }
        var report = owned(
            "node key", "\(stateDirectory)/identity.key", kind: S_IFREG, mode: 0o600,
            isAnyOwnerRight: true)
        if report.state == .missing { report.detail = "made at the first start" }
        return report
    }

    private static func missing(
        _ found: CredentialReport, name: String, path: String
    ) -> CredentialReport {
        var report = found
        (report.name, report.path) = (name, path)
        if found.state == .missing {
            report.problem = ConfigurationError(
                .missing, .file(path: path, line: 0),
                "there is no cluster cookie, the secret that all nodes share: `aspen-cli setup` "
                    + "makes one")
        }
        return report
    }

    /// A file or directory that must be its owner's alone.
    private static func owned(
        _ name: String, _ path: String, kind: mode_t, mode: mode_t, isAnyOwnerRight: Bool = false
    ) -> CredentialReport {
        var report = CredentialReport(name: name, path: path, state: .present, detail: "")
        var status = stat()
        guard lstat(path, &status) == 0 else {
            report.state = errno == ENOENT || errno == ENOTDIR ? .missing : .hidden
            report.detail =
                report.state == .missing ? "there is none" : "not to be seen by this user; try sudo"
            return report
        }
        func wrong(_ text: String) {
            guard report.problem == nil else { return }
            report.state = .wrong
            report.problem = ConfigurationError(.conflict, .file(path: path, line: 0), text)
        }
        let digits = String(status.st_mode & 0o7777, radix: 8)
        let octal = String(repeating: "0", count: max(0, 4 - digits.count)) + digits
        report.detail = "mode \(octal), owner \(userName(status.st_uid))"
        if status.st_mode & S_IFMT != kind {
            wrong(kind == S_IFDIR ? "this is no directory" : "this is not a regular file")
        }
        if status.st_mode & 0o077 != 0 {
            let wanted = "0" + String(mode, radix: 8)
            wrong(
                "the \(name) is open to others (mode \(octal)): `chmod \(wanted) \(path)`, and "
                    + "think of who may have read it")
        }
        if !isAnyOwnerRight, status.st_uid != 0, status.st_uid != geteuid() {
            wrong(
                "the \(name) belongs to \(userName(status.st_uid)): `chown root:root \(path)`")
        }
        return report
    }

    private static func userName(_ uid: uid_t) -> String {
        guard let entry = getpwuid(uid) else { return "uid \(uid)" }
        return String(cString: entry.pointee.pw_name)
    }

    /// Looks at what the file holds.
    private static func judge(_ found: CredentialReport) -> CredentialReport {
        var report = found
        guard let bytes = read(found.path) else {
            report.state = errno == ENOENT ? .missing : .hidden
            report.detail =
                report.state == .missing ? "there is none" : "not to be read by this user; try sudo"
            return missing(report, name: found.name, path: found.path)
        }
        func wrong(_ text: String) {
            report.state = .wrong
            report.problem = ConfigurationError(
                .outOfRange, .file(path: found.path, line: 0), text)
        }
        let isOwn = found.name == cookieName
        let what = isOwn ? "the cluster cookie" : "the cookie that is also accepted"
        let cookie = CookieRules.trimmed(bytes)
        let size = "\(cookie.count) bytes"
        report.detail = report.detail.isEmpty ? size : "\(size), \(report.detail)"
        switch CookieRules.judge(cookie) {
        case .good: break
        case .short:
            report.warning =
                "\(what) is shorter than \(CookieRules.recommendedBytesMin) bytes and might be "
                + "guessed: "
                + (isOwn
                    ? "`aspen-cli setup` makes a good one"
                    : "take \(found.path) away as soon as no node uses it")
        case .missing:
            report.state = .missing
            report = missing(report, name: found.name, path: found.path)
        case .published:
            wrong(
                "\(what) is a well-known default that anybody can guess: "
                    + (isOwn
                        ? "`aspen-cli setup --force` makes another"
                        : "take \(found.path) away"))
        case .large: wrong("\(what) is over \(CookieRules.bytesMax) bytes")
        }
        return report
    }

    /// - Returns: nil with errno set. At most a byte more than is allowed is read.
    package static func read(_ path: String) -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        return read(descriptor: descriptor)
    }

    /// Up to the end; for pipes, too.
    package static func read(descriptor: CInt) -> [UInt8]? {
        var buffer = [UInt8](repeating: 0, count: CookieRules.bytesMax + 2)
        var count = 0
        while count < buffer.count {
            let more = buffer.withUnsafeMutableBytes {
                Glibc.read(descriptor, $0.baseAddress.map { $0 + count }, $0.count - count)
            }
            if more < 0, errno == EINTR { continue }
            guard more >= 0 else { return nil }
            if more == 0 { break }
            count += more
        }
        return Array(buffer.prefix(count))
    }
}
