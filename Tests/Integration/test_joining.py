#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes become members by themselves, the removed do not come back, and a cluster changes its cookie:
real nodes on a link of network namespaces, with no address typed."""

import json
import os
import shutil
import sys
import threading
import time

from aspen_cluster import run, wait_for
from test_discovery import Link, Node
from test_gossip import cli, know_each_other


def members(node):
    """{node id: is it a voter}, as that node has it; {} while there is no cluster."""
    code, text, _ = cli(node, "cluster", "status", "-o", "json")
    if code != 0 or not text:
        return {}
    return {line["node_id"]: line["is_voter"] for line in json.loads(text)["nodes"]}


def become(node, voters, learners=(), seconds=20.0):
    """Gives the seconds that it took."""
    wanted = {number: True for number in voters} | {number: False for number in learners}
    started = time.monotonic()
    try:
        wait_for("", lambda: members(node) == wanted, seconds)
    except AssertionError:
        raise AssertionError(f"{members(node)}, not {wanted}") from None
    return time.monotonic() - started


def why(node, number):
    return cli(node, "why", "member", str(number))[1]


def init_alone_makes_a_cluster():
    """Three voters, then a fourth node, which stays a learner: four agree more slowly than three and bear no
    failure more. Removed and wiped, it does not come back under its key; an administrator brings it back."""
    with Link(4) as link:
        nodes = [Node(link, number, "--auto-join") for number in (1, 2, 3)]
        assert cli(nodes[0], "cluster", "init")[0] == 0
        print(f"  three voters {become(nodes[0], (1, 2, 3)):.1f} s after init")
        fourth = Node(link, 4, "--auto-join")
        print(f"  a learner {become(nodes[0], (1, 2, 3), (4,)):.1f} s after its start")
        assert cli(nodes[1], "kv", "set", "a", "1")[0] == 0
        assert cli(nodes[0], "cluster", "remove", "--node-id", "4")[0] == 0
        fourth.stop()
        shutil.rmtree(os.path.join(fourth.data, "raft"))
        fourth = Node(link, 4, "--auto-join")
        know_each_other([*nodes, fourth])
        wait_for("it is known why it stays outside", lambda: "removed" in why(nodes[0], 4))
        assert members(nodes[0]) == {1: True, 2: True, 3: True}, members(nodes[0])
        # Whoever leads next knows it as well.
        assert cli(nodes[0], "cluster", "transfer", "--to", "2")[0] == 0
        wait_for("the next leader has seen it", lambda: "by itself" in why(nodes[0], 4))
        assert members(nodes[0]) == {1: True, 2: True, 3: True}, members(nodes[0])
        code, _, error = cli(nodes[0], "cluster", "add-learner", "--node-id", "4")
        assert code == 0, error
        assert members(nodes[0]) == {1: True, 2: True, 3: True, 4: False}, members(nodes[0])


def clusters_with_one_cookie_stay_apart():
    with Link(2) as link:
        nodes = [Node(link, number, "--auto-join") for number in (1, 2)]
        # At once, before either has found the other.
        for node in nodes:
            assert cli(node, "cluster", "init")[0] == 0
        for node, other in (nodes, nodes[::-1]):
            wait_for("it is known why they stay apart",
                     lambda: "no cluster of its own" in why(node, other.number))
            assert members(node) == {node.number: True}, members(node)
            assert cli(node, "kv", "set", "mine", str(node.number))[0] == 0
        for node in nodes:
            assert cli(node, "kv", "get", "mine")[1].strip() == str(node.number)


class Writer(threading.Thread):
    """Writes one key after the other through whichever node answers."""

    def __init__(self, nodes):
        super().__init__(daemon=True)
        self.nodes, self.written, self.longest, self.goes_on = nodes, 0, 0.0, True

    def run(self):
        while self.goes_on:
            started = time.monotonic()
            while self.goes_on:
                node = self.nodes[self.written % len(self.nodes)]
                if cli(node, "kv", "set", f"w/{self.written}", "x")[0] == 0:
                    break
                self.nodes.append(self.nodes.pop(0))
            else:
                return
            self.longest = max(self.longest, time.monotonic() - started)
            self.written += 1

    def end(self):
        self.goes_on = False
        self.join(timeout=60)


def a_cookie_is_replaced_while_all_goes_on():
    """Taken from others by each, then shown by each, then the old one taken by none: nodes restart one after
    the other, and at each moment the two others agree and gossip."""
    with Link(4) as link:
        old = link.cookie
        new = os.path.join(link.directory, "new")
        with open(new, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(os.urandom(32).hex())

        def start(number, cookie, accepted):
            link.cookie = cookie
            extra = ["--cookie-accepted-file", accepted] if accepted else []
            return Node(link, number, "--auto-join", *extra)

        nodes = [start(number, old, None) for number in (1, 2, 3)]
        assert cli(nodes[0], "cluster", "init")[0] == 0
        become(nodes[0], (1, 2, 3))
        writer = Writer(list(nodes))
        writer.start()
        for cookie, accepted in ((old, new), (new, old), (new, None)):
            for place, number in enumerate((1, 2, 3)):
                nodes[place].stop()
                nodes[place] = start(number, cookie, accepted)
                writer.nodes[:] = list(nodes)
                wait_for("everybody is there", lambda: all(
                    line.get("reachable") for line in
                    json.loads(cli(nodes[place], "cluster", "status", "-o", "json")[1])["nodes"]))
            know_each_other(nodes)
        writer.end()
        assert writer.written > 0
        print(f"  {writer.written} writes meanwhile, the longest took {writer.longest:.1f} s")
        count = cli(nodes[0], "kv", "scan", "--prefix", "w/", "--count")[1]
        assert str(writer.written) in count, (writer.written, count)
        # The old one opens nothing any more.
        stranger = start(4, old, None)
        wait_for("the stranger knows why", lambda: any(
            "cookie" in line for line in cli(stranger, "peers", "list", "-o", "json")[1].split(",")))
        for secret in (old, new):
            with open(secret) as f:
                text = f.read()
            for node in (*nodes, stranger):
                assert text not in node.log(), "a cookie is in a log"


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("SKIPPED, joining in network namespaces: not root")
        sys.exit(0)
    run(init_alone_makes_a_cluster, clusters_with_one_cookie_stay_apart,
        a_cookie_is_replaced_while_all_goes_on)
