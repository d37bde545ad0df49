# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds places in Swift source that could be wrong by one line, and rewrites them so that one build
holds all of these faults: each is switched on at run time, by its number in ASPEN_MUTANT.

An operator becomes an operator of its own, of the same precedence, that asks whether it is the one
to be wrong; a number or truth value becomes a choice of two; a statement gets a condition. So no
expression has to be understood, and lines keep their numbers.

What is left out, because it cannot matter:
- what only speaks: strings, `description`, comments;
- checks (`precondition`, `promise`, `require`, `assert`, a file named Invariants): what holds
  without them is what the code around them does;
- planted bugs and all else that a release does not have;
- numbers above LITERAL_MAX, those in hexadecimal, default values of stored properties, files of named
  limits: limits, tuning and formats, of which one more or less is as good;
- room made ahead of time (`reserveCapacity`, `…Estimate`).
"""

import hashlib
import os
import re

LITERAL_MAX = 999

COMPARISON = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
EQUALITY = {"==": "!=", "!=": "=="}
LOGIC = {"&&": "||", "||": "&&"}
ADDITION = {"+": "-", "-": "+"}
WRAPPING = {"&+": "&-", "&-": "&+"}
CHANGE = {"+=": "-=", "-=": "+="}
WRAPPING_CHANGE = {"&+=": "&-=", "&-=": "&+="}
BITS = {"&": "|", "|": "&", "<<": ">>", ">>": "<<"}
FLIPS = {**COMPARISON, **EQUALITY, **LOGIC, **ADDITION, **WRAPPING, **CHANGE, **WRAPPING_CHANGE,
         **BITS}
PRECEDENCE = {
    **{name: "ComparisonPrecedence" for name in {**COMPARISON, **EQUALITY}},
    "&&": "LogicalConjunctionPrecedence", "||": "LogicalDisjunctionPrecedence",
    **{name: "AdditionPrecedence" for name in {**ADDITION, **WRAPPING}}, "|": "AdditionPrecedence",
    "&": "MultiplicationPrecedence", "<<": "BitwiseShiftPrecedence",
    ">>": "BitwiseShiftPrecedence",
    **{name: "AssignmentPrecedence" for name in {**CHANGE, **WRAPPING_CHANGE}},
}
BINARY = re.compile(r"(?<= )([<>=!&|+\-]{1,3})(?= )")
NEGATION = re.compile(r"(?<![\w)\]!])!(?=[\w(])")
NUMBER = re.compile(r"(?<![\w.$])\d+(?![\w.])")
TRUTH = re.compile(r"(?<![\w.])(?:true|false)\b(?!\s*:)")
CHECK = re.compile(r"\b(precondition|preconditionFailure|promise|require|assert|fatalError)\(")
ROOM = re.compile(r"reserveCapacity|keepingCapacity|capacity:|\bvar \w+Estimate\b")
PLANTED = re.compile(r"\bbugs\b|\bhas\(\.|lantedBug")
STORED = re.compile(r"^\s*(package |public |private |private\(set\) |static )*(var|let) \w+(: \w+)? = ")
DECLARED_OPERATOR = re.compile(r"\bfunc [<>=!&|+\-]")
SPEAKS = re.compile(r"\bvar (debugD|d)escription\b|\bextension \w+: .*CustomStringConvertible")
STATEMENT = re.compile(r"^(?:try |_ = )?[A-Za-z_]\w*(?:[\w.!?]|\[[^\]]*\]|\([^()]*\))*\s*(?:\(|[-+&|]*= )")
ONE_LINE_BLOCK = re.compile(r"^(?:if|for|while) .*\{ .* \}$")
GUARD = re.compile(r"^guard (.*) else \{.*\}$")
NOT_A_STATEMENT = {"if", "for", "while", "guard", "let", "var", "func", "case", "return", "switch",
                   "throw", "else", "struct", "enum", "extension", "import", "default", "init",
                   "typealias", "package", "private", "static", "mutating", "repeat", "do", "defer"}
UNFINISHED = re.compile(r"(?:[=,(\[:+\-*/<>&|?]|\belse|\bin|->)$")
CONTINUES = re.compile(r"^(?:[.?:)\]{+*/<>=&|,\"]|else\b|where\b|-)")


class Mutant:
    """One fault: a rewriting of some columns of one line."""

    def __init__(self, path, line, column, end, kind, before, after):
        self.path, self.line, self.column, self.end = path, line, column, end
        self.kind, self.before, self.after = kind, before, after
        self.number = 0

    @property
    def place(self):
        return f"{self.path}:{self.line}"

    def replacement(self):
        if self.kind == "operator":
            return operator_name(self.before, self.number)
        if self.kind == "negation":
            return operator_name("!", self.number)
        if self.kind in ("number", "truth"):
            return f"(isMutant({self.number}) ? {self.after} : {self.before})"
        if self.kind == "guard":
            return f"isMutant({self.number}) || ({self.before})"
        return f"if !isMutant({self.number}) {{ {self.before} }}"

    def words(self):
        if self.kind in ("line", "guard"):
            return f"dropped: {'guard ' if self.kind == 'guard' else ''}{self.before}"
        if self.kind == "negation":
            return "`!` dropped"
        return f"`{self.before}` → `{self.after}`"


def operator_name(base, number):
    """An operator nobody else has: the number in two signs of mathematics."""
    return base + chr(0x2200 + number // 64) + chr(0x2200 + number % 64)


# MARK: Reading

def masked(text):
    """The text with comments and strings blanked out, every character in its place."""
    out, position = [], 0
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"""(?:\\.|.)*?"""|"(?:\\\((?:[^()"\n]|"[^"\n]*"|\((?:[^()\n]|\([^()\n]*\))*\))*\)|\\.|[^"\\\n])*"', re.S)
    for match in pattern.finditer(text):
        out.append(text[position:match.start()])
        filler = '"' if match[0].startswith('"') else " "
        out.append(re.sub(r"[^\n]", filler, match[0]))
        position = match.end()
    return "".join(out) + text[position:]


def excluded_lines(lines):
    """Numbers of the lines, from zero, that only speak or that a release does not have."""
    out, until, depth, conditional = set(), None, 0, 0

    def opens_what_is_left_out(line):
        return SPEAKS.search(line) or ROOM.search(line) or PLANTED.search(line) and "if" in line
    for number, line in enumerate(lines):
        bare = line.strip()
        if bare.startswith("#if"):
            conditional += 1
        if conditional or bare.startswith(("import ", "@", "#")):
            out.add(number)
        if bare.startswith("#endif"):
            conditional -= 1
        if until is None and opens_what_is_left_out(line) and line.rstrip().endswith("{"):
            until = depth
        if until is not None:
            out.add(number)
        depth += line.count("{") - line.count("}")
        if until is not None and depth <= until:
            until = None
    return out


def is_statement(lines, number):
    """Whether the line is a whole statement, to be left out without leaving half of one."""
    bare = lines[number].strip()
    if bare.count("(") != bare.count(")") or bare.count("{") != bare.count("}"):
        return False
    if bare.count("[") != bare.count("]") or '"' * 3 in bare and bare.startswith('"'):
        return False
    before = next((l.strip() for l in reversed(lines[:number]) if l.strip()), "{")
    after = next((l.strip() for l in lines[number + 1:] if l.strip()), "}")
    if UNFINISHED.search(before) and not before.startswith("case ") or CONTINUES.match(after):
        return False
    if UNFINISHED.search(bare):
        return False
    if ONE_LINE_BLOCK.match(bare):
        return True
    return bool(STATEMENT.match(bare)) and re.match(r"\w*", bare)[0] not in NOT_A_STATEMENT


def candidates(path, text):
    """Every fault this tool can make of the file, in the order of the text."""
    name = os.path.basename(path)
    if name in ("Invariants.swift", "KVPlantedBug.swift") or name.endswith("Limits.swift"):
        return []
    real, lines = text.split("\n"), masked(text).split("\n")
    skipped = excluded_lines(lines)
    found = []
    for number, line in enumerate(lines):
        if number in skipped or any(p.search(line) for p in (CHECK, PLANTED, ROOM)):
            continue
        found += in_line(path, real, lines, number, line)
    return found


def in_line(path, real, lines, number, line):
    def mutant(start, end, kind, after=""):
        return Mutant(path, number + 1, start, end, kind, real[number][start:end], after)

    if not DECLARED_OPERATOR.search(line) and not re.match(r"^\s*(\w+ )*(extension|protocol) ", line):
        for match in BINARY.finditer(line):
            if match[0] in FLIPS:
                yield mutant(match.start(), match.end(), "operator", FLIPS[match[0]])
        for match in NEGATION.finditer(line):
            yield mutant(match.start(), match.end(), "negation")
    if not STORED.match(line):
        for match in NUMBER.finditer(line):
            value = int(match[0])
            if value <= LITERAL_MAX:
                # Up where it is even, down where it is odd; never below zero.
                after = value + 1 if (number + value) % 2 == 0 or value == 0 else value - 1
                yield mutant(match.start(), match.end(), "number", str(after))
    for match in TRUTH.finditer(line):
        yield mutant(match.start(), match.end(), "truth",
                     "false" if match[0] == "true" else "true")
    start = len(line) - len(line.lstrip())
    guard = GUARD.match(line.strip())
    if guard and not re.search(r"\b(let|var|case)\b|,", guard[1]):
        yield mutant(start + 6, start + 6 + len(guard[1]), "guard")
    elif is_statement(lines, number):
        yield mutant(start, len(line.rstrip()), "line")


# MARK: Choosing

def choose(found, seed, texts):
    """All of them in an order that only the seed and the text decide, one for each line. What stands
    elsewhere in a file has no part in it: a line more does not make another choice."""
    lines = {path: text.split("\n") for path, text in texts.items()}
    ranked, seen, earlier = [], {}, {}
    for mutant in sorted(found, key=lambda m: (m.path, m.line, m.column)):
        text = lines[mutant.path][mutant.line - 1]
        bare = text.strip()
        if (mutant.path, mutant.line) not in seen:
            # The same line may stand there several times.
            earlier[mutant.path, bare] = earlier.get((mutant.path, bare), 0) + 1
            seen[mutant.path, mutant.line] = earlier[mutant.path, bare]
        column = mutant.column - (len(text) - len(text.lstrip()))
        name = (f"{seed} {mutant.path} {bare} {seen[mutant.path, mutant.line]} {column} "
                f"{mutant.kind}")
        ranked.append((hashlib.sha256(name.encode()).digest(), mutant))
    chosen, places = [], set()
    for _, mutant in sorted(ranked, key=lambda r: r[0]):
        if mutant.place not in places:
            places.add(mutant.place)
            chosen.append(mutant)
    return chosen


# MARK: Writing

def rewrite(text, mutants):
    lines = text.split("\n")
    for mutant in mutants:
        line = lines[mutant.line - 1]
        lines[mutant.line - 1] = line[:mutant.column] + mutant.replacement() + line[mutant.end:]
    return "\n".join(lines)


SWITCH = """// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// The fault that this process has; 0: none. Read once.
let activeMutant = getenv("ASPEN_MUTANT").map { atoi($0) } ?? 0

