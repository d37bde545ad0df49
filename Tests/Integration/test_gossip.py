#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes meet: real nodes on a link of network namespaces, with the same cookie and no address typed."""

import json
import os
import socket
import struct
import subprocess
import sys
import time

from aspen_cluster import bin_dir, run, wait_for
from test_discovery import Link, Node


class Reader:
    def __init__(self, body):
        self.body, self.place = body, 0

    def take(self, format):
        values = struct.unpack_from("<" + format, self.body, self.place)
        self.place += struct.calcsize("<" + format)
        return values[0]

    def blob(self):
        length = self.take("I")
        self.place += length
        return self.body[self.place - length:self.place]

    def texts(self):
        return [self.blob().decode() for _ in range(self.take("I"))]


def peers(node):
    """{node id: what is known of it}, as gossip.sock has it."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect(os.path.join(node.data, "run", "gossip.sock"))
        s.sendall(struct.pack("<IB", 1, 2))
        stream = s.makefile("rb")
        reader = Reader(stream.read(struct.unpack("<I", stream.read(4))[0]))
    assert reader.take("B") == 3, reader.body
    found = {}
    for _ in range(reader.take("I")):
        reader.take("32s")
        addresses, number = reader.texts(), reader.take("Q")
        found[number] = {
            "addresses": addresses, "sources": reader.texts(), "linked": bool(reader.take("B")),
            "standing": reader.blob().decode(), "rtt": reader.take("Q"), "seen": reader.take("Q"),
            "version": reader.blob().decode(), "reason": reader.blob().decode()}
    return found


def alive(node, *others):
    known = peers(node)
    return all(known.get(other.number, {}).get("standing") == "alive" for other in others)


def know_each_other(nodes, seconds=20.0):
    """Gives the seconds that it took."""
    started = time.monotonic()
    try:
        wait_for("", lambda: all(
            alive(node, *[other for other in nodes if other is not node]) for node in nodes),
            seconds)
    except AssertionError:
        raise AssertionError(repr([peers(node) for node in nodes])) from None
    return time.monotonic() - started


def cli(node, *arguments):
    done = subprocess.run(
        [f"{bin_dir()}/aspen-cli", "--socket", os.path.join(node.data, "run", "raft.sock"),
         "--timeout", "10000", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stdout, done.stderr


def three_become_a_cluster_without_an_address():
    """They find each other, know each other from what each has signed, and the first adds the others by
    their numbers alone."""
    with Link(3) as link:
        nodes = [Node(link, number, "--tokens-required", "true") for number in (1, 2, 3)]
        print(f"  all know all {know_each_other(nodes):.1f} s after the last start")
        known = peers(nodes[0])
        for other in nodes[1:]:
            line = known[other.number]
            assert line["addresses"] == [other.address], line
            assert "gossip" in line["sources"], line
            assert line["version"] and not line["reason"], line
        wait_for("links with a round trip", lambda: all(
            line["linked"] and 0 < line["rtt"] < 1_000_000 for line in peers(nodes[0]).values()))
        assert cli(nodes[0], "cluster", "init")[0] == 0
        for other in nodes[1:]:
            code, _, error = cli(
                nodes[0], "cluster", "add-learner", "--node-id", str(other.number))
            assert code == 0, error
        code, _, error = cli(nodes[0], "cluster", "add-learner", "--node-id", "9")
        assert code == 3 and "peers list" in error, (code, error)
        assert cli(nodes[0], "kv", "set", "a", "1")[0] == 0
        wait_for("the value everywhere", lambda: all(
            cli(node, "kv", "get", "a", "--stale")[0] == 0 for node in nodes))


def epoch(node):
    with open(os.path.join(node.data, "gossip", "epoch")) as f:
        return int(f.read().split()[3])


def one_that_was_started_later_once_is_believed_at_once():
    """Its clock was ahead when it was started before: what it announces now is newer all the same."""
    with Link(2) as link:
        nodes = [Node(link, number) for number in (1, 2)]
        know_each_other(nodes)
        nodes[1].stop()
        ahead = epoch(nodes[1]) + 10**9
        text = f"aspen-epoch 1\nepoch {ahead}\n"
        with open(os.path.join(nodes[1].data, "gossip", "epoch"), "w") as f:
            f.write(f"{text}crc {crc32c(text.encode()):x}\n")
        # As with a clock that is ahead, and then with one that is not.
        for start, port in (1, 7798), (2, 7797):
            nodes[1] = Node(link, 2, address=f"10.99.0.2:{port}")
            wait_for("the new address", lambda: nodes[1].address in peers(nodes[0])[2]["addresses"])
            assert epoch(nodes[1]) == ahead + start, epoch(nodes[1])
            if start == 1:
                nodes[1].stop()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def another_cookie_meets_nobody():
    with Link(3) as link:
        nodes = [Node(link, number) for number in (1, 2)]
        know_each_other(nodes)
        other = os.path.join(link.directory, "other")
        with open(other, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(os.urandom(32).hex())
        link.cookie = other
        stranger = Node(link, 3)
        wait_for("the stranger is seen, and why it is none of them",
                 lambda: "cookie" in peers(nodes[0]).get(3, {}).get("reason", ""))
        wait_for("the stranger knows why",
                 lambda: "cookie" in peers(stranger).get(1, {}).get("reason", ""))
        for node in nodes:
            line = peers(node)[3]
            assert not line["linked"] and line["standing"] == "unknown", line
        for secret in (link.cookie, os.path.join(link.directory, "cookie")):
            with open(secret) as f:
                text = f.read()
            for node in (*nodes, stranger):
                assert text not in node.log(), "a cookie is in a log"


def one_that_moves_is_found_again():
    """Its peers hear from itself where it is, and its cluster goes on."""
    with Link(3) as link:
        nodes = [Node(link, number) for number in (1, 2, 3)]
        know_each_other(nodes)
        assert cli(nodes[0], "cluster", "init")[0] == 0
        for other in nodes[1:]:
            assert cli(nodes[0], "cluster", "add-learner", "--node-id", str(other.number))[0] == 0
        nodes[2].stop()
        moved = Node(link, 3, address="10.99.0.3:7799")
        started = time.monotonic()
        wait_for("the new address", lambda: all(
            moved.address in peers(node)[3]["addresses"] for node in nodes[:2]))
        told = time.monotonic() - started

        def is_back():
            _, text, _ = cli(nodes[0], "cluster", "status", "-o", "json")
            lines = json.loads(text)["nodes"] if text else []
            return any(line["node_id"] == 3 and line.get("reachable") for line in lines)

        wait_for("a member again", is_back)
        print(f"  told of after {told:.1f} s, back {time.monotonic() - started:.1f} s after it was up")


def one_that_moves_while_its_links_are_young_is_back_at_once():
    """Its peers have links with it that are as young as those of two dials that cross: it says which are
    over, and nobody waits until they are silent for too long."""
    with Link(3) as link:
        nodes = [Node(link, number, address="0.0.0.0:7700") for number in (1, 2, 3)]
        know_each_other(nodes)
        assert cli(nodes[0], "cluster", "init")[0] == 0
        for other in nodes[1:]:
            assert cli(nodes[0], "cluster", "add-learner", "--node-id", str(other.number))[0] == 0

        def has(value):
            return cli(nodes[2], "kv", "get", "a", "--stale")[1].strip() == value

        took = []
        for turn in range(1, 4):
            nodes[2].stop()
            nodes[2] = Node(link, 3, address="0.0.0.0:7700")
            assert cli(nodes[0], "kv", "set", "a", f"{turn} before")[0] == 0
            wait_for("the value before", lambda: has(f"{turn} before"))
            old, new = ("10.99.0.3/24", "10.99.0.33/24")[::1 if turn % 2 else -1]
            link.inside(3, "ip", "addr", "del", old, "dev", "eth0")
            link.inside(3, "ip", "addr", "add", new, "dev", "eth0")
            started = time.monotonic()
            assert cli(nodes[0], "kv", "set", "a", f"{turn} after")[0] == 0
            wait_for("the value after", lambda: has(f"{turn} after"))
            took.append(time.monotonic() - started)
        print(f"  back after {', '.join(f'{seconds:.1f}' for seconds in took)} s")
        # The idle timeout is 8 s: none waits for it.
        assert max(took) < 6, took
        assert sorted(took)[1] < 3, took


def one_that_falls_silent_is_suspected():
    with Link(3) as link:
        nodes = [Node(link, number) for number in (1, 2, 3)]
        know_each_other(nodes)
        link.inside(3, "ip", "link", "set", "eth0", "down")
        wait_for("its neighbours have lost it",
                 lambda: not any(peers(node)[3]["linked"] for node in nodes[:2]), 30)
        wait_for("it is suspected", lambda: peers(nodes[0])[3]["standing"] == "suspected", 60)
        link.inside(3, "ip", "link", "set", "eth0", "up")
        print(f"  all know all again after {know_each_other(nodes, 60):.1f} s")


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("SKIPPED, gossip in network namespaces: not root")
        sys.exit(0)
    run(three_become_a_cluster_without_an_address, one_that_was_started_later_once_is_believed_at_once,
        another_cookie_meets_nobody, one_that_moves_is_found_again,
        one_that_moves_while_its_links_are_young_is_back_at_once, one_that_falls_silent_is_suspected)
