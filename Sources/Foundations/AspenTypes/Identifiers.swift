// SPDX-License-Identifier: GPL-2.0-or-later

// Every id is a type of its own, so that a term is never passed where an index is meant.

/// The number an operator gives a node; unique in a cluster, never zero.
public struct NodeID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static func < (left: NodeID, right: NodeID) -> Bool { left.rawValue < right.rawValue }
    public var description: String { String(rawValue) }
}

/// An Ed25519 public key (32 bytes, RFC 8032): who a node is on the network.
///
/// The bytes are held inline as four words, so that an id can be a dictionary key without an
/// allocation.
public struct EndpointID: Hashable, Comparable, Sendable {
    public static let byteCount = 32
    let a: UInt64, b: UInt64, c: UInt64, d: UInt64

    /// - Returns: nil unless `bytes` holds exactly 32 bytes.
    public init?(bytes: some Collection<UInt8>) {
        guard bytes.count == Self.byteCount else { return nil }
        func take(_ raw: UnsafeRawBufferPointer) -> (UInt64, UInt64, UInt64, UInt64) {
            func word(_ number: Int) -> UInt64 {
                UInt64(
                    bigEndian: raw.loadUnaligned(fromByteOffset: 8 * number, as: UInt64.self))
            }
            return (word(0), word(1), word(2), word(3))
        }
        (a, b, c, d) =
            bytes.withContiguousStorageIfAvailable { take(UnsafeRawBufferPointer($0)) }
            ?? Array(bytes).withUnsafeBytes(take)
    }

    /// The 32 bytes of the key, in the order of RFC 8032.
    public var bytes: [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(Self.byteCount)
        for word in [a, b, c, d] {
            for shift in stride(from: 56, through: 0, by: -8) {
                result.append(UInt8(truncatingIfNeeded: word >> UInt64(shift)))
            }
        }
        return result
    }

    public static func < (left: EndpointID, right: EndpointID) -> Bool {
        (left.a, left.b, left.c, left.d) < (right.a, right.b, right.c, right.d)
    }
}

/// Random, chosen by `cluster init`; names a cluster and is no secret.
public struct ClusterID: Hashable, Sendable {
    public let rawValue: UInt128
    public init(_ rawValue: UInt128) { self.rawValue = rawValue }
}

/// Random, born with a data directory: a wiped node is another replica, even under its old name.
public struct ReplicaID: Hashable, Sendable {
    public let rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// A Raft term; zero means that no election has taken place.
public struct Term: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = Term(0)
    public static func < (left: Term, right: Term) -> Bool { left.rawValue < right.rawValue }
    public var next: Term { Term(rawValue + 1) }
    public var description: String { String(rawValue) }
}

/// A place in the Raft log; the first entry has index 1, zero means "before the first".
public struct LogIndex: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = LogIndex(0)
    public static func < (left: LogIndex, right: LogIndex) -> Bool {
        left.rawValue < right.rawValue
    }
    public var next: LogIndex { LogIndex(rawValue + 1) }
    /// The index before this one; zero stays zero.
    public var previous: LogIndex { LogIndex(rawValue == 0 ? 0 : rawValue - 1) }
    public func advanced(by count: Int) -> LogIndex { LogIndex(rawValue + UInt64(count)) }
    public var description: String { String(rawValue) }
}

/// The cluster-wide revision of the key-value store: grows by one with every write transaction.
public struct Revision: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = Revision(0)
    public static func < (left: Revision, right: Revision) -> Bool {
        left.rawValue < right.rawValue
    }
    public var next: Revision { Revision(rawValue + 1) }
    public var description: String { String(rawValue) }
}

/// A client session: the log index of the entry that registered it.
public struct SessionID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static func < (left: SessionID, right: SessionID) -> Bool {
        left.rawValue < right.rawValue
    }
    public var description: String { String(rawValue) }
}

/// A lease: keys attached to it go when it does. Zero: none.
public struct LeaseID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public static let none = LeaseID(0)
    public let rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static func < (left: LeaseID, right: LeaseID) -> Bool {
        left.rawValue < right.rawValue
    }
    public var description: String { String(rawValue) }
}

/// Milliseconds of cluster time: carried by log entries, equal on every replica, never going back.
/// It starts near the wall clock of the first leader, but is no wall clock.
public struct ClusterTime: Hashable, Comparable, Sendable {
    public let milliseconds: UInt64
    public init(milliseconds: UInt64) { self.milliseconds = milliseconds }
    public static let zero = ClusterTime(milliseconds: 0)
    public static func < (left: ClusterTime, right: ClusterTime) -> Bool {
        left.milliseconds < right.milliseconds
    }
}
