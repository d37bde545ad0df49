#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tool behind `make mutate`: one build holds every fault, and each changes what the text does."""

import os
import subprocess
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "../Mutation"))
from mutants import candidates, choose, rewrite, switch_file  # noqa: E402

MAIN = """
var sample = Sample()
print(sample.isBelow(5), sample.isBelow(6), Sample(known: 1).isBelow(9))
for step in [-2, 3, 30] {
    sample.grow(by: step)
    print(sample.count)
}
print(sample.differs(from: 20), sample.differs(from: 21), Sample().differs(from: 6))
"""
WORDS = [
    "`<` → `<=`", "`&&` → `||`", "`==` → `!=`", "dropped: guard step > 0", "`+=` → `-=`",
    "dropped: count += step", "dropped: if count > 20 { count = 20 }", "`!` dropped",
    "`!=` → `==`", "`-` → `+`", "`||` → `&&`",
]


def read():
    with open(os.path.join(here, "../Mutation/fixture.swift"), encoding="utf-8") as f:
        return f.read()


def every_kind_is_found_and_nothing_else():
    found = candidates("fixture.swift", read())
    words = {m.words() for m in found}
    missing = [w for w in WORDS if w not in words]
    assert not missing, missing
    lines = read().split("\n")
    for m in found:
        line = lines[m.line - 1]
        assert "precondition" not in line and "known: Int?" not in line and "+ 1)" not in line, line
        assert line[m.column:m.end] == m.before, (line, m.before)


def chosen(found, seed):
    return choose(found, seed, {"fixture.swift": read()})


def a_line_more_makes_no_other_choice():
    text = read().replace("    func isBelow", "    // Nothing.\n\n    func isBelow")
    found = candidates("fixture.swift", text)
    assert ([m.words() for m in choose(found, 1, {"fixture.swift": text})]
            == [m.words() for m in chosen(candidates("fixture.swift", read()), 1)])


def a_choice_is_repeated_and_has_one_for_each_line():
    once, again = (chosen(candidates("fixture.swift", read()), 1) for _ in range(2))
    assert [m.words() for m in once] == [m.words() for m in again]
    assert len({m.line for m in once}) == len(once)
    other = chosen(candidates("fixture.swift", read()), 2)
    assert [m.words() for m in once] != [m.words() for m in other]


def each_fault_shows_in_one_build():
    found = candidates("fixture.swift", read())
    first = chosen(found, 1)
    second = chosen([m for m in found if m not in first], 1)
    turns = (first, second)
    for turn in turns:
        for number, m in enumerate(turn, 1):
            m.number = number
    unseen = []
    for turn in turns:
        with tempfile.TemporaryDirectory() as folder:
            texts = {"Sample.swift": rewrite(read(), turn), "Mutants.swift": switch_file(turn),
                     "main.swift": MAIN}
            for name, text in texts.items():
                with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
                    f.write(text)
            program = os.path.join(folder, "program")
            subprocess.run(["swiftc", "-Onone", "-o", program]
                           + [os.path.join(folder, n) for n in texts], check=True)

            def run(number):
                return subprocess.run([program], env={**os.environ, "ASPEN_MUTANT": str(number)},
                                      capture_output=True, text=True).stdout
            right = run(0)
            assert right == "false true false\n5\n8\n20\ntrue false false\n", right
            unseen += [m.words() for m in turn if run(m.number) == right]
    # Only boundaries that nothing crosses, and the call that does nothing.
    harmless = ("note(", "`>` → `>=`", "`0` → `1`")
    assert all(any(h in words for h in harmless) for words in unseen), unseen


failed = 0
for test in (every_kind_is_found_and_nothing_else, a_choice_is_repeated_and_has_one_for_each_line,
             a_line_more_makes_no_other_choice, each_fault_shows_in_one_build):
    try:
        test()
        print(f"✔ {test.__name__}")
    except Exception as error:  # pylint: disable=broad-except
        failed += 1
        print(f"✘ {test.__name__}: {error!r}")
sys.exit(1 if failed else 0)
