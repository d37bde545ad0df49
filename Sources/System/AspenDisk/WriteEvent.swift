// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes

/// One step of what a process did to its data directory, in the order in which it happened.
///
/// Files are numbered, so that a write through a handle opened before a rename still finds its file.
/// Names are relative to the data directory and may name a subdirectory ("log/…").
package enum WriteEvent: Equatable, Sendable {
    /// Was there, and durable, before the recording began.
    case baseline(name: String, file: UInt32, bytes: [UInt8])
    case create(name: String, file: UInt32)
    /// Recorded when the call has returned.
    case write(file: UInt32, offset: UInt64, bytes: [UInt8])
    case truncate(file: UInt32, byteCount: UInt64)
    case rename(from: String, to: String)
    case remove(name: String)
    /// A sync covers what was recorded before it began, and counts once it has ended well.
    case syncBegan(file: UInt32, sync: UInt64)
    /// "" is the data directory itself.
    case directorySyncBegan(directory: String, sync: UInt64)
    case syncEnded(sync: UInt64)
    /// What the outside world was told ("acknowledged 17"): from here on it must survive.
    case note(String)
}

extension WriteEvent {
    /// Appends the event to a trace: a tag, then the fields.
    package func encode(into writer: inout ByteWriter) {
        switch self {
        case .baseline(let name, let file, let bytes):
            writer.byte(0)
            writer.string(name)
            writer.integer(file)
            writer.blob(bytes)
        case .create(let name, let file):
            writer.byte(1)
            writer.string(name)
            writer.integer(file)
        case .write(let file, let offset, let bytes):
            writer.byte(2)
            writer.integer(file)
            writer.integer(offset)
            writer.blob(bytes)
        case .truncate(let file, let byteCount):
            writer.byte(3)
            writer.integer(file)
            writer.integer(byteCount)
        case .rename(let from, let to):
            writer.byte(4)
            writer.string(from)
            writer.string(to)
        case .remove(let name):
            writer.byte(5)
            writer.string(name)
        case .syncBegan(let file, let sync):
            writer.byte(6)
            writer.integer(file)
            writer.integer(sync)
        case .directorySyncBegan(let directory, let sync):
            writer.byte(7)
            writer.string(directory)
            writer.integer(sync)
        case .syncEnded(let sync):
            writer.byte(8)
            writer.integer(sync)
        case .note(let text):
            writer.byte(9)
            writer.string(text)
        }
    }

    package static func decode(from reader: inout ByteReader) throws(DecodeError) -> WriteEvent {
        func name(_ reader: inout ByteReader) throws(DecodeError) -> String {
            try reader.string("name", max: 4096)
        }
        func bytes(_ reader: inout ByteReader) throws(DecodeError) -> [UInt8] {
            try reader.blob("bytes", max: Int(UInt32.max))
        }
        switch try reader.byte("tag") {
        case 0:
            return .baseline(
                name: try name(&reader), file: try reader.integer("file"),
                bytes: try bytes(&reader))
        case 1: return .create(name: try name(&reader), file: try reader.integer("file"))
        case 2:
            return .write(
                file: try reader.integer("file"), offset: try reader.integer("offset"),
                bytes: try bytes(&reader))
        case 3:
            return .truncate(
                file: try reader.integer("file"), byteCount: try reader.integer("byteCount"))
        case 4: return .rename(from: try name(&reader), to: try name(&reader))
        case 5: return .remove(name: try name(&reader))
        case 6:
            return .syncBegan(file: try reader.integer("file"), sync: try reader.integer("sync"))
        case 7:
            return .directorySyncBegan(
                directory: try name(&reader), sync: try reader.integer("sync"))
        case 8: return .syncEnded(sync: try reader.integer("sync"))
        case 9: return .note(try reader.string("note", max: 4096))
        default: throw .unknown(field: "tag")
        }
    }

    /// The events of a trace file. A last one that a kill cut short is left out.
    ///
    /// - Throws: if something other than the end of the trace is damaged.
    package static func decodeTrace(_ bytes: [UInt8]) throws(DecodeError) -> [WriteEvent] {
        var reader = ByteReader(bytes)
        var events: [WriteEvent] = []
        while reader.remaining > 0 {
            do throws(DecodeError) {
                events.append(try decode(from: &reader))
            } catch .truncated {
                break
            }
        }
        return events
    }
}
