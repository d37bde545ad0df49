#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits flip in the files of one node of three; see damage_rounds.py. `make damage` does it for longer."""

from aspen_cluster import run
from damage_rounds import NAMED, Fuzz

SEED = 7


def flipped_bits_are_never_believed():
    with Fuzz(SEED) as fuzz:
        for kind in ("log", "database", "wal", "incoming", None, None, None):
            fuzz.round(kind)
        # More than one bit of the file that says who the node is: a person has to mend that.
        assert fuzz.round("replica", flips=9, how="kill") == NAMED
        print("  " + fuzz.summary())


if __name__ == "__main__":
    run(flipped_bits_are_never_believed)
