#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""More than a node can hold: it says so early, by name, grows no further, and recovers by itself."""

import collections
import socket
import struct
import threading
import time

from aspen_cluster import Cluster, run, wait_for
from python_client import Client, message, parse, varint

RESOURCE_EXHAUSTED = 8
REQUESTS_MAX, IN_FLIGHT_MAX = 4096, 10_000
CONNECTIONS_MAX, WATCHES_MAX, WATCHES_PER_CONNECTION = 500, 10_000, 1000
# Room for what is in flight, for buffers in powers of two and for the allocator. Without limits the
# floods below would take twice as much and more.
GROWTH_MAX_MB = 300


def rss(pid, what="VmRSS"):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) // 1024 for line in f if line.startswith(what))


def peak(pid):
    return rss(pid, "VmHWM")


class Flood(threading.Thread):
    """Sends `count` requests at once over a connection of its own; counts the answers by code."""

    def __init__(self, path, count, request, timeout_ms):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.count, self.codes, self.first_refusal = count, collections.Counter(), None
        # ClientRequest.timeout_ms is field 1.
        self.body = varint(1 << 3) + varint(timeout_ms) + request
        self.began = time.monotonic()
        self.writer = threading.Thread(target=self.write, daemon=True)
        self.start()
        self.writer.start()

    def write(self):
        try:
            for first in range(0, self.count, 256):
                self.socket.sendall(b"".join(
                    struct.pack("<IQ", len(self.body) + 8, number) + self.body
                    for number in range(first, min(first + 256, self.count))))
        except OSError:
            pass

    def run(self):
        file = self.socket.makefile("rb")
        while sum(self.codes.values()) < self.count:
            length, = struct.unpack("<I", file.read(4))
            answer = parse(file.read(length)[8:])
            code = parse(answer[1][0])[1][0] if 1 in answer else 0
            self.codes[code] += 1
            if code == RESOURCE_EXHAUSTED and self.first_refusal is None:
                self.first_refusal = time.monotonic() - self.began


def flood(path, connections, count, request, timeout_ms):
    """All answers by code, and when the first refusal came."""
    floods = [Flood(path, count, request, timeout_ms) for _ in range(connections)]
    codes = collections.Counter()
    for one in floods:
        one.join(120)
        assert not one.is_alive(), f"requests without an answer: {one.codes} of {one.count}"
        codes += one.codes
    return codes, min((f.first_refusal for f in floods if f.first_refusal is not None),
                      default=None)


def put(key, value):
    return message((18, ((1, key), (2, value))))


def floods_are_refused_early():
    with Cluster(3) as cluster:
        node = cluster.nodes[0]
        pid = wait_for("raft", lambda: node.daemon("raft"))
        before = rss(pid)

        # A cluster that works: whatever it does not take it refuses, and each request is answered.
        codes, _ = flood(node.socket, 16, 3000, put("f", "x" * 100), 60_000)
        print(f"  48,000 writes at once: {dict(codes)}, RSS {before} -> {rss(pid)} MB")
        assert set(codes) <= {0, RESOURCE_EXHAUSTED} and codes[0] >= IN_FLIGHT_MAX, codes
        node.cli("kv", "set", "after", "1", check=0)

        # Without a majority nothing leaves: what may wait is bounded by number…
        for other in cluster.nodes[1:]:
            other.kill_all()
        wait_for("the end of the leadership", lambda: not node.cli(
            "cluster", "leader", "-o", "json").json().get("leader_id"))
        write, read = put("f", "x" * 100), message((19, ((1, "f"),)))
        for what, connections, count, request, most in (
                ("writes on two connections", 2, REQUESTS_MAX + 500, write, 1000),
                ("writes", 3, REQUESTS_MAX, write, 3 * REQUESTS_MAX - IN_FLIGHT_MAX),
                ("reads", 3, REQUESTS_MAX, read, 3 * REQUESTS_MAX - IN_FLIGHT_MAX)):
            codes, first = flood(node.socket, connections, count, request, 3000)
            # Fewer where a slow machine lets the first ones end before the last ones are sent.
            assert 0 < codes[RESOURCE_EXHAUSTED] <= most, f"{what} in flight: {codes}"
            assert first < 10, first
            print(f"  {what} without a majority: first refusal after {first:.2f} s; {dict(codes)}")

        # …and by their bytes.
        large = put("f", "x" * 1_000_000)
        codes, first = flood(node.socket, 4, 100, large, 3000)
        print(f"  400 writes of 1 MB without a majority: {dict(codes)}, "
              f"RSS at most {peak(pid)} MB")
        assert codes[RESOURCE_EXHAUSTED] > 0, codes
        assert peak(pid) - before < GROWTH_MAX_MB, "what waits is not bounded by its size"

        for other in cluster.nodes[1:]:
            other.start()
        wait_for("service as before", lambda: node.cli("kv", "set", "again", "1").code == 0)
        began = time.monotonic()
        client = Client(node.socket)
        for number in range(200):
            client.ask(18, (1, f"calm/{number}"), (2, "x"))
        print(f"  afterwards: {(time.monotonic() - began) * 5:.2f} ms a write, RSS {rss(pid)} MB")
        assert peak(pid) - before < GROWTH_MAX_MB


