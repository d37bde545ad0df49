// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// Makes inputs that nearly mean something out of those that do.
struct Mutator {
    /// Longest input made, in bytes.
    static let bytesMax = 4096
    private static let interesting: [UInt64] = [
        0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000,
        0xffff_ffff, 1 << 62, (1 << 63) - 1, 1 << 63, .max,
    ]

    private var random: RandomSource
    private let corpus: [[UInt8]]

    /// - Parameter corpus: at least one input.
    init(seed: UInt64, corpus: [[UInt8]]) {
        precondition(!corpus.isEmpty, "nothing to begin with")
        random = RandomSource(seed: seed)
        self.corpus = corpus
    }

    mutating func next() -> [UInt8] {
        var input = corpus[random.uniform(0..<corpus.count)]
        for _ in 0..<random.uniform(1..<6) { mutate(&input) }
        if input.count > Self.bytesMax { input.removeLast(input.count - Self.bytesMax) }
        return input
    }

    private mutating func mutate(_ input: inout [UInt8]) {
        guard !input.isEmpty else {
            input = (0..<random.uniform(1..<9)).map { _ in byte() }
            return
        }
        let place = random.uniform(0..<input.count)
        switch random.uniform(0..<10) {
        case 0, 1: input[place] ^= 1 << random.uniform(0..<8)
        case 2: input[place] = byte()
        case 3: input[place] &+= random.chance(1, in: 2) ? 1 : 255
        case 4: overwrite(&input, at: place)
        case 5: input.removeSubrange(place..<min(input.count, place + random.uniform(1..<17)))
        case 6: input.removeLast(input.count - place)
        case 7:
            input.insert(contentsOf: (0..<random.uniform(1..<17)).map { _ in byte() }, at: place)
        case 8:
            let end = min(input.count, place + random.uniform(1..<65))
            input.insert(contentsOf: input[place..<end], at: random.uniform(0..<input.count + 1))
        default:
            let other = corpus[random.uniform(0..<corpus.count)]
            guard !other.isEmpty else { return }
            input = Array(input[..<place]) + other[random.uniform(0..<other.count)...]
        }
    }

    /// An integer of 1, 2, 4 or 8 bytes, little-endian, of a kind that breaks sums.
    private mutating func overwrite(_ input: inout [UInt8], at place: Int) {
        var value = Self.interesting[random.uniform(0..<Self.interesting.count)]
        if random.chance(1, in: 4) { value = UInt64(input.count) &+ random.uniform(0..<3) &- 1 }
        for offset in 0..<(1 << random.uniform(0..<4)) where place + offset < input.count {
            input[place + offset] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(offset)))
        }
    }

    private mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: random.next()) }
}
