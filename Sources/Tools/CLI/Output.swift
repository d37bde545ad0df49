// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// Standard output, buffered; errors of the kernel are kept and thrown by `flush`, so that a full
/// disk never ends in status 0.
package final class Output {
    package struct WriteError: Error, CustomStringConvertible {
        let code: CInt
        package var description: String { String(cString: strerror(code)) }
    }

    private static let bufferBytesMax = 65_536
    private var buffer: [UInt8] = []
    private var failure: WriteError?
    let isTerminal = isatty(STDOUT_FILENO) == 1

    package init() {}

    /// Whoever closes them before the program starts must not have the next file or socket that it
    /// opens take their numbers: what is meant for a person would go there. In their place stands what
    /// can neither be read nor written. Call it before anything is opened.
    package static func occupyStandardDescriptors() {
        for descriptor in STDIN_FILENO...STDERR_FILENO where fcntl(descriptor, F_GETFD) == -1 {
            // The lowest number that is free: this one.
            _ = open("/dev/null", (descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY) | O_CLOEXEC)
        }
    }

    /// No core file: the memory of this program may hold keys and tokens.
    package static func forbidCoreFiles() {
        var none = rlimit(rlim_cur: 0, rlim_max: 0)
        setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
    }

    package func write(_ text: String) { write(Array(text.utf8)) }

    package func write(_ bytes: [UInt8]) {
        buffer += bytes
        if buffer.count >= Self.bufferBytesMax { drain() }
    }

    /// Says something to the person, after the data written so far.
    func note(_ text: String) {
        drain()
        writeError("aspen-cli: \(text)\n")
    }

    package func flush() throws(WriteError) {
        drain()
        if let failure { throw failure }
    }

    private func drain() {
        var rest = buffer[...]
        while failure == nil, !rest.isEmpty {
            let count = rest.withUnsafeBytes {
                Glibc.write(STDOUT_FILENO, $0.baseAddress, $0.count)
            }
            if count > 0 {
                rest = rest.dropFirst(count)
            } else if errno == EPIPE {
                // The reader (`| head`) has seen enough: die of it quietly, as others do. The event
                // loop had the signal ignored.
                signal(SIGPIPE, SIG_DFL)
                raise(SIGPIPE)
            } else if errno != EINTR {
                failure = WriteError(code: errno)
            }
        }
        buffer.removeAll(keepingCapacity: true)
    }
}

/// Standard error, unbuffered, without tokens. If even that fails there is nobody left to tell.
package func writeError(_ text: String) {
    var rest = withoutTokens(Array(text.utf8))[...]
    while !rest.isEmpty {
        let count = rest.withUnsafeBytes { Glibc.write(STDERR_FILENO, $0.baseAddress, $0.count) }
        if count <= 0, errno != EINTR { return }
        rest = rest.dropFirst(max(0, count))
    }
}

/// The same without what may be a capability token, or a part of one: people paste it where it does not
/// belong, and errors repeat what was not understood.
func withoutTokens(_ text: [UInt8]) -> [UInt8] {
    /// Letters of base 32 in a row that no name or key of a person's is likely to have.
    let longWord = 200
    let prefix = Array("aspentoken".utf8)
    func isOfToken(_ byte: UInt8) -> Bool {
        (97...122).contains(byte | 32) || (50...55).contains(byte)
    }
    var shown: [UInt8] = []
    var rest = text[...]
    while let first = rest.first {
        guard isOfToken(first) else {
            shown.append(rest.removeFirst())
            continue
        }
        let word = rest.prefix(while: isOfToken)
        rest = rest.dropFirst(word.count)
        let isToken = word.count > prefix.count && word.map { $0 | 32 }.starts(with: prefix)
        shown += isToken || word.count >= longWord ? word.prefix(prefix.count) + "…".utf8 : word
    }
    return shown
}

/// Colours for a terminal, and for no one who does not want them (https://no-color.org).
struct Style {
    enum Colour: String {
        case green = "32"
        case yellow = "33"
        case red = "31"
    }

    let isColoured: Bool

    init(_ output: Output) {
        let refusal = getenv("NO_COLOR").map { $0[0] != 0 } ?? false
        let isDumb = getenv("TERM").map { String(cString: $0) == "dumb" } ?? true
        isColoured = output.isTerminal && !refusal && !isDumb
    }

    func paint(_ text: String, _ colour: Colour?) -> String {
        guard isColoured, let colour else { return text }
        return "\u{1b}[\(colour.rawValue)m\(text)\u{1b}[0m"
    }
}

extension String {
    /// Without `prefix`, if it begins with that.
    package func droppingPrefix(_ prefix: String) -> String {
        hasPrefix(prefix) ? String(dropFirst(prefix.count)) : self
    }
}
