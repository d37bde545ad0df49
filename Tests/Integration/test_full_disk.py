#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Full disks: nodes whose data lies on a small file system of its own, which fills up."""

import os
import shutil
import subprocess
import sys
import time

from aspen_cluster import Cluster, run, wait_for
from python_client import Client

MEGABYTE = 1 << 20
SIZE = 64 * MEGABYTE
VALUE = 200_000
HEALED = 5.0


class SmallDisks:
    """`with SmallDisks(cluster_size, full)` gives a cluster in which the nodes `full` (numbers) have
    64 MB ext4 file systems, in files of their own."""

    def __init__(self, count, small, patience=20.0):
        self.cluster = Cluster(count, patience=patience)
        self.small = small
        self.mounted = []

    def path(self, number):
        return self.cluster.nodes[number - 1].data

    def __enter__(self):
        try:
            for number in self.small:
                net = self.path(number) + "-net"
                shutil.copytree(os.path.join(self.path(number), "net"), net)
                self.mount(number)
                self.mounted.append(number)
                shutil.copytree(net, os.path.join(self.path(number), "net"))
            self.cluster.__enter__()
        except BaseException:
            self.unmount()
            self.cluster.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            for node in self.cluster.nodes:
                print(f"--- log of node {node.number}\n{node.log()[-3000:]}", file=sys.stderr)
        for node in self.cluster.nodes:
            if node.process and node.process.poll() is None:
                node.kill_all()
        self.unmount()
        self.cluster.__exit__(None, None, None)

    def mount(self, number):
        image = os.path.join(self.cluster.directory, f"disk{number}")
        with open(image, "wb") as f:
            f.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, self.path(number)], check=True)

    def unmount(self):
        for number in self.mounted:
            subprocess.run(["umount", "-l", self.path(number)], check=False)
        self.mounted = []

    def free(self, number):
        status = os.statvfs(self.path(number))
        return status.f_bfree * status.f_frsize

    def fill(self, number):
        """Somebody else takes all that is free, at once: who fills a disk slowly takes what the node
        gives up of its reserve, too, and the node can only stop then (see FaultModel)."""
        with open(os.path.join(self.path(number), "filler"), "wb", buffering=0) as f:
            size, piece = 0, self.free(number) & ~4095
            while piece >= 4096:
                try:
                    os.posix_fallocate(f.fileno(), size, piece)
                    size += piece
                except OSError as error:
                    assert error.errno == 28, error
                    piece = piece // 2 & ~4095

    def unfill(self, number):
        os.unlink(os.path.join(self.path(number), "filler"))


def put(node, key, check=None):
    return node.cli("kv", "set", "-f", VALUE_FILE, key, check=check)


class Socket:
    """One connection for many requests: a process for each would take most of the time."""

    def __init__(self, node):
        self.client = Client(node.socket)
        self.client.socket.settimeout(30)
        with open(VALUE_FILE, "rb") as f:
            self.value = f.read()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.client.file.close()
        self.client.socket.close()

    def put(self, key):
        self.client.ask(18, (1, key), (2, self.value))

    def delete(self, key):
        self.client.ask(20, (1, key))

    def has(self, key):
        return 1 in self.client.ask(19, (1, key))


def fill_by_puts(node, most=2000):
    """Puts until one is refused; the keys that were taken, and the refusal, as the CLI tells it."""
    with Socket(node) as socket:
        for number in range(most):
            try:
                socket.put(f"k{number:05}")
            except RuntimeError:
                return number, put(node, f"k{number:05}")
    raise AssertionError(f"{most} puts of {VALUE} bytes fit into 64 MB")


class Leases:
    """Leases from before the disk was full: one is kept alive, one ends while it is full."""

    def __init__(self, node):
        self.kept, self.ending = (
            node.cli("lease", "grant", "--ttl", ttl, "-o", "json", check=0).json()["lease"]
            for ttl in ("60s", "2s"))
        for lease in (self.kept, self.ending):
            node.cli("kv", "set", f"lease/{lease}", "up", "--lease", str(lease), check=0)

    def go_on(self, node):
        node.cli("lease", "keepalive", str(self.kept), "--once", check=0)
        left = node.cli("lease", "ttl", str(self.kept), "-o", "json", check=0).json()
        assert left["remaining_ttl_ms"] > 50_000, left
        # 2 s and the second that the leader has for it, and what a busy machine takes.
        wait_for("a lease to end on a full disk", lambda: node.cli(
            "kv", "get", f"lease/{self.ending}").code == 3, 10)
        assert node.cli("lease", "ttl", str(self.ending)).code == 3
        node.cli("kv", "get", f"lease/{self.kept}", check=0)


def is_refused(result):
    return result.code != 0 and "no space left on node" in result.err and "delete" in result.err


def restarts(node):
    return node.log().count("is gone") + node.log().count("ended")


def pids(disks):
    return [node.daemon("raft") for node in disks.cluster.nodes]


def check_all(node, taken, deleted):
    with Socket(node) as socket:
        for number in range(taken):
            assert socket.has(f"k{number:05}") == (number not in deleted), number