class Reader:
    """Asks for a value many times at once, and reads the answers when told to."""

    def __init__(self, path, count, request):
        """`request` is the same each time, or made for each number."""
        self.count, self.socket = count, socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        frames = []
        for number in range(count):
            made = request(number) if callable(request) else request
            body = varint(1 << 3) + varint(120_000) + made
            frames.append(struct.pack("<IQ", len(body) + 8, number) + body)
        self.socket.sendall(b"".join(frames))

    def read(self):
        """How many answers there are, all of them the value."""
        with self.socket.makefile("rb") as file:
            for _ in range(self.count):
                length, = struct.unpack("<I", file.read(4))
                assert length > 1 << 20 and len(file.read(length)) == length
        return self.count


def answers_that_nobody_reads_wait_unmade():
    """A client that asks for much and reads nothing takes no more than its share of memory, and is given
    all of it when it reads."""
    with Cluster(3) as cluster:
        for node in cluster.nodes:
            wait_for("service", lambda: node.cli("kv", "get", "big").code in (0, 3))
        leader = cluster.nodes[0]
        client = Client(leader.socket)
        client.ask(18, (1, "big"), (2, "x" * (1 << 20)))
        for node in cluster.nodes[:2]:
            pid = wait_for("raft", lambda: node.daemon("raft"))
            before = peak(pid)
            one, many = message((19, ((1, "big"),))), [(1, "big")] * 7
            readers = [Reader(node.socket, 500, one) for _ in range(20)]
            readers += [Reader(node.socket, 200, message((34, tuple(many)))) for _ in range(4)]
            slowest = 0
            for number in range(50):
                began = time.monotonic()
                node.cli("kv", "set", "other", str(number), check=0)
                slowest = max(slowest, time.monotonic() - began)
            print(f"  10,800 answers of 1 to 7 MiB that nobody reads: others wait {slowest:.2f} s at most, "
                  f"at most {before} -> {peak(pid)} MB")
            assert peak(pid) - before < 500, "answers that nobody reads pile up"
            assert slowest < 3, slowest
            assert readers[0].read() == 500
            for reader in readers:
                reader.socket.close()


