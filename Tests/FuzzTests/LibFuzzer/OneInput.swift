// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

// One decoder under libFuzzer, which has the `main` of this program and its options. Which decoder
// is said by ASPEN_FUZZ_TARGET; without it, their names are printed. See `make fuzz`.

private enum Chosen {
    static let decoder = getenv("ASPEN_FUZZ_TARGET").flatMap { Decoder.named(String(cString: $0)) }
}

/// Called by libFuzzer once, before its first input.
@_cdecl("LLVMFuzzerInitialize")
func fuzzerInitialize(
    _ count: UnsafeMutablePointer<CInt>?,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?>?
) -> CInt {
    if Chosen.decoder == nil {
        for decoder in Decoder.all { print(decoder.name) }
        exit(getenv("ASPEN_FUZZ_TARGET") == nil ? 0 : 2)
    }
    return 0
}

/// Called by libFuzzer with each input; a trap in here is a finding.
@_cdecl("LLVMFuzzerTestOneInput")
func fuzzerTestOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    _ = Chosen.decoder?.decode(Array(UnsafeBufferPointer(start: bytes, count: count)))
    return 0
}
