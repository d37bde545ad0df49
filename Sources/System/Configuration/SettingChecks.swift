// SPDX-License-Identifier: GPL-2.0-or-later

extension Setting {
    /// Whether a value of the right type is one that may be set.
    package func complaint(about value: SettingValue, _ origin: Origin) -> ConfigurationError? {
        func wrong(_ text: String) -> ConfigurationError {
            ConfigurationError(.outOfRange, origin, path: path, text)
        }
        switch (kind, value) {
        case (.integer(let range), .integer(let number)):
            return range.contains(number)
                ? nil : wrong("\(path) must be \(allowed), not \(number)")
        case (.boolean, .boolean), (.notYet, .boolean(false)): return nil
        case (.notYet, .boolean(true)):
            return wrong("\(path) = true: not yet. \(summary)")
        case (.word(let words), .text(let text)):
            if words.contains(text) { return nil }
            let meant = Suggestion.nearest(to: text, among: words)
            let hint = meant.map { ": did you mean \"\($0)\"?" } ?? ""
            return wrong("\(path) must be \(allowed), not \"\(text)\"\(hint)")
        case (.text(let format), .text(let text)):
            return format.complaint(about: text).map {
                wrong("\(path): '\(text)' \($0); it must be \(allowed)")
            }
        case (.list(let format, let countMax), .list(let texts)):
            if texts.count > countMax {
                return wrong("\(path) has \(texts.count) texts; at most \(countMax) may be")
            }
            for text in texts {
                if let complaint = format.complaint(about: text) {
                    return wrong("\(path): '\(text)' \(complaint); each must be \(format.allowed)")
                }
            }
            return nil
        default:
            return ConfigurationError(.wrongType, origin, path: path, "\(path) must be \(allowed)")
        }
    }

    /// A value as flags and variables give it: texts.
    package func parse(
        _ texts: [String], _ origin: Origin
    ) throws(ConfigurationError) -> SettingValue {
        let last = texts.last ?? ""
        let value: SettingValue
        switch kind {
        case .integer:
            guard let number = Int(last) else { throw wrongType(last, origin) }
            value = .integer(number)
        case .boolean, .notYet:
            switch last {
            case "true", "1", "yes", "on": value = .boolean(true)
            case "false", "0", "no", "off": value = .boolean(false)
            default: throw wrongType(last, origin)
            }
        case .word, .text: value = .text(last)
        case .list: value = .list(texts)
        }
        if let error = complaint(about: value, origin) { throw error }
        return value
    }

    private func wrongType(_ text: String, _ origin: Origin) -> ConfigurationError {
        ConfigurationError(
            .wrongType, origin, path: path, "\(path) must be \(allowed), not '\(text)'")
    }

    /// The default, as a value.
    package var standardValue: SettingValue? {
        guard let standard else { return nil }
        switch kind {
        case .integer: return Int(standard).map { .integer($0) }
        case .boolean, .notYet: return .boolean(standard == "true")
        case .word, .text: return .text(String(standard.dropFirst().dropLast()))
        case .list: return .list([])
        }
    }
}
