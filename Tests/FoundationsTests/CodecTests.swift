// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import Testing

@Suite struct CodecTests {
    @Test func crc32cVectors() {
        #expect(CRC32C.of([UInt8](repeating: 0, count: 32)) == 0x8a91_36aa)
        #expect(CRC32C.of([UInt8](repeating: 0xff, count: 32)) == 0x62a8_ab43)
        #expect(CRC32C.of(Array("123456789".utf8)) == 0xe306_9283)
    }
}
