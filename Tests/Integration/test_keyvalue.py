#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches and leases of a real cluster: killed nodes, many watchers, one that does not read."""

import json
import os
import re
import subprocess
import sys
import threading
import time

from aspen_cluster import Cluster, run, wait_for
from python_client import Client, parse

HERE = os.path.dirname(os.path.abspath(__file__))


def rss(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) // 1024 for line in f if line.startswith("VmRSS"))


class Writer(threading.Thread):
    """Keeps `window` writes in flight until told to stop; knows every revision it was given."""

    def __init__(self, path, prefix, window=64):
        super().__init__(daemon=True)
        self.client, self.prefix, self.window = Client(path), prefix, window
        self.revisions, self.stopping = [], False
        self.began = time.monotonic()
        self.start()

    def run(self):
        number = waiting = 0
        while not self.stopping or waiting:
            while not self.stopping and waiting < self.window:
                self.client.send(18, (1, f"{self.prefix}{number % 1000}"), (2, str(number)))
                number, waiting = number + 1, waiting + 1
            _, answer = self.client.receive()
            self.revisions.append(answer[1][0])
            waiting -= 1

    def finish(self):
        self.stopping = True
        self.join()
        rate = len(self.revisions) / (time.monotonic() - self.began)
        print(f"  {len(self.revisions)} writes, {rate:.0f}/s")
        return max(self.revisions)


class Watcher(threading.Thread):
    """Follows a prefix at the first of `paths` that answers; resumes where it was."""

    def __init__(self, paths, prefix, start, until):
        super().__init__(daemon=True)
        self.paths, self.prefix, self.next, self.until = paths, prefix, start, until
        self.revisions, self.resumed = [], -1
        self.start()

    def run(self):
        end = self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)
        while not self.until() or self.next <= self.until():
            path, self.paths = self.paths[0], self.paths[1:] + self.paths[:1]
            try:
                client = Client(path)
                client.send(32, (1, self.prefix), (2, end), (3, self.next), (7, 1))
                self.resumed += 1
                while not self.until() or self.next <= self.until():
                    _, update = client.receive()
                    for event in update.get(2, []):
                        self.revisions.append(parse(parse(event)[2][0])[4][0])
                    self.next = update.get(1, [0])[0] + 1
            except (OSError, RuntimeError, ValueError, TypeError, IndexError) as error:
                if not isinstance(error, (OSError, ValueError)):
                    time.sleep(0.05)
            except Exception as error:
                if "unpack" not in str(error):
                    raise


def a_watch_outlives_its_node():
    with Cluster(3) as cluster:
        leader = cluster.status()["leader_id"]
        nodes = [n for n in cluster.nodes if n.number != leader]
        victim, other = nodes
        end = []
        writer = Writer(other.socket, "w/")
        watcher = Watcher([victim.socket, other.socket], "w/", 1,
                          lambda: end[0] if end else None)
        for _ in range(3):
            time.sleep(2)
            victim.kill_daemon("raft")
        time.sleep(2)
        end.append(writer.finish())
        watcher.join(30)
        assert not watcher.is_alive(), (watcher.next, end)
        assert watcher.resumed >= 1, "the watch was never interrupted"
        assert watcher.revisions == sorted(writer.revisions), "missed, repeated or out of order"
        print(f"  resumed {watcher.resumed} times, {len(watcher.revisions)} events")


def a_thousand_watchers():
    with Cluster(3) as cluster:
        leader = cluster.status()["leader_id"]
        node = next(n for n in cluster.nodes if n.number != leader)
        pid = wait_for("raft", lambda: node.daemon("raft"))
        before = rss(pid)
        stuck = Client(node.socket)
        stuck.send(32, (1, "m/"), (2, "m0"))
        clients = [Client(node.socket) for _ in range(10)]
        for client in clients:
            for _ in range(100):
                client.send(32, (1, "m/"), (2, "m0"))
        counts = [0] * len(clients)
        end = []

        def drain(place, client):
            told = {}
            while not end or len(told) < 100 or min(told.values()) < end[0]:
                number, update = client.receive()
                told[number] = update.get(1, [0])[0]
                counts[place] += len(update.get(2, []))
        threads = [threading.Thread(target=drain, args=pair, daemon=True)
                   for pair in enumerate(clients)]
        for thread in threads:
            thread.start()
        writer = Writer(node.socket, "m/", window=16)
        top = 0
        for _ in range(20):
            time.sleep(0.1)
            top = max(top, rss(pid))
        last = writer.finish()
        end.append(last)
        for _ in range(3):
            Client(node.socket).ask(18, (1, "m/end"), (2, "x"))
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a watcher was not told everything"
        wanted = 100 * len(writer.revisions)
        assert all(wanted <= count <= wanted + 300 for count in counts), (counts, wanted)
        print(f"  RSS {before} MB -> at most {top} MB with 1,001 watchers")
        assert top - before < 150, "memory grows with watchers"


