// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// Where the local daemon is when nobody says: systemd's socket, or that of a foreground node which
/// was started from this directory (`aspen-node` keeps its data in `./data/node-ID`).
package enum LocalSocket {
    package static let ofSystem = "/run/aspen/raft.sock"
    private static let nodePrefix = "node-"

    /// The path to try. Among several foreground nodes the one with the lowest number that somebody
    /// serves; where there is none at all `ofSystem`, so that the error names the usual place.
    package static func find(system: String = ofSystem, data: String = "data") -> String {
        if access(system, F_OK) == 0 { return system }
        let candidates = nodes(in: data).sorted().map { "\(data)/\(nodePrefix)\($0)/run/raft.sock" }
        return candidates.first(where: isServed) ?? system
    }

    private static func nodes(in directory: String) -> [UInt64] {
        guard let stream = opendir(directory) else { return [] }
        defer { closedir(stream) }
        var numbers: [UInt64] = []
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard name.hasPrefix(nodePrefix), let number = UInt64(name.dropFirst(nodePrefix.count))
            else { continue }
            numbers.append(number)
        }
        return numbers
    }

    /// A socket file outlives a killed node: only connecting tells.
    private static func isServed(_ path: String) -> Bool {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return false }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let descriptor = socket(
            AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            }
        }
    }
}
