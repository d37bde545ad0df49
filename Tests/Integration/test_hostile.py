#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever brings an aspend-net down, by whatever packet, has cost its node a restart, and the cluster nothing."""

import os
import signal
import statistics
import time

from aspen_cluster import Cluster, run, wait_for
from test_tokens import ticket_for

SECONDS = 2.0  # of a machine that does much else; the figure below is what it takes


def an_aborted_net_costs_milliseconds_and_no_leader():
    with Cluster(3) as cluster:
        leader, term = cluster.leader()
        whole = leader.cli("cluster", "ticket", check=0).out.decode().strip()
        leader.cli("kv", "set", "a", "b", check=0)
        took = []
        for turn in range(9):
            # The leader's, every second time.
            node = leader if turn % 2 == 0 else cluster.nodes[turn // 2 % 3]
            ticket = ticket_for(node, whole)
            old = wait_for("aspend-net", lambda: node.daemon("net"))
            begin = time.monotonic()
            os.kill(old, signal.SIGABRT)
            wait_for("another aspend-net", lambda: node.daemon("net") not in (None, old), every=0.001)
            # It serves: a client on another machine is answered through it.
            done = cluster.cli("--ticket", ticket, "--timeout", "10000", "kv", "get", "a", check=0)
            took.append(time.monotonic() - begin)
            assert done.out == b"b\n", done.out
            # And writes go on, at the same leader.
            leader.cli("kv", "set", f"turn{turn}", "x", check=0)
        print(f"  back and answering after {statistics.median(took) * 1000:.0f} ms (median), "
              f"{max(took) * 1000:.0f} ms at most", flush=True)
        assert statistics.median(took) < SECONDS, took
        for node in cluster.nodes:
            assert cluster.leader(through=node) == (leader, term), "an election, for nothing"


if __name__ == "__main__":
    run(an_aborted_net_costs_milliseconds_and_no_leader)
