// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import DNSWire
import Glibc

/// A name server that this machine asks.
package struct NameServer: Equatable, Sendable {
    package var address: IPAddress
    package var port: UInt16

    package init(_ address: IPAddress, port: UInt16) {
        self.address = address
        self.port = port
    }

    /// "192.0.2.1:53", "[2001:db8::1]:53"
    package var text: String { address.text(port: port) }
}

/// Which name servers this machine asks: those of a setting, else those of resolv.conf(5).
package enum NameServers {
    package static let resolverFile = "/etc/resolv.conf"
    private static let port: UInt16 = 53

    /// The servers that a text in the form of resolv.conf(5) names, in its order; at most
    /// `EgressLimits.nameServersMax`. Addresses with a scope (`fe80::1%eth0`) and what is no address are
    /// passed over. None at all means the machine itself, as for the C library.
    package static func parse(_ text: [UInt8]) -> [NameServer] {
        var found: [NameServer] = []
        for line in text.split(separator: UInt8(ascii: "\n")) {
            let words = line.split { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\t") }
            guard words.count >= 2, words[0].elementsEqual("nameserver".utf8),
                let address = IPAddress(String(decoding: words[1], as: UTF8.self)),
                address.isUnicast
            else { continue }
            let server = NameServer(address, port: port)
            if !found.contains(server) { found.append(server) }
            if found.count == EgressLimits.nameServersMax { break }
        }
        return found.isEmpty ? [NameServer(.v4(0x7f00_0001), port: port)] : found
    }

    /// Those of the file as it is now; a file that cannot be read counts as empty.
    package static func ofMachine(_ path: String = resolverFile) -> [NameServer] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return parse([]) }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: EgressLimits.resolverFileBytesMax)
        var count = 0
        while count < bytes.count {
            let got = bytes.withUnsafeMutableBytes {
                read(descriptor, $0.baseAddress?.advanced(by: count), $0.count - count)
            }
            guard got > 0 else { break }
            count += got
        }
        return parse(Array(bytes[..<count]))
    }

    /// - Throws: `invalidArgument` that names the setting and says what it should be.
    package static func ofSetting(_ texts: [String]) throws(AspenError) -> [NameServer] {
        guard texts.count <= EgressLimits.nameServersMax else {
            throw AspenError(
                .invalidArgument,
                "--dns-servers (ASPEN_DNS_SERVERS) names \(texts.count) servers; at most "
                    + "\(EgressLimits.nameServersMax) can be")
        }
        var found: [NameServer] = []
        for text in texts {
            guard let (address, port) = IPAddress.parse(text), address.isUnicast else {
                throw AspenError(
                    .invalidArgument,
                    "--dns-servers (ASPEN_DNS_SERVERS): '\(text)' is no address with a port "
                        + "(192.0.2.1:53 or [2001:db8::1]:53)")
            }
            found.append(NameServer(address, port: port))
        }
        return found
    }
}
