#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Three minutes of chaos among real daemons (ASPEN_CHAOS_SECONDS), see `chaos`; and that the judge of
what its clients were told would have noticed. `make chaos` does it for longer."""

import json
import os
import shutil
import tempfile

from aspen_cluster import run
from chaos_run import PROBER, judge, torment

SECONDS = float(os.environ.get("ASPEN_CHAOS_SECONDS", "180"))
SEED = 7
# Beside other tests: a few dozen operations a second are enough.
PAUSE = 0.2
FINDING = 10

DIRECTORY = tempfile.mkdtemp(prefix="aspen-chaos-")
HISTORY = os.path.join(DIRECTORY, "history")


def clients_of_real_daemons_are_told_the_truth():
    lines = []
    try:
        torment(SECONDS, SEED, DIRECTORY, PAUSE, lines.append)
    except BaseException:
        print("\n".join(lines) + f"\nhistory, faults and logs: {DIRECTORY}")
        raise
    print("  " + "\n  ".join(line for line in lines if not line.startswith(" ")))


def history():
    with open(HISTORY, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def final_reads():
    """A history, the last reads of one key in it, and the write whose value they saw: a key of which
    everything else is known, too."""
    lines = history()
    key = next(
        line["key"] for line in reversed(lines)
        if line["client"] == PROBER and line["op"] == "get" and line.get("result")
        and line["version"] > 1
        and not any(other["key"] == line["key"] and "end" not in other for other in lines))
    last = [line for line in lines if line["client"] == PROBER and line["op"] == "get"
            and line["key"] == key]
    write = next(line for line in lines if line.get("value") == last[0]["result"])
    return lines, last, write


def is_found(name, lines):
    path = os.path.join(DIRECTORY, name)
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    code, verdict = judge(path)
    assert code == FINDING, f"{name}: {code}, {verdict}"


def a_lost_write_is_found():
    lines, last, write = final_reads()
    began = min(line["begin"] for line in last)
    lines.append({**write, "op": "put", "begin": began - 2, "end": began - 1, "value": 1 << 40,
                  "version": last[0]["version"] + 1})
    del lines[-1]["revision"]
    is_found("lost", lines)


def a_stale_read_is_found():
    lines, last, write = final_reads()
    older = next(line for line in lines if line["key"] == write["key"] and line is not write
                 and line["op"] == "put" and not line.get("refused"))
    last[-1].update(result=older["value"], version=older["version"])
    is_found("stale", lines)


def a_write_applied_twice_is_found():
    lines, last, _ = final_reads()
    for line in last:
        line["version"] += 1
    is_found("twice", lines)


def a_refused_write_that_shows_is_found():
    lines, _, write = final_reads()
    write["refused"] = True
    is_found("refused", lines)


def a_revision_that_goes_back_is_found():
    lines, last, _ = final_reads()
    last[-1]["revision"] -= 1
    is_found("back", lines)


if __name__ == "__main__":
    try:
        run(clients_of_real_daemons_are_told_the_truth, a_lost_write_is_found, a_stale_read_is_found,
            a_write_applied_twice_is_found, a_refused_write_that_shows_is_found,
            a_revision_that_goes_back_is_found)
    except SystemExit as end:
        if end.code == 0:
            shutil.rmtree(DIRECTORY)
        raise