@inline(__always) func isMutant(_ number: Int32) -> Bool { activeMutant == number }
"""


def operators(mutant):
    """The operator that stands for the one in the text, or for another if it is switched on."""
    number, base, other = mutant.number, mutant.before, mutant.after
    name = mutant.replacement()
    wrong = f"isMutant({number})"
    if mutant.kind == "negation":
        return (f"prefix operator {name}\n@inline(__always) prefix func {name} (a: Bool) -> Bool "
                f"{{ {wrong} ? a : !a }}\n")
    def function(generics, left, right, result):
        return (f"@inline(__always) func {name} {generics}(a: {left}, b: {right}) -> {result} "
                f"{{ {wrong} ? a {other} b : a {base} b }}\n")
    out = f"infix operator {name}: {PRECEDENCE[base]}\n"
    if base in COMPARISON:
        return out + function("<T: Comparable>", "T", "T", "Bool")
    if base in EQUALITY:
        return (out + function("<T: Equatable>", "T", "T", "Bool")
                + function("<T>", "T?", "_OptionalNilComparisonType", "Bool"))
    if base in LOGIC:
        return out + (
            f"@inline(__always) func {name} (a: Bool, b: @autoclosure () throws -> Bool) rethrows "
            f"-> Bool {{\n    if {wrong} {{ return {'a' if other == '||' else '!a'}"
            f" ? {'true' if other == '||' else 'false'} : try b() }}\n"
            f"    return {'a' if base == '||' else '!a'} ? {'true' if base == '||' else 'false'} : "
            f"try b()\n}}\n")
    if base in ADDITION:
        return out + function("<T: AdditiveArithmetic>", "T", "T", "T")
    if base in WRAPPING or base in BITS:
        return out + function("<T: FixedWidthInteger>", "T", "T", "T")
    kind = "AdditiveArithmetic" if base in CHANGE else "FixedWidthInteger"
    return out + (f"@inline(__always) func {name} <T: {kind}>(a: inout T, b: T) "
                  f"{{ if {wrong} {{ a {other} b }} else {{ a {base} b }} }}\n")


def switch_file(mutants):
    """What a module needs besides the rewritten text."""
    return SWITCH + "".join(
        operators(m) for m in mutants if m.kind in ("operator", "negation"))
