# SPDX-License-Identifier: GPL-2.0-or-later
"""What `prove` needs besides a cluster: loads that run until told, percentiles, state hashes, sizes."""

import json
import os
import signal
import subprocess
import threading
import time

from aspen_cluster import Node, free_ports, wait_for
from python_client import Client, parse

GET_NODE_INFO, WATCH = 13, 32


def check(condition, text):
    """A promise: kept, or the proof has failed."""
    if not condition:
        raise AssertionError(text)


def bench(cluster, *arguments, nodes=None, timeout=1800):
    """aspen-bench to its end; its JSON report."""
    done = subprocess.run(bench_command(cluster, *arguments, nodes=nodes), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=timeout)
    check(done.returncode == 0, f"aspen-bench {arguments}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[0])


def bench_command(cluster, verb, *arguments, nodes=None):
    command = [f"{cluster.bin}/aspen-bench", verb, *map(str, arguments)]
    if verb not in ("watch", "audit"):
        command.append("--json")
    for node in nodes or cluster.nodes:
        command += ["--socket", node.socket]
    return command


class Load:
    """aspen-bench in the background; `finish` gives its report and, of a put load, its samples."""

    def __init__(self, cluster, *arguments, nodes=None, nice=0):
        self.path = os.path.join(cluster.directory, f"samples-{time.monotonic_ns()}")
        verb = arguments[0]
        if verb == "put":
            arguments += ("--samples", self.path)
            if "--count" not in arguments:
                arguments += ("--duration", "60m")
        self.process = subprocess.Popen(
            ["nice", "-n", str(nice), *bench_command(cluster, *arguments, nodes=nodes)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, interrupt=True, timeout=600):
        if interrupt:
            self.process.send_signal(signal.SIGINT)
        out, error = self.process.communicate(timeout=timeout)
        lines = out.splitlines()
        check(lines, f"aspen-bench said nothing: {error}")
        self.report, self.complaints = json.loads(lines[0]), lines[1:]
        self.samples = []
        if os.path.exists(self.path):
            with open(self.path) as f:
                self.samples = [tuple(map(int, line.split())) for line in f]
        return self.report


def latencies(samples, windows):
    """Milliseconds, sorted, of the requests that were due within one of the windows (monotonic)."""
    spans = [(int(a * 1e9), int(b * 1e9)) for a, b in windows]
    return sorted(latency / 1e6 for start, latency in samples
                  if any(a <= start < b for a, b in spans))


def percentile(values, percent):
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def spread(values):
    return (f"p50 {percentile(values, 50):.2f} ms, p99 {percentile(values, 99):.2f} ms, "
            f"p99.9 {percentile(values, 99.9):.1f} ms, max {values[-1]:.0f} ms ({len(values)} puts)")


def node_info(node):
    """(index applied, hash of the state)"""
    info = Client(node.socket).ask(GET_NODE_INFO)
    return parse(info[1][0]).get(4, [0])[0], info.get(7, [0])[0]


def same_state(nodes, seconds=60):
    """Waits until all have applied the same entries; their states must then be equal."""
    def ask():
        try:
            infos = [node_info(node) for node in nodes]
        except (OSError, RuntimeError, ValueError, IndexError, KeyError):
            return None
        return infos if len({index for index, _ in infos}) == 1 else None
    infos = wait_for("the same index everywhere", ask, seconds)
    check(len({digest for _, digest in infos}) == 1, f"states differ: {infos}")
    return infos[0]


def member(cluster, number, through=None):
    """A line of `cluster status`, or {}."""
    for node in [through] if through else cluster.nodes:
        if node.process is None or node.process.poll() is not None:
            continue
        done = node.cli("cluster", "status", "-o", "json", timeout_ms=3000)
        if done.code == 0:
            return next((m for m in done.json()["nodes"] if m["node_id"] == number), {})
    return {}


def metric(node, name):
    """A figure of a node; 0 while it does not answer."""
    done = node.cli("cluster", "prometheus", timeout_ms=2000)
    for line in done.out.decode().splitlines():
        if line.split(" ")[0] == name:
            return float(line.split(" ")[1])
    return 0


def newcomer(cluster):
    """Another node, which runs and is no member."""
    node = Node(cluster, len(cluster.nodes) + 1, free_ports(1)[0])
    cluster.nodes.append(node)
    node.start()
    return node


def join(cluster, node, through):
    """Adds a learner and waits until it is in step. Returns when that began and ended."""
    started = time.monotonic()
    through.cli("cluster", "add-learner", "--node-id", str(node.number), check=0)
    # Not more often: each look is a program started, on processors that are measured.
    wait_for("the learner in step", lambda: in_step(cluster, node, through), 600, every=0.25)
    check("installed a snapshot" in node.log(), "the learner was filled from the log")
    return started, time.monotonic()


def in_step(cluster, node, through):
    found = member(cluster, node.number, through)
    return found.get("reachable") and found.get("lag", 1 << 60) <= 100 and found


def resident(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) // 1024


def disk_bytes(directory):
    """Blocks that the files of a directory take up."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


class Sampler(threading.Thread):
    """The largest of what `read` gives, once in `every` seconds."""

    def __init__(self, read, every=0.25, least=0):
        super().__init__(daemon=True)
        self.read, self.every, self.largest, self.stopping = read, every, least, threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(self.every):
            try:
                self.largest = max(self.largest, self.read())
            except (OSError, StopIteration, TypeError):
                pass

    def finish(self):
        self.stopping.set()
        self.join()
        return self.largest
