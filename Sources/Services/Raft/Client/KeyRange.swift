// SPDX-License-Identifier: GPL-2.0-or-later

/// Keys from `from`, before `to`, in the order of their bytes.
public struct KeyRange: Sendable, Hashable {
    /// The first key that may be in it; empty: from the beginning.
    public var from: [UInt8]
    /// The first key behind it; nil: to the end.
    public var to: [UInt8]?

    public init(
        from: some Collection<UInt8> = [UInt8](), to: (some Collection<UInt8>)? = [UInt8]?.none
    ) {
        self.from = Array(from)
        self.to = to.map { Array($0) }
    }

    /// Every key that begins with `prefix`.
    public init(prefix: some Collection<UInt8>) {
        from = Array(prefix)
        var end = from
        while let last = end.popLast() {
            if last < 0xff {
                end.append(last + 1)
                to = end
                return
            }
        }
        to = nil
    }

    /// One key.
    public init(key: some Collection<UInt8>) {
        from = Array(key)
        to = from + [0]
    }

    /// Every key that begins with the text.
    public init(prefix: String) { self.init(prefix: Array(prefix.utf8)) }

    /// One key, the text's UTF-8.
    public init(key: String) { self.init(key: Array(key.utf8)) }

    /// All keys.
    public static let all = KeyRange(prefix: [UInt8]())
}
