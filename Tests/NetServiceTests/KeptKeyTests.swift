// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenSystem
import Glibc
import ServiceKit
import Testing

@testable import NetService

extension NetServiceTests {
    /// The stretched cookie that outlives the process.
    @Suite struct KeptKeyTests {
        private let cookie = Secret(Array(Cookies.text.utf8))

        @Test func aKeptKeyIsUsedForTheCookieItWasMadeFromOnly() throws {
            let memory = try #require(Cookies.right.kept(for: cookie))
            defer { close(memory) }
            let exported = [UInt8](repeating: 3, count: 32)
            let proof = Cookies.right.proof(of: .dialler, exported: exported)
            let kept = try #require(CookieKey(keptIn: memory, for: cookie))
            #expect(kept.verifies(proof, of: .dialler, exported: exported))
            #expect(CookieKey(keptIn: memory, for: Secret(Array("other".utf8))) == nil)
            #expect(CookieKey(keptIn: memory, for: Secret([])) == nil)
            #expect(CookieKey(keptIn: -1, for: cookie) == nil)
        }

        @Test func nobodyCanChangeTheMemoryAndTheCookieIsNotInIt() throws {
            let memory = try #require(Cookies.right.kept(for: cookie))
            defer { close(memory) }
            var facts = stat()
            #expect(fstat(memory, &facts) == 0)
            #expect(facts.st_mode & 0o7777 == 0o600)
            #expect(facts.st_nlink == 0, "no name leads to it")
            #expect(aspen_is_sealed(memory) == 1)
            #expect(pwrite(memory, "x", 1, 0) < 0)
            #expect(ftruncate(memory, 0) < 0)
            let mapped = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0)
            #expect(mapped == MAP_FAILED)
            let flags = fcntl(memory, F_GETFD)
            #expect(flags & FD_CLOEXEC != 0)
            #expect(!Self.content(of: memory).contains(Array(Cookies.text.utf8).prefix(8)))
        }

        @Test func aMemoryFileThatIsNotWholeOrNotSealedIsNoKey() throws {
            let memory = try #require(Cookies.right.kept(for: cookie))
            defer { close(memory) }
            let bytes = Self.content(of: memory)
            for changed in [[], Array(bytes.dropLast()), bytes + [0], [0] + bytes.dropFirst()]
                + bytes.indices.map({ place in
                    var bytes = bytes
                    bytes[place] ^= 1
                    return bytes
                })
            {
                let other = aspen_memory_file("test", changed, changed.count)
                #expect(CookieKey(keptIn: other, for: cookie) == nil)
                close(other)
            }
            let scratch = Scratch()
            let path = "\(scratch.path)/copy"
            let file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
            defer { close(file) }
            #expect(write(file, bytes, bytes.count) == bytes.count)
            #expect(CookieKey(keptIn: file, for: cookie) == nil, "a file is not sealed")
        }

        /// As under systemd with FileDescriptorStoreMax=: what the program asks to keep it is given
        /// again, and a changed cookie makes it drop that.
        @Test func aChangedCookieIsStretchedAnew() async throws {
            let node = TestNode()
            let process = NetProcess(node: node)
            defer { process.kill() }
            let sentence = "the key of the cookie was kept"
            func restart(expecting uses: Int, _ comment: Comment) async throws {
                let before = process.log.split(separator: "\n").count {
                    $0.contains("aspend-net serves")
                }
                process.kill()
                process.start()
                let serves = await eventually {
                    process.log.split(separator: "\n").count { $0.contains("aspend-net serves") }
                        > before
                }
                try #require(serves)
                process.readNotifications()
                #expect(process.kept.count == 1, comment)
                #expect(
                    process.log.split(separator: "\n").count { $0.contains(sentence) } == uses,
                    comment)
            }
            try await restart(expecting: 0, "the first start")
            let first = Self.content(of: process.kept[0])
            try await restart(expecting: 1, "the same cookie")
            #expect(Self.content(of: process.kept[0]) == first)
            let other = "quite another cookie of 32 bytes"
            process.changeCookie(other)
            try await restart(expecting: 1, "another cookie")
            #expect(process.said.contains("FDSTOREREMOVE=1\nFDNAME=cookie-key"))
            let second = Self.content(of: process.kept[0])
            #expect(second != first)
            try await restart(expecting: 2, "the other cookie again")
            #expect(CookieKey(keptIn: process.kept[0], for: cookie) == nil)
            #expect(CookieKey(keptIn: process.kept[0], for: Secret(Array(other.utf8))) != nil)
            let key = first.suffix(64).prefix(32).map { String($0, radix: 16) }.joined()
            for secret in [Cookies.text, other, key] {
                #expect(!process.log.contains(secret))
                #expect(!process.said.contains { $0.contains(secret) })
            }
        }

        private static func content(of descriptor: CInt) -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = pread(descriptor, &bytes, bytes.count, 0)
            return Array(bytes.prefix(max(0, count)))
        }
    }
}
