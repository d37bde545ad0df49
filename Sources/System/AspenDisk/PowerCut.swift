// SPDX-License-Identifier: GPL-2.0-or-later

/// Replays a trace of writes and builds, at any point of it, images of what a power cut at that point
/// may leave behind.
///
/// The model is what POSIX leaves open, not what one file system happens to do (Pillai and others,
/// OSDI 2014): what a finished sync covered is there. Of later writes, each 512-byte sector holds any
/// of the versions it went through, independently of all other sectors and files; the size of a file
/// is any that it had; a created, renamed or removed name is as before or as after, unless its
/// directory was synced since. A rename is atomic. A sync of a file says nothing about its name.
package struct PowerCutReplay: Sendable {
    package static let sectorByteCount = 512

    package let events: [WriteEvent]
    /// How many events have been replayed.
    package private(set) var position = 0

    private var files: [UInt32: TracedFile] = [:]
    private var directories: [String: TracedDirectory] = [:]
    /// Syncs that have begun: what they cover once they have ended.
    private var syncs: [UInt64: Covered] = [:]

    private enum Covered: Sendable {
        case file(UInt32, upTo: Int)
        case directory(String, upTo: Int)
    }

    package init(events: [WriteEvent]) { self.events = events }

    /// Goes on to where `position` events have happened; never back.
    package mutating func advance(to position: Int) {
        precondition(position >= self.position && position <= events.count, "replays run forwards")
        while self.position < position {
            apply(events[self.position])
            self.position += 1
        }
    }

    /// One of the images that a power cut here permits, drawn by `random`.
    package func image(using random: inout some RandomNumberGenerator) -> DiskImage {
        var image = DiskImage()
        for directory in directories.keys.sorted() {
            guard let entries = directories[directory]?.entries(using: &random) else { continue }
            for name in entries.keys.sorted() {
                guard let number = entries[name], let file = files[number] else { continue }
                image.files[name] = file.content(using: &random)
            }
        }
        return image
    }

    /// What would be there if nothing were lost: the image of a killed process.
    package var currentImage: DiskImage {
        var image = DiskImage()
        for directory in directories.values {
            for (name, number) in directory.currentEntries {
                image.files[name] = files[number]?.currentContent
            }
        }
        return image
    }

    private mutating func apply(_ event: WriteEvent) {
        switch event {
        case .baseline(let name, let file, let bytes):
            files[file] = TracedFile(durable: bytes)
            directories[Self.directory(of: name), default: .init()].durable[name] = file
        case .create(let name, let file):
            files[file] = TracedFile(durable: [])
            directories[Self.directory(of: name), default: .init()].add(.link(name, file))
        case .write(let file, let offset, let bytes):
            files[file]?.add(.write(offset: Int(offset), bytes: bytes))
        case .truncate(let file, let byteCount):
            files[file]?.add(.truncate(Int(byteCount)))
        case .rename(let from, let to):
            let directory = Self.directory(of: from)
            precondition(directory == Self.directory(of: to), "renames stay in their directory")
            directories[directory, default: .init()].add(.rename(from, to))
        case .remove(let name):
            directories[Self.directory(of: name), default: .init()].add(.unlink(name))
        case .syncBegan(let file, let sync):
            if let traced = files[file] { syncs[sync] = .file(file, upTo: traced.end) }
        case .directorySyncBegan(let directory, let sync):
            if let traced = directories[directory] {
                syncs[sync] = .directory(directory, upTo: traced.end)
            }
        case .syncEnded(let sync):
            switch syncs.removeValue(forKey: sync) {
            case .file(let file, let end)?: files[file]?.settle(upTo: end)
            case .directory(let directory, let end)?: directories[directory]?.settle(upTo: end)
            case nil: break
            }
        case .note: break
        }
    }

    private static func directory(of name: String) -> String {
        name.lastIndex(of: "/").map { String(name[..<$0]) } ?? ""
    }
}

/// The names of one directory: what is certain, and what has happened since.
struct TracedDirectory: Sendable {
    enum Change: Sendable {
        case link(String, UInt32)
        case rename(String, String)
        case unlink(String)
    }

    var durable: [String: UInt32] = [:]
    private var pending: [Change] = []
    private var settled = 0

    /// Counts all changes ever.
    var end: Int { settled + pending.count }

    mutating func add(_ change: Change) { pending.append(change) }

    mutating func settle(upTo end: Int) {
        let count = max(0, end - settled)
        for change in pending.prefix(count) { Self.apply(change, to: &durable) }
        pending.removeFirst(count)
        settled += count
    }

    var currentEntries: [String: UInt32] {
        var entries = durable
        for change in pending { Self.apply(change, to: &entries) }
        return entries
    }

    func entries(using random: inout some RandomNumberGenerator) -> [String: UInt32] {
        var entries = durable
        // A journal keeps the order, POSIX does not: both are tried.
        let isOrdered = Bool.random(using: &random)
        let count = Int.random(in: 0...pending.count, using: &random)
        for (position, change) in pending.enumerated() {
            let isKept = isOrdered ? position < count : Bool.random(using: &random)
            if isKept { Self.apply(change, to: &entries) }
        }
        return entries
    }

