// SPDX-License-Identifier: GPL-2.0-or-later

/// Values that are one word: truth values, numbers, dates and times.
enum TOMLWord {
    struct Refusal: Error {
        /// Follows the word: "is no value…".
        var message: String
    }

    typealias Word = ArraySlice<UInt8>

    static func isDigit(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }

    static func isLetterOrDigit(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"): true
        default: isDigit(byte)
        }
    }

    /// Hexadecimal.
    static func digit(_ byte: UInt8) -> Int? {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): Int(byte - UInt8(ascii: "0"))
        case UInt8(ascii: "a")...UInt8(ascii: "f"): Int(byte - UInt8(ascii: "a")) + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): Int(byte - UInt8(ascii: "A")) + 10
        default: nil
        }
    }

    static func value(_ word: Word) -> Result<TOMLValue, Refusal> {
        if word.elementsEqual("true".utf8) { return .success(.boolean(true)) }
        if word.elementsEqual("false".utf8) { return .success(.boolean(false)) }
        if isDateOrTime(word) { return .success(.date) }
        if let number = integer(word) { return number }
        if isFloat(word) { return .success(.float) }
        return .failure(
            Refusal(message: "is no value (a text stands in quotes, a number has no leading zeros)")
        )
    }

    // MARK: - Numbers

    /// - Returns: nil for what is no whole number.
    private static func integer(_ word: Word) -> Result<TOMLValue, Refusal>? {
        let radix: Int
        let digits: Word
        let isNegative = word.first == UInt8(ascii: "-")
        switch String(decoding: word.prefix(2), as: UTF8.self) {
        case "0x": (radix, digits) = (16, word.dropFirst(2))
        case "0o": (radix, digits) = (8, word.dropFirst(2))
        case "0b": (radix, digits) = (2, word.dropFirst(2))
        default:
            (radix, digits) = (10, unsigned(word))
            if digits.count > 1, digits.first == UInt8(ascii: "0") { return nil }
        }
        guard areDigits(digits, radix: radix) else { return nil }
        var number = 0
        for case let digit? in digits.map(digit) {
            let (shifted, first) = number.multipliedReportingOverflow(by: radix)
            // Downwards, as the least number has no opposite.
            let (next, second) = shifted.addingReportingOverflow(isNegative ? -digit : digit)
            if first || second { return .failure(Refusal(message: "is beyond 64 bits")) }
            number = next
        }
        return .success(.integer(number))
    }

    private static func unsigned(_ word: Word) -> Word {
        word.first.map("+-".utf8.contains) == true ? word.dropFirst() : word
    }

    /// One or more, with single underscores between them.
    private static func areDigits(_ word: Word, radix: Int = 10) -> Bool {
        word.split(separator: UInt8(ascii: "_"), omittingEmptySubsequences: false).allSatisfy {
            !$0.isEmpty && $0.allSatisfy { digit($0).map { $0 < radix } ?? false }
        }
    }

    private static func isFloat(_ word: Word) -> Bool {
        var rest = unsigned(word)
        if rest.elementsEqual("inf".utf8) || rest.elementsEqual("nan".utf8) { return true }
        if let exponent = rest.firstIndex(where: { "eE".utf8.contains($0) }) {
            guard areDigits(unsigned(rest[(exponent + 1)...])) else { return false }
            rest = rest[..<exponent]
        }
        if let point = rest.firstIndex(of: UInt8(ascii: ".")) {
            guard areDigits(rest[(point + 1)...]) else { return false }
            rest = rest[..<point]
        }
        return areDigits(rest) && (rest.count == 1 || rest.first != UInt8(ascii: "0"))
    }

    // MARK: - Dates and times (RFC 3339)

    private static func isDateOrTime(_ word: Word) -> Bool {
        guard word.count > 10 else { return isDate(word) || isTime(word) }
        guard isDate(word.prefix(10)), "Tt ".utf8.contains(word[word.startIndex + 10]) else {
            return isTime(word)
        }
        let time = word.dropFirst(11)
        if time.last.map("Zz".utf8.contains) == true { return isTime(time.dropLast()) }
        let offset = time.suffix(6)
        if time.count > 6, let sign = offset.first, "+-".utf8.contains(sign) {
            return fields(offset.dropFirst(), "00:00").map { $0[0] < 24 && $0[1] < 60 } == true
                && isTime(time.dropLast(6))
        }
        return isTime(time)
    }

    static func isDate(_ word: Word) -> Bool {
        guard let date = fields(word, "0000-00-00"), (1...12).contains(date[1]) else {
            return false
        }
        let isLeap = date[0] % 4 == 0 && (date[0] % 100 != 0 || date[0] % 400 == 0)
        let days = [31, isLeap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][date[1] - 1]
        return (1...days).contains(date[2])
    }

    private static func isTime(_ word: Word) -> Bool {
        guard let time = fields(word.prefix(8), "00:00:00") else { return false }
        let fraction = word.dropFirst(8)
        return time[0] < 24 && time[1] < 60 && time[2] <= 60
            && (fraction.isEmpty
                || fraction.first == UInt8(ascii: ".") && fraction.count > 1
                    && fraction.dropFirst().allSatisfy(isDigit))
    }

    /// - Returns: the numbers of a word that has digits where `form` has zeros, and else its signs.
    private static func fields(_ word: Word, _ form: String) -> [Int]? {
        guard word.count == form.utf8.count else { return nil }
        var numbers = [0]
        for (byte, sign) in zip(word, form.utf8) {
            if sign == UInt8(ascii: "0") {
                guard isDigit(byte), let digit = digit(byte) else { return nil }
                numbers[numbers.count - 1] = numbers[numbers.count - 1] * 10 + digit
            } else {
                guard byte == sign else { return nil }
                numbers.append(0)
            }
        }
        return numbers
    }
}
