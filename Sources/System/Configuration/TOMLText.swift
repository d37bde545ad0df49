// SPDX-License-Identifier: GPL-2.0-or-later

/// The four kinds of strings.
extension TOMLReader {
    /// With one quote or three, at the opening quote.
    mutating func text() throws(TOMLError) -> String {
        guard let quote = peek(), peek(1) == quote, peek(2) == quote else {
            return try shortText()
        }
        let start = line
        position += 3
        _ = takeLineEnd()
        var text: [UInt8] = []
        while let byte = peek() {
            if byte == quote, peek(1) == quote, peek(2) == quote {
                position += 3
                // Up to two quotes may stand right before the closing three.
                for _ in 0..<2 where peek() == quote {
                    text.append(quote)
                    position += 1
                }
                return String(decoding: text, as: UTF8.self)
            } else if takeLineEnd() {
                // One text, whichever system's editor wrote the file.
                text.append(UInt8(ascii: "\n"))
            } else if byte == UInt8(ascii: "\\"), quote == UInt8(ascii: "\"") {
                if try !skipFoldedLine() { try escape(into: &text) }
            } else {
                text.append(try character())
            }
        }
        throw endless("text", start)
    }

    /// With one quote.
    mutating func shortText() throws(TOMLError) -> String {
        let quote = peek()
        position += 1
        var text: [UInt8] = []
        while let byte = peek() {
            if byte == quote {
                position += 1
                return String(decoding: text, as: UTF8.self)
            } else if byte == UInt8(ascii: "\\"), quote == UInt8(ascii: "\"") {
                try escape(into: &text)
            } else {
                text.append(try character())
            }
        }
        throw endless("text", line)
    }

    private mutating func character() throws(TOMLError) -> UInt8 {
        guard let byte = peek(), Self.isAllowed(byte) else {
            throw unexpected("a text ends with its quote, and has no control characters")
        }
        position += 1
        return byte
    }

    /// A backslash at the end of a line, and all blanks and lines behind it.
    /// - Returns: false, having taken nothing, for another backslash.
    private mutating func skipFoldedLine() throws(TOMLError) -> Bool {
        let start = position
        position += 1
        try skipBlanks()
        guard takeLineEnd() else {
            position = start
            return false
        }
        repeat { try skipBlanks() } while takeLineEnd()
        return true
    }

    private mutating func escape(into text: inout [UInt8]) throws(TOMLError) {
        position += 1
        switch peek() {
        case UInt8(ascii: "b"): text.append(0x08)
        case UInt8(ascii: "t"): text.append(0x09)
        case UInt8(ascii: "n"): text.append(0x0a)
        case UInt8(ascii: "f"): text.append(0x0c)
        case UInt8(ascii: "r"): text.append(0x0d)
        case UInt8(ascii: "\""): text.append(UInt8(ascii: "\""))
        case UInt8(ascii: "\\"): text.append(UInt8(ascii: "\\"))
        case UInt8(ascii: "u"): return try scalar(digits: 4, into: &text)
        case UInt8(ascii: "U"): return try scalar(digits: 8, into: &text)
        default:
            throw unexpected(
                "a backslash is followed by one of b t n f r u U \" \\ (or write '…', in which it "
                    + "means itself)")
        }
        position += 1
    }

    private mutating func scalar(digits: Int, into text: inout [UInt8]) throws(TOMLError) {
        position += 1
        var number: UInt32 = 0
        for _ in 0..<digits {
            guard let byte = peek(), let digit = TOMLWord.digit(byte) else {
                throw unexpected("\(digits) hexadecimal digits must stand here")
            }
            number = number << 4 | UInt32(digit)
            position += 1
        }
        guard number > 0 else {
            throw TOMLError(line: line, message: "a NUL stands in no setting")
        }
        guard let scalar = Unicode.Scalar(number) else {
            let name = String(number, radix: 16, uppercase: true)
            throw TOMLError(line: line, message: "U+\(name) is no character")
        }
        text.append(contentsOf: String(scalar).utf8)
    }
}