    private static func apply(_ change: Change, to entries: inout [String: UInt32]) {
        switch change {
        case .link(let name, let file): entries[name] = file
        case .rename(let from, let to):
            if let file = entries.removeValue(forKey: from) { entries[to] = file }
        case .unlink(let name): entries[name] = nil
        }
    }
}

/// The content of one file: what is certain, and what has been written since.
struct TracedFile: Sendable {
    enum Change: Sendable {
        case write(offset: Int, bytes: [UInt8])
        case truncate(Int)
    }

    private(set) var durable: [UInt8]
    private var pending: [Change] = []
    private var settled = 0

    init(durable: [UInt8]) { self.durable = durable }

    /// Counts all changes ever.
    var end: Int { settled + pending.count }

    mutating func add(_ change: Change) { pending.append(change) }

    mutating func settle(upTo end: Int) {
        let count = max(0, end - settled)
        for change in pending.prefix(count) { Self.apply(change, to: &durable) }
        pending.removeFirst(count)
        settled += count
    }

    var currentContent: [UInt8] {
        var content = durable
        for change in pending { Self.apply(change, to: &content) }
        return content
    }

    func content(using random: inout some RandomNumberGenerator) -> [UInt8] {
        guard !pending.isEmpty else { return durable }
        switch Int.random(in: 0..<6, using: &random) {
        case 0: return durable
        case 1: return currentContent
        case 2:
            // The first few, the last of them torn.
            let count = Int.random(in: 1...pending.count, using: &random)
            return torn(pending.prefix(count), firstTorn: count - 1, using: &random)
        case 3:
            // Some whole writes and not others, however they were ordered.
            var content = durable
            for change in pending where Bool.random(using: &random) {
                Self.apply(change, to: &content)
            }
            return content
        default: return torn(pending[...], firstTorn: 0, using: &random)
        }
    }

    /// Keeps the changes before `firstTorn`; of the others, each sector takes part in its first so
    /// and so many.
    private func torn(
        _ changes: ArraySlice<Change>, firstTorn: Int,
        using random: inout some RandomNumberGenerator
    ) -> [UInt8] {
        var content = durable
        for change in changes.prefix(firstTorn) { Self.apply(change, to: &content) }
        let rest = changes.dropFirst(firstTorn)
        var sizes = [content.count]
        var touches: [Int: Int] = [:]
        for change in rest {
            switch change {
            case .truncate(let byteCount): sizes.append(byteCount)
            case .write(let offset, let bytes):
                sizes.append(max(sizes[sizes.count - 1], offset + bytes.count))
                for sector in Self.sectors(offset, bytes.count) { touches[sector, default: 0] += 1 }
            }
        }
        // Lost sectors come in runs as often as singly.
        let isMostlyKept = Bool.random(using: &random)
        var kept: [Int: Int] = [:]
        for change in rest {
            guard case .write(let offset, let bytes) = change else { continue }
            for sector in Self.sectors(offset, bytes.count) {
                let isWhole = isMostlyKept && Int.random(in: 0..<8, using: &random) > 0
                let all = touches[sector, default: 0]
                let left =
                    kept[sector] ?? (isWhole ? all : Int.random(in: 0...all, using: &random))
                if left > 0 { Self.copy(sector, of: bytes, at: offset, to: &content) }
                kept[sector] = left - 1
            }
        }
        let size =
            Bool.random(using: &random)
            ? sizes[sizes.count - 1] : sizes.randomElement(using: &random) ?? content.count
        Self.apply(.truncate(size), to: &content)
        return content
    }

    private static func sectors(_ offset: Int, _ count: Int) -> Range<Int> {
        let size = PowerCutReplay.sectorByteCount
        return offset / size..<(offset + count + size - 1) / size
    }

    private static func copy(
        _ sector: Int, of bytes: [UInt8], at offset: Int, to content: inout [UInt8]
    ) {
        let size = PowerCutReplay.sectorByteCount
        let start = max(sector * size, offset)
        let end = min((sector + 1) * size, offset + bytes.count)
        apply(
            .write(offset: start, bytes: Array(bytes[start - offset..<end - offset])), to: &content)
    }

    private static func apply(_ change: Change, to content: inout [UInt8]) {
        switch change {
        case .truncate(let byteCount):
            if byteCount < content.count {
                content.removeLast(content.count - byteCount)
            } else {
                content.append(contentsOf: repeatElement(0, count: byteCount - content.count))
            }
        case .write(let offset, let bytes):
            let end = offset + bytes.count
            if end > content.count {
                content.append(contentsOf: repeatElement(0, count: end - content.count))
            }
            content.withUnsafeMutableBytes { target in
                bytes.withUnsafeBytes { source in
                    UnsafeMutableRawBufferPointer(rebasing: target[offset..<end])
                        .copyMemory(from: source)
                }
            }
        }
    }
}
