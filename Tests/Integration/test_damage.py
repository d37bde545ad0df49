#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits flip in the files of one node of three; see damage_rounds.py. `make damage` does it for longer."""

import os

from aspen_cluster import Cluster, run, wait_for
from damage_rounds import NAMED, Fuzz

SEED = 7


def flipped_bits_are_never_believed():
    with Fuzz(SEED) as fuzz:
        for kind in ("log", "database", "wal", "incoming", None, None, None):
            fuzz.round(kind)
        # More than one bit of the file that says who the node is: a person has to mend that.
        assert fuzz.round("replica", flips=9, how="kill") == NAMED
        print("  " + fuzz.summary())


def damaged_starts(cluster, count):
    """Environment for a node whose aspend-raft ends like one that has found damage before it serves, so
    many times; the programs are scripts, for daemons get no environment but their own."""
    directory = os.path.join(cluster.directory, "bin")
    os.makedirs(directory, exist_ok=True)
    for name in ("net", "raft", "gossip", "egress"):
        path = os.path.join(directory, f"aspend-{name}")
        with open(path, "w") as f:
            f.write("#!/bin/sh\n")
            if name == "raft":
                f.write(f"echo start >>'{directory}/starts'\n"
                        f"[ $(wc -l <'{directory}/starts') -gt {count} ] || exit 65\n")
            f.write(f"exec '{cluster.bin}/aspend-{name}' \"$@\"\n")
        os.chmod(path, 0o755)
    if os.path.exists(f"{directory}/starts"):
        os.remove(f"{directory}/starts")
    return {"ASPEN_LIBEXEC_DIR": directory}


def what_a_start_finds_the_next_one_mends():
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        node.cli("kv", "set", "a", "1", check=0)
        node.stop()
        # Applying its log again it may come upon a page that it did not have to read to open the state.
        node.start(env=damaged_starts(cluster, 1))
        assert node.cli("kv", "get", "a", check=0).out == b"1\n"
        assert "raft exited with 65; starting it again" in node.log()
        node.stop()
        # Twice in a row is for a person to mend.
        mark = len(node.log())
        try:
            node.start(env=damaged_starts(cluster, 100))
            raise RuntimeError("it came up")
        except AssertionError:
            pass
        wait_for("the node to give up", lambda: node.process.poll() is not None)
        assert node.process.returncode == 65, node.process.returncode
        told = node.log()[mark:]
        assert told.count("starting it again") == 1, told
        assert "raft cannot run (exit 65); stopping the node" in told, told


if __name__ == "__main__":
    run(flipped_bits_are_never_believed, what_a_start_finds_the_next_one_mends)
