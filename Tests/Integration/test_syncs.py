#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The cost of durability, as the kernel sees it: on a follower under load the log is synced once a
batch, batches grow with the load, and nothing else is synced on the way to an answer."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from aspen_cluster import Cluster, run, wait_for

SYNC = re.compile(r"\b(fdatasync|fsync|sync_file_range|msync|syncfs|sync)\(\d*<?([^>)]*)")


def syncs_under_load(cluster, follower, clients, count):
    """(syncs by kind of file, puts) while aspen-bench writes through all nodes."""
    with tempfile.NamedTemporaryFile("r", prefix="aspen-strace-") as trace:
        tracer = subprocess.Popen(
            ["strace", "-f", "-y", "-e", "trace=fdatasync,fsync,msync,sync_file_range,syncfs,sync",
             "-o", trace.name, "-p", str(follower.daemon("raft"))],
            stderr=subprocess.PIPE, text=True)
        # strace says "attached" once it watches every thread.
        assert "attached" in tracer.stderr.readline(), "strace could not attach"
        done = cluster.cli_bench("put", "--clients", str(clients), "--count", str(count),
                                 "--value-size", "256", "--warmup", "1ms")
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        tracer.stderr.close()
        assert done.returncode == 0, done.stderr
        kinds = {}
        for line in trace:
            found = SYNC.search(line)
            if found:
                name = os.path.basename(found[2])
                kind = next((k for k in ("state.db", "log-") if name.startswith(k)), name)
                kinds[kind] = kinds.get(kind, 0) + 1
        return kinds


def one_sync_of_the_log_a_batch():
    if shutil.which("strace") is None:
        raise AssertionError("strace is not installed: scripts/bootstrap test installs it")
    with Cluster(3) as cluster:
        leader, _ = cluster.leader()
        follower = next(node for node in cluster.nodes if node is not leader)
        # Less than makes the log prepare its next segment, which has syncs of its own.
        puts = 1000
        per_put = {}
        for clients in (1, 64):
            kinds = syncs_under_load(cluster, follower, clients, puts)
            checkpoints = kinds.pop("state.db", 0)
            assert list(kinds) == ["log-"], f"synced something else than the log: {kinds}"
            # A checkpoint is off the way to an answer and takes two or three syncs of the state.
            assert checkpoints <= 12, f"{checkpoints} syncs of the state for {puts} puts"
            per_put[clients] = kinds["log-"] / puts
            print(f"  {clients} clients: {per_put[clients]:.3f} syncs of the log a put, "
                  f"{checkpoints} of the state", file=sys.stderr)
        assert per_put[1] <= 1.1, per_put
        assert per_put[64] < per_put[1] / 3, f"batches do not grow with load: {per_put}"


def a_failed_sync_stops_the_daemon():
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        for number in range(20):
            node.cli("kv", "set", f"k{number}", f"v{number}", check=0)
        old = node.daemon("raft")
        # From now on every sync of this process fails as on a broken disk.
        tracer = subprocess.Popen(
            ["strace", "-f", "-e", "trace=fdatasync,fsync", "-e",
             "inject=fdatasync,fsync:error=EIO", "-o", "/dev/null", "-p", str(old)],
            stderr=subprocess.PIPE, text=True)
        assert "attached" in tracer.stderr.readline(), "strace could not attach"
        # Its answer, if there is one, comes from the process that follows, whose syncs work.
        told = node.cli("kv", "set", "k0", "new", timeout_ms=20000)
        wait_for("the daemon to stop", lambda: "raft exited with 74" in node.log())
        tracer.wait(timeout=60)
        tracer.stderr.close()
        assert "the disk failed" in node.log(), node.log()
        wait_for("another daemon", lambda: node.daemon("raft") not in (None, old))
        value = node.cli("kv", "get", "k0", timeout_ms=20000, check=0).out
        assert value == b"new\n" or told.code != 0 and value == b"v0\n", (value, told.__dict__)
        for number in range(1, 20):
            got = node.cli("kv", "get", f"k{number}", check=0).out
            assert got == f"v{number}\n".encode(), got


if __name__ == "__main__":
    run(one_sync_of_the_log_a_batch, a_failed_sync_stops_the_daemon)