def answers_of_transactions_wait_unmade():
    """What a transaction returns cannot be read again later, so transactions wait, not carried out, until
    their answers have room. Who reads gets them all; others neither wait nor hear of it."""
    with Cluster(3) as cluster:
        for node in cluster.nodes:
            wait_for("service", lambda: node.cli("kv", "get", "big").code in (0, 3))
        client = Client(cluster.nodes[0].socket)
        for name in "abcd":
            client.ask(18, (1, "big/" + name), (2, "x" * ((1 << 20) - 100)))

        def count(prefix, number):
            """Puts a key of its own and returns four large values."""
            gets = tuple((2, ((3, ((1, "big/" + name),)),)) for name in "abcd")
            return message((25, gets + ((2, ((1, ((1, f"{prefix}{number}"), (2, "x"))),)),)))
        pids = [wait_for("raft", lambda: node.daemon("raft")) for node in cluster.nodes]
        for place, node in enumerate(cluster.nodes[:2]):
            before = [peak(pid) for pid in pids]
            reader = Reader(node.socket, 600, lambda number: count(f"done/{place}/", number))
            slowest = 0
            for number in range(50):
                began = time.monotonic()
                node.cli("kv", "set", "other", str(number), check=0)
                slowest = max(slowest, time.monotonic() - began)
            after = [peak(pid) for pid in pids]
            print(f"  600 transactions of 4 MiB each whose answers nobody reads: others wait {slowest:.2f} s at "
                  f"most, at most {before} -> {after} MB")
            assert all(b - a < GROWTH_MAX_MB for a, b in zip(before, after)), "answers pile up"
            assert slowest < 3, slowest
            assert reader.read() == 600
            done = client.ask(21, (1, f"done/{place}/"), (9, 1))
            assert done[4] == [600], done
            reader.socket.close()

        # On many connections at once there is no more of it, and those who read are not cut off.
        before = [peak(pid) for pid in pids]
        silent = [Reader(cluster.nodes[0].socket, 60, lambda number: count("silent/", number))
                  for _ in range(20)]
        reader = Reader(cluster.nodes[0].socket, 60, lambda number: count("read/", number))
        assert reader.read() == 60
        after = [peak(pid) for pid in pids]
        print(f"  the same on 20 connections: at most {before} -> {after} MB")
        assert all(b - a < GROWTH_MAX_MB for a, b in zip(before, after)), "answers pile up"
        for one in silent + [reader]:
            one.socket.close()


def connections_and_watches_have_an_end():
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        pid = wait_for("raft", lambda: node.daemon("raft"))
        before = rss(pid)

        def is_served(connection):
            try:
                connection.ask(12)
                return True
            except RuntimeError as error:
                # Said under the id 0, before the connection is closed.
                assert error.args[0] == RESOURCE_EXHAUSTED, error
                return False
            except (OSError, struct.error):
                return False
        connections = [Client(node.socket) for _ in range(CONNECTIONS_MAX + 10)]
        served = [c for c in connections if is_served(c)]
        assert len(served) == CONNECTIONS_MAX, len(served)
        for connection in connections:
            connection.socket.close()
            connection.file.close()
        wait_for("room for a connection", lambda: is_served(Client(node.socket)))

        # Whoever holds all connections and says nothing keeps nobody out for long: then each newcomer
        # takes the place of one of them at once.
        silent = [socket.socket(socket.AF_UNIX) for _ in range(CONNECTIONS_MAX)]
        for one in silent:
            one.connect(node.socket)
        assert not is_served(Client(node.socket)), "more connections than there may be"
        told = node.cli("kv", "get", "a", timeout_ms=1000)
        assert told.code == 6 and "all 500 connections" in told.err, told.__dict__
        wait_for("room among the silent", lambda: is_served(Client(node.socket)), 30)
        newcomers = [Client(node.socket) for _ in range(10)]
        assert all(is_served(one) for one in newcomers)
        for one in silent + [newcomer.socket for newcomer in newcomers]:
            one.close()
        wait_for("all places", lambda: is_served(Client(node.socket)))

        def begin_watches(count):
            """How many of so many watches on one connection are refused."""
            client = Client(node.socket)
            for _ in range(count):
                client.send(32, (1, "w/"), (2, "w0"))
            refused = 0
            for _ in range(count):
                try:
                    client.receive()
                except RuntimeError as error:
                    assert error.args[0] == RESOURCE_EXHAUSTED, error
                    refused += 1
            return client, refused
        one, refused = begin_watches(WATCHES_PER_CONNECTION + 3)
        assert refused == 3, refused
        others = [begin_watches(WATCHES_PER_CONNECTION)
                  for _ in range(WATCHES_MAX // WATCHES_PER_CONNECTION - 1)]
        assert [refused for _, refused in others] == [0] * len(others)
        last, refused = begin_watches(5)
        assert refused == 5, refused
        print(f"  {WATCHES_MAX} watches, RSS {before} -> {rss(pid)} MB")
        one.socket.close()
        one.file.close()
        wait_for("room for watches", lambda: begin_watches(5)[1] == 0)
        node.cli("kv", "set", "w/1", "x", check=0)
        for client in [last] + [client for client, _ in others]:
            client.socket.close()


if __name__ == "__main__":
    run(floods_are_refused_early, answers_that_nobody_reads_wait_unmade,
        answers_of_transactions_wait_unmade, connections_and_watches_have_an_end)
