// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import Glibc
import NIOCore
import Testing

extension Decoder: CustomTestStringConvertible {
    var testDescription: String { name }
}

/// Mutated inputs for everything that decodes what others send: a trap is the end of this process.
/// `make fuzz` has the same decoders under libFuzzer, which sees where its inputs get to.
///
/// Without variables, some thousand inputs from fixed seeds. By hand: ASPEN_FUZZ_SECONDS (for each
/// decoder), ASPEN_FUZZ_SEED, ASPEN_FUZZ_ONLY, and ASPEN_FUZZ_DIRECTORY, where the input at hand
/// survives a trap as NAME.last. ASPEN_FUZZ_RECORD writes the corpus anew.
@Suite(.serialized) struct FuzzTests {
    private static let inputsPerTest = 3000

    @Test(arguments: Decoder.all)
    func mutatedInputsGiveValuesOrErrors(_ decoder: Decoder) throws {
        if let only = variable("ASPEN_FUZZ_ONLY"), only != decoder.name { return }
        let corpus = try Corpus.read(decoder.name)
        for input in corpus { #expect(decoder.decode(input), "the corpus means something") }
        let seed = variable("ASPEN_FUZZ_SEED").flatMap { UInt64($0) } ?? 1
        var mutator = Mutator(seed: seed, corpus: corpus)
        let witness = try Witness(decoder.name)
        let resident = residentBytes()
        var understood = 0
        var count = 0
        let seconds = variable("ASPEN_FUZZ_SECONDS").flatMap { Int64($0) }
        let end = seconds.map { NIODeadline.now() + .seconds($0) }
        while true {
            if let end {
                if count % 256 == 0, NIODeadline.now() >= end { break }
            } else if count == Self.inputsPerTest {
                break
            }
            let input = mutator.next()
            witness?.note(input)
            if decoder.decode(input) { understood += 1 }
            count += 1
        }
        #expect(understood > 0 && understood < count, "\(understood) of \(count) mean something")
        let growth = residentBytes() - resident
        #expect(growth < 64 << 20, "\(growth) bytes")
        if seconds != nil {
            print("fuzz \(decoder.name): seed \(seed), \(count) inputs, \(understood) understood")
        }
    }

    /// A decoder that traps would be seen: the inputs reach past the first bytes.
    @Test func mutationsReachDeep() throws {
        let corpus = try Corpus.read("raft-message")
        var mutator = Mutator(seed: 1, corpus: corpus)
        var lengths: Set<Int> = []
        for _ in 0..<1000 { lengths.insert(mutator.next().count) }
        #expect(lengths.count > 50 && lengths.allSatisfy { $0 <= Mutator.bytesMax })
    }

    @Test func theCorpusIsRecorded() throws {
        for decoder in Decoder.all {
            let examples = try decoder.examples()
            #expect(!examples.isEmpty)
            if variable("ASPEN_FUZZ_RECORD") != nil { try Corpus.write(decoder.name, examples) }
            let recorded = Set(try Corpus.read(decoder.name))
            #expect(examples.allSatisfy(recorded.contains), "\(decoder.name): record it again")
        }
    }
}

private func variable(_ name: String) -> String? {
    getenv(name).map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 }
}

private struct Failure: Error { let what: String }

/// Inputs to begin with: one file for each decoder, a line of hexadecimal digits for each input.
private enum Corpus {
    private static func path(_ name: String) -> String {
        "\(#filePath.split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" })/Corpus/\(name).hex"
    }

    static func read(_ name: String) throws -> [[UInt8]] {
        guard let file = fopen(path(name), "r") else {
            throw Failure(what: "no corpus for \(name)")
        }
        defer { fclose(file) }
        var content: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while case let count = fread(&buffer, 1, buffer.count, file), count > 0 {
            content += buffer.prefix(count)
        }
        let lines = String(decoding: content, as: UTF8.self).split(separator: "\n")
        return try lines.filter { !$0.hasPrefix("#") }.map { line in
            let digits = Array(line)
            return try stride(from: 0, to: digits.count - 1, by: 2).map { place in
                guard let byte = UInt8(String(digits[place...place + 1]), radix: 16) else {
                    throw Failure(what: "\(name): \(line)")
                }
                return byte
            }
        }
    }

    static func write(_ name: String, _ inputs: [[UInt8]]) throws {
        guard let file = fopen(path(name), "w") else { throw Failure(what: path(name)) }
        defer { fclose(file) }
        fputs("# SPDX-License-Identifier: GPL-2.0-or-later\n", file)
        for input in inputs {
            let digits = input.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
            fputs(digits.joined() + "\n", file)
        }
    }
}

/// A file that shows the input at hand even after a trap: length u32 LE, then the bytes.
private final class Witness {
    private let memory: UnsafeMutableRawPointer
    private static let bytesMax = 4 + Mutator.bytesMax

    /// - Returns: nil when nobody wants to know.
    init?(_ name: String) throws {
        guard let directory = variable("ASPEN_FUZZ_DIRECTORY") else { return nil }
        let file = open("\(directory)/\(name).last", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        defer { close(file) }
        guard file >= 0, ftruncate(file, off_t(Self.bytesMax)) == 0,
            let memory = mmap(
                nil, Self.bytesMax, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0),
            memory != MAP_FAILED
        else { throw Failure(what: "no place for inputs in \(directory)") }
        self.memory = memory
    }

    deinit { munmap(memory, Self.bytesMax) }

    func note(_ input: [UInt8]) {
        memory.storeBytes(of: UInt32(input.count).littleEndian, as: UInt32.self)
        input.withUnsafeBytes {
            if let base = $0.baseAddress {
                (memory + 4).copyMemory(from: base, byteCount: $0.count)
            }
        }
    }
}

/// The resident set of this process (proc(5): statm).
private func residentBytes() -> Int {
    let descriptor = open("/proc/self/statm", O_RDONLY)
    defer { close(descriptor) }
    var buffer = [UInt8](repeating: 0, count: 256)
    let count = read(descriptor, &buffer, buffer.count)
    let fields = String(decoding: buffer.prefix(max(0, count)), as: UTF8.self).split(separator: " ")
    return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4096
}