def one_node_filled_by_its_own_data():
    with SmallDisks(1, [1]) as disks:
        node = disks.cluster.nodes[0]
        before = pids(disks)
        taken, refused = fill_by_puts(node)
        assert is_refused(refused), refused.__dict__
        assert taken > 50, f"only {taken} values of {VALUE} bytes fit"
        check_all(node, taken, ())
        node.cli("kv", "scan", "--limit", "5", check=0)
        # Everything goes: only compaction gives the space back.
        began = time.monotonic()
        with Socket(node) as socket:
            for number in range(taken):
                socket.delete(f"k{number:05}")
        deleted = time.monotonic()
        wait_for("puts to work again", lambda: put(node, "again").code == 0, HEALED)
        healed = time.monotonic() - deleted
        wait_for("the file system to be emptied",
                 lambda: disks.free(1) > 18 * MEGABYTE, 10)
        again, refused = fill_by_puts(node)
        assert is_refused(refused) and again > taken * 0.7, (taken, again, refused.err)
        node.stop()
        node.start()
        check_all(node, again, ())
        assert not is_refused(node.cli("kv", "delete", "k00000"))
        print(f"  {taken} values of {VALUE} bytes, {deleted - began:.1f} s for as many deletes, puts "
              f"{healed:.1f} s later, {again} values again; {refused.err.strip()}")
        assert before[0] is not None


def one_node_filled_by_others():
    with SmallDisks(1, [1]) as disks:
        node = disks.cluster.nodes[0]
        for number in range(20):
            put(node, f"k{number:05}", check=0)
        leases = Leases(node)
        before = pids(disks)
        disks.fill(1)
        wait_for("a put to be refused", lambda: is_refused(put(node, "x")), HEALED)
        leases.go_on(node)
        for number in range(10):
            node.cli("kv", "delete", f"k{number:05}", check=0)
        check_all(node, 20, range(10))
        # A restart has to make do with what was kept back.
        node.stop()
        node.start()
        wait_for("reads after a restart",
                 lambda: node.cli("kv", "get", "k00010").code == 0, 10)
        node.cli("kv", "delete", "k00010", check=0)
        assert is_refused(put(node, "x"))
        started = pids(disks)
        disks.unfill(1)
        began = time.monotonic()
        wait_for("puts to work again", lambda: put(node, "x").code == 0, HEALED)
        print(f"  puts {time.monotonic() - began:.1f} s after there was space")
        assert pids(disks) == started and before[0] is not None, "a daemon was restarted"


def one_full_disk_of_three():
    with SmallDisks(3, [2]) as disks:
        one, full, three = disks.cluster.nodes
        for number in range(10):
            put(one, f"k{number:05}", check=0)
        before = pids(disks)
        disks.fill(2)
        wait_for("node 2 to say so", lambda: "no space left on the disk" in full.log(), HEALED)
        # If it leads it hands over first.
        wait_for("puts to go on", lambda: put(one, "after").code == 0, 10)
        # More than its reserve, so that it must leave entries out.
        with Socket(one) as left, Socket(three) as right:
            for number in range(10, 110):
                [left, right][number % 2].put(f"k{number:05}")
        one.cli("kv", "get", "k00100", check=0)
        told = put(full, "there")
        assert told.code != 0 and "no space left on node 2" in told.err, told.__dict__
        assert pids(disks) == before, "a daemon was restarted"
        # Whoever is started with the reserve gone has as little room as before.
        full.kill_all()
        said = full.log().count("the reserve is used up")
        full.start()
        wait_for("node 2 to say so again",
                 lambda: full.log().count("the reserve is used up") > said)
        before = pids(disks)
        told = put(full, "there")
        assert told.code != 0 and "no space left on node 2" in told.err, told.__dict__
        disks.unfill(2)
        began = time.monotonic()

        def is_caught_up():
            nodes = {n["node_id"]: n for n in disks.cluster.status(one)["nodes"]}
            return nodes[2].get("applied", 0) >= nodes[1].get("applied", 1)
        wait_for("node 2 to have caught up", is_caught_up, 20)
        print(f"  caught up {time.monotonic() - began:.1f} s after there was space")
        assert pids(disks) == before, "a daemon was restarted"
        assert "starting it again" not in full.log(), "a daemon has stopped by itself"
        check_all(full, 110, ())


def three_full_disks():
    with SmallDisks(3, [1, 2, 3]) as disks:
        one, two, three = disks.cluster.nodes
        before = pids(disks)
        for number in range(20):
            put(one, f"k{number:05}", check=0)
        leases = Leases(one)
        for number in (1, 2, 3):
            disks.fill(number)
        for node in disks.cluster.nodes:
            wait_for("puts to be refused", lambda: is_refused(put(node, "x")), HEALED)
        for number in range(10):
            disks.cluster.nodes[number % 3].cli("kv", "delete", f"k{number:05}", check=0)
        leases.go_on(two)
        for node in disks.cluster.nodes:
            check_all(node, 20, range(10))
        for number in (1, 2, 3):
            disks.unfill(number)
        began = time.monotonic()
        for node in disks.cluster.nodes:
            wait_for("puts to work again", lambda: put(node, "x").code == 0, HEALED)
        print(f"  puts {time.monotonic() - began:.1f} s after there was space")
        assert pids(disks) == before, "a daemon was restarted"


if __name__ == "__main__":
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not os.path.exists("/dev/loop-control"):
        print("SKIPPED: full disks need root, mkfs.ext4 and loop devices")
        sys.exit(0)
    import tempfile
    with tempfile.NamedTemporaryFile() as value:
        value.write(os.urandom(VALUE))
        value.flush()
        VALUE_FILE = value.name
        run(one_node_filled_by_its_own_data, one_node_filled_by_others, one_full_disk_of_three,
            three_full_disks)