def what_is_compacted_says_where_to_go_on():
    with Cluster(3, settings={"ASPEN_HISTORY_REVISIONS": "1000"}) as cluster:
        first = Client(cluster.nodes[1].socket).ask(18, (1, "c/first"), (2, "x"))[1][0]

        def history_of_the_first():
            return cluster.nodes[2].cli("kv", "get", "c/first", "--revision", str(first))
        assert history_of_the_first().out == b"x\n"
        writer = Writer(cluster.nodes[0].socket, "c/")
        wait_for("compaction", lambda: history_of_the_first().code != 0)
        last = writer.finish()
        assert "compacted" in history_of_the_first().err, history_of_the_first().err
        for node in cluster.nodes:
            def late(start, *more):
                return node.cli("kv", "watch", "--prefix", "c/", "--from-revision", str(start), *more,
                                timeout_ms=20000)

            def gone_on():
                refused = late(first)
                assert refused.code == 1 and refused.out == b"", (refused.code, refused.out)
                oldest = int(re.search(r"before revision (\d+) are compacted", refused.err)[1])
                assert first < oldest <= last, (first, oldest, last)
                told = late(oldest, "--count", str(last - oldest + 1), "--json")
                # The last of what is to go may go in between.
                return told.code == 0 and (oldest, told.out.splitlines())
            oldest, lines = wait_for("the rest", gone_on)
            revisions = [json.loads(line)["mod_revision"] for line in lines]
            assert revisions == list(range(oldest, last + 1)), (oldest, last, revisions[:3])
        print(f"  {last - first + 1} writes; a watch from the first hears to begin at the "
              f"{oldest - first + 1}th, and hears all from there")


def a_lease_ends_once_and_in_time():
    with Cluster(3) as cluster:
        def grant():
            done = cluster.nodes[0].cli("lease", "grant", "--ttl", "3s")
            return done.out.decode().strip() if done.code == 0 else None
        wait_for("leases", grant)
        for kills in (False, True):
            number = grant()
            began = time.monotonic()
            for key in ("a", "b"):
                cluster.nodes[1].cli("kv", "set", f"l/{key}", "1", "--lease", number, check=0)
            if kills:
                leader = cluster.status()["leader_id"]
                cluster.nodes[leader - 1].kill_daemon("raft")
            gone = []
            for node in cluster.nodes:
                done = node.cli("kv", "watch", "--prefix", "l/", "--deletes-only", "--count", "2",
                                "--from-revision", "1", "--json", timeout_ms=20000, check=0) \
                    if not kills else node.cli("kv", "history", "l/a", "--limit", "1", "--json")
                gone.append(done)
                if kills:
                    wait_for("the end", lambda: node.cli("kv", "get", "l/a").code == 3)
            took = time.monotonic() - began
            assert took >= 3.0, took
            if not kills:
                revisions = {json.loads(line)["mod_revision"]
                             for done in gone for line in done.out.splitlines()}
                assert len(revisions) == 1, revisions
                assert took < 5.5, took
            print(f"  gone after {took:.2f} s{' across a leader kill' if kills else ''}")


def another_language():
    script = os.path.join(HERE, "python_client.py")
    with open(script) as f:
        assert len(f.readlines()) < 100
    cluster = Cluster(1)
    try:
        cluster.nodes[0].start()
        subprocess.run([sys.executable, script, cluster.nodes[0].socket, "--init"], check=True)
    finally:
        cluster.__exit__(None, None, None)


if __name__ == "__main__":
    run(another_language, a_watch_outlives_its_node, a_thousand_watchers,
        what_is_compacted_says_where_to_go_on, a_lease_ends_once_and_in_time)
