#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases under wall clocks that are wrong or jump: their time is the cluster's own."""

import json
import os
import shutil
import struct
import subprocess
import threading
import time
from functools import partial

from aspen_cluster import Cluster, run, wait_for
from python_client import Client, parse

TTL = 2.0
NOT_FOUND = 2
MINUTES_10 = 600


class Clocks:
    """The wall clock of each node, shifted by what a file says; see wall_clock.c."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.library = os.path.join(cluster.directory, "wall_clock.so")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wall_clock.c")
        subprocess.run([shutil.which("clang") or "cc", "-shared", "-fPIC", "-O1", "-o",
                        self.library, source], check=True)
        for node in cluster.nodes:
            self.shift(node, 0)

    def path(self, node):
        return os.path.join(self.cluster.directory, f"{node.number}.clock")

    def shift(self, node, seconds):
        file = os.open(self.path(node), os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(file, struct.pack("=q", seconds), 0)
        os.close(file)

    def programs(self, node):
        """A directory with an aspen-node whose daemons see the node's clock: it gives them no
        environment but its own, so that they are scripts."""
        directory = os.path.join(self.cluster.directory, f"{node.number}.bin")
        os.makedirs(directory)
        try:
            os.link(f"{self.cluster.bin}/aspen-node", f"{directory}/aspen-node")
        except OSError:
            shutil.copy(f"{self.cluster.bin}/aspen-node", directory)
        for name in ("aspend-net", "aspend-raft", "aspend-gossip"):
            with open(f"{directory}/{name}", "w") as f:
                f.write(f"#!/bin/sh\nexport LD_PRELOAD='{self.library}'"
                        f" WALL_CLOCK_SHIFT='{self.path(node)}'\n"
                        f"exec '{self.cluster.bin}/{name}' \"$@\"\n")
            os.chmod(f"{directory}/{name}", 0o755)
        return directory


class Jumping(threading.Thread):
    """Throws the wall clocks of `nodes` ten minutes to and fro, five times a second."""

    def __init__(self, clocks, nodes):
        super().__init__(daemon=True)
        self.clocks, self.nodes, self.stopping = clocks, nodes, threading.Event()

    def run(self):
        shift = MINUTES_10
        while not self.stopping.wait(0.2):
            shift = -shift
            for place, node in enumerate(self.nodes):
                self.clocks.shift(node, shift if place % 2 else -shift)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join()


def is_stamped_wrongly(node):
    """Whether the node's daemon has recorded an event under a clock that was minutes off."""
    events = node.cli("why", "leader", "-o", "json", check=0).json()["events"]
    stamps = [e["wall_time_ms"] / 1000 for e in events if e["node_id"] == node.number]
    return any(abs(stamp - time.time()) > MINUTES_10 / 2 for stamp in stamps)


def lease_with_keys(node, nodes, keys):
    """When the lease was asked for: it has to live for TTL from then on. Every node knows its keys."""
    client = Client(node.socket)
    while True:
        began = time.monotonic()
        lease = client.ask(27, (1, int(TTL * 1000)))[1][0]
        try:
            for key in keys:
                client.ask(18, (1, key), (2, "x"), (4, lease))
            # By reads that wait until what is written has been applied there.
            known = [1 in Client(n.socket).ask(19, (1, key)) for n in nodes for key in keys]
        except RuntimeError as error:
            if error.args[0] != NOT_FOUND:
                raise
            known = [False]
        took = time.monotonic() - began
        if all(known):
            return began
        # A machine so slow that it has ended meanwhile: another one.
        assert took >= TTL, f"{keys} before their time: {known} after {took} s"


def gone_after(nodes, key, began):
    """By node: how long after `began` it answered for the first time that there is no such key."""
    clients, seen = {n.number: Client(n.socket) for n in nodes}, {}

    def look():
        for number, client in clients.items():
            # What the node has applied, whoever leads.
            if number not in seen and 1 not in client.ask(19, (1, key), (2, 1)):
                seen[number] = time.monotonic() - began
        return len(seen) == len(clients)
    # Ten minutes are what a wrong clock would add or take away.
    wait_for(f"the end of {key} on {sorted(clients)}, seen {seen}", look, TTL + 20)
    return seen


def ends_in_time(cluster, name, disturb=lambda: None):
    writer, keys = cluster.nodes[0], [f"{name}/a", f"{name}/b"]
    began = lease_with_keys(writer, cluster.nodes, keys)
    left = disturb() or cluster.nodes
    seen = gone_after(left, keys[0], began)
    assert min(seen.values()) >= TTL, f"{name}: before its time: {seen}"
    revisions = {
        json.loads(node.cli("kv", "history", key, "--limit", "1", "-o", "json",
                            check=0).out)["events"][0]["mod_revision"]
        for node in left for key in keys}
    assert len(revisions) == 1, f"{name}: not in one revision: {revisions}"
    print(f"  {name}: gone {max(seen.values()) - TTL:.2f} s after its time on the last node")


def leases_know_no_wall_clock():
    cluster = Cluster(3)
    clocks = Clocks(cluster)
    for node in cluster.nodes:
        node.start = partial(node.start, programs=clocks.programs(node))
    with cluster:
        wait_for("leases", lambda: cluster.nodes[0].cli("lease", "grant", "--ttl", "1s").code == 0)
        leader, _ = cluster.leader()
        followers = [n for n in cluster.nodes if n is not leader]

        ends_in_time(cluster, "right")
        assert not any(map(is_stamped_wrongly, cluster.nodes))
        clocks.shift(leader, MINUTES_10)
        clocks.shift(followers[0], -MINUTES_10)
        ends_in_time(cluster, "leader-fast")
        clocks.shift(leader, -MINUTES_10)
        clocks.shift(followers[0], MINUTES_10)
        ends_in_time(cluster, "leader-slow")

        with Jumping(clocks, [leader]):
            ends_in_time(cluster, "leader-jumps")
        with Jumping(clocks, followers):
            ends_in_time(cluster, "followers-jump")

        def depose():
            leader.kill_all()
            return followers
        with Jumping(clocks, cluster.nodes):
            # The writer is a node that lives on.
            cluster.nodes.sort(key=lambda n: n is leader)
            ends_in_time(cluster, "leader-killed", depose)
        # The clocks were really wrong, in the daemons that elected another leader meanwhile.
        assert all(map(is_stamped_wrongly, followers)), "the wrong clocks did not get to the daemons"


if __name__ == "__main__":
    run(leases_know_no_wall_clock)
