#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a put costs in instructions and allocations, beside what it cost when that was last looked at
(Tests/Benchmarks/put_cost.json): of the release programs in the packages."""

import glob
import os
import shutil
import sys
import tempfile

from aspen_cluster import ROOT, run

sys.path.insert(0, os.path.join(ROOT, "Tests", "Benchmarks"))
import put_cost  # noqa: E402 - found through the line above

PACKAGES = os.environ.get("ASPEN_PACKAGES") or os.path.join(ROOT, "packaging", "out")


def a_put_costs_no_more_than_it_did():
    packages = [path for path in glob.glob(f"{PACKAGES}/aspen*.deb") if "-dbgsym_" not in path]
    with tempfile.TemporaryDirectory(prefix="aspen-packages-") as directory:
        programs = put_cost.unpacked(packages, directory)
        # What a busy machine adds by chance is gone the next time, what a change adds is not.
        for _ in range(3):
            table, grown = put_cost.compared(put_cost.measure(*programs), put_cost.baseline())
            print(table)
            if not grown:
                break
    assert not grown, (f"more than {put_cost.TOLERANCE:.0%} more; if it is worth it, put_cost.py --write "
                       f"makes it the baseline: {'; '.join(grown)}")


def what_grows_is_told():
    was = {put_cost.TOGETHER: {"instructions": 1000, "allocations": 100}}
    for instructions, allocations, count in ((1080, 108, 0), (1081, 108, 1), (1081, 109, 2), (1, 1, 0)):
        now = {put_cost.TOGETHER: {"instructions": instructions, "allocations": allocations}}
        assert len(put_cost.compared(now, was)[1]) == count, (instructions, allocations)


if not glob.glob(f"{PACKAGES}/aspen_*.deb"):
    print("SKIPPED, the cost of a put: no packages (only root builds them in a test run)")
    run(what_grows_is_told)
assert shutil.which("valgrind"), "valgrind is not installed: scripts/bootstrap test installs it"
run(what_grows_is_told, a_put_costs_no_more_than_it_did)
