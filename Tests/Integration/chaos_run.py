# SPDX-License-Identifier: GPL-2.0-or-later
"""Chaos among real daemons: clients go on while faults come and go, and the simulator's oracle judges
what they were told. See `chaos`."""

import collections
import os
import random
import re
import shutil
import subprocess
import threading
import time
from functools import partial

from aspen_cluster import Cluster, bin_dir
from chaos_clients import Caller, Clients, History
from chaos_faults import KINDS, NODES, PATIENCE, Plan, Running
from proving import same_state
from python_client import Client
from relay import Network
from test_clocks import Clocks
from test_full_disk import MEGABYTE, SIZE, SmallDisks

# A new write through each node is answered within this once the faults are over. A bound, not a
# measure: it takes some hundred milliseconds, and a busy machine some seconds.
RECOVERED_WITHIN = 60.0
CLIENTS = 6
PROBER = 100
# Seconds without faults at the end of a round.
CALM = 1.0
# Keys read at once at the end.
TOGETHER = 200
# Fewer operations with an answer in a second than this, and the run has shown nothing. There are tens,
# and a few where others leave hardly any time.
ANSWERS_A_SECOND = 0.5
GET_NODE_INFO, GET_LEADER, TRANSFER_LEADERSHIP = 13, 12, 41
TRAP = re.compile(r"Fatal error|Precondition failed|Assertion failed|was killed by signal (?!9\b)")


class Violation(AssertionError):
    pass


class Disks(SmallDisks):
    """The nodes' data in memory: a machine's disk is not what is tested, and others need it. One of
    them has little room."""

    def __init__(self, small):
        # It runs behind all other tests: how soon it has processors for its start says nothing.
        super().__init__(len(NODES), NODES if os.geteuid() == 0 else (), patience=PATIENCE)
        self.little = small

    def mount(self, number):
        size = SIZE if number == self.little else 512 * MEGABYTE
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "aspen-chaos",
                        self.path(number)], check=True)


class Chaos:
    """A cluster with a bad network, clocks, disks, and its clients; `run` gives a report."""

    def __init__(self, seed, directory, pause, say=print):
        self.seed, self.directory, self.out = seed, directory, say
        self.began = time.monotonic()
        draw = random.Random(seed)
        self.small = draw.choice(NODES)
        self.plan = Plan(draw, () if os.geteuid() == 0 else ("fill-disk",))
        self.locks = {number: threading.Lock() for number in NODES}
        self.pause, self.faults, self.recoveries = pause, collections.Counter(), []
        self.network, self.passed, self.phases = None, {}, []
        self.log = open(os.path.join(directory, "faults"), "w", encoding="utf-8")

    def say(self, text):
        line = f"{time.monotonic() - self.began:8.2f} s  {text}"
        self.log.write(line + "\n")
        self.log.flush()
        self.out(line)

    def has(self, done):
        self.phases.append(f"{done} after {time.monotonic() - self.began:.0f} s")
        self.say(done)

    def node(self, number):
        return self.disks.cluster.nodes[number - 1]

    # What faults ask for

    def ask(self, number, *request):
        """The answer of one node, or None."""
        try:
            client = Client(self.node(number).socket)
            client.socket.settimeout(2)
            try:
                return client.ask(*request)
            finally:
                client.file.close()
                client.socket.close()
        except Exception:  # noqa: BLE001 - whatever it is: no answer
            return None

    def leader(self):
        """As most say who know the newest term; else any node."""
        known = [(a.get(2, [0])[0], a.get(1, [0])[0]) for a in
                 (self.ask(number, GET_LEADER) for number in NODES) if a]
        return max([pair for pair in known if pair[1]], default=(0, NODES[0]))[1]

    def transfer(self, number):
        done = self.ask(number, TRANSFER_LEADERSHIP, (1, number))
        self.say(f"leadership to {number}: {'done' if done else 'not done'}")

    # The run

    def run(self, seconds):
        self.disks = Disks(self.small)
        cluster = self.disks.cluster
        cluster.timeout_ms = 50_000
        self.clocks = Clocks(cluster)
        self.network = Network(cluster.nodes)
        try:
            for node in cluster.nodes:
                node.address = f"127.0.0.1:{self.network.fronts[node.number]}"
                node.start = partial(node.start, programs=self.clocks.programs(node),
                                     extra=("--advertise", node.address))
            with self.disks:
                self.has("started")
                try:
                    self.torment(cluster, time.monotonic() + seconds)
                finally:
                    self.keep_logs(cluster)
        finally:
            self.passed = self.network.close()
        self.check_logs()
        self.check_nothing_is_left(cluster)

    def torment(self, cluster, end):
        self.history = History(os.path.join(self.directory, "history"))
        self.prober = Caller(PROBER, cluster.nodes, self.history, self.seed)
        self.prober.bare = 0
        started = time.monotonic()
        clients = Clients(CLIENTS, cluster.nodes, self.history, self.seed, self.pause)
        try:
            while time.monotonic() < end:
                self.round(clients)
        finally:
            failures = clients.stop()
            self.took = time.monotonic() - started
            if failures:
                raise Violation("; ".join(failures))
        self.has("ended the load")
        self.read_everything(cluster)
        self.history.close()
        index, digest = same_state(cluster.nodes, RECOVERED_WITHIN)
        self.say(f"all nodes have applied {index} entries; their states' hash is {digest:x}")

    def round(self, clients):
        running = [Running(self, *fault) for fault in self.plan.round()]
        for fault in running:
            self.faults[fault.name] += 1
            fault.join()
        failed = [fault.failure for fault in running if fault.failure] + clients.failures
        if failed:
            raise Violation("; ".join(failed))
        self.recover()
        time.sleep(CALM)
        self.history.new_round()

    def recover(self):
        """The faults are over: every node must take a new write."""
        began = time.monotonic()
        for number in NODES:
            self.prober.go_to(self.node(number))
            outcome = None
            while outcome != "ok":
                if time.monotonic() > began + RECOVERED_WITHIN:
                    raise Violation(f"no faults for {RECOVERED_WITHIN:.0f} s, and a write through "
                                    f"node {number} is {outcome}")
                line = {"client": PROBER, "key": self.history.keys - 1, "op": "put",
                        "value": next(self.history.values)}
                outcome = self.prober.perform(line, until=began + RECOVERED_WITHIN, stay=True)
        self.recoveries.append(time.monotonic() - began)
        self.say(f"writes through every node {self.recoveries[-1]:.2f} s after the last fault")

    def read_everything(self, cluster):
        for node in cluster.nodes:
            self.prober.go_to(node)
            until = time.monotonic() + RECOVERED_WITHIN
            for first in range(0, self.history.keys, TOGETHER):
                keys = range(first, min(first + TOGETHER, self.history.keys))
                if not self.prober.read_together(keys, until):
                    raise Violation(f"keys cannot be read through node {node.number}")
        self.prober.drop()

    # What is looked at afterwards

    def keep_logs(self, cluster):
        for node in cluster.nodes:
            shutil.copy(node.log_path, os.path.join(self.directory, f"{node.number}.log"))

    def check_logs(self):
        """The supervisor says how a daemon ended; kill -9 was us."""
        ends = collections.Counter()
        for number in NODES:
            with open(os.path.join(self.directory, f"{number}.log"), errors="replace",
                      encoding="utf-8") as f:
                for line in f:
                    if TRAP.search(line):
                        raise Violation(f"node {number}: {line.strip()}")
                    found = re.search(r"(net|raft) exited with \d+", line)
                    if found:
                        ends[found[0]] += 1
        for text, count in sorted(ends.items()):
            self.say(f"{text} × {count}")

    @staticmethod
    def check_nothing_is_left(cluster):
        """No process that was given the cluster's directory, and no file system in it."""
        needle = cluster.directory.encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f, open(f"/proc/{pid}/cmdline", "rb") as g:
                    if needle in f.read() + g.read():
                        raise Violation(f"process {pid} is left")
            except OSError:
                continue
        with open("/proc/mounts", "rb") as f:
            if needle in f.read():
                raise Violation("a file system is left")

    def check_that_much_happened(self):
        answers = self.history.succeeded()
        if answers < ANSWERS_A_SECOND * self.took:
            raise Violation(f"only {answers} operations were answered in {self.took:.0f} s")
        for op in ("get", "put", "cas", "delete"):
            if not self.history.counts[op, "ok"]:
                raise Violation(f"no {op} was ever answered")

    def report(self):
        self.out(f"{sum(self.faults.values())} faults, {len(self.faults)} of {len(KINDS)} kinds, in "
                 f"{len(self.recoveries)} rounds: {table(self.faults)}")
        self.out(f"datagrams: {table(self.passed)}")
        for op in ("get", "put", "cas", "delete"):
            self.out(f"{op}: " + table({outcome: self.history.counts[op, outcome]
                                        for outcome in ("ok", "refused", "unknown")}))
        self.out("refusals by (code, retry): " + table(self.history.refusals))
        self.out(f"{self.history.succeeded()} operations answered in {self.took:.0f} s; a write "
                 f"through every node at most {max(self.recoveries, default=0):.2f} s after the "
                 "faults of a round; " + ", ".join(self.phases))


def table(counts):
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def judge(path):
    """(exit code, what aspen-sim says)"""
    done = subprocess.run([f"{bin_dir()}/aspen-sim", "judge", path], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout.strip()


def torment(seconds, seed, directory, pause, say=print):
    """Raises Violation (or whatever else went wrong); `directory` has history, faults and logs."""
    chaos = Chaos(seed, directory, pause, say)
    try:
        chaos.run(seconds)
        chaos.has("looked at everything")
        code, verdict = judge(chaos.history.path)
        chaos.has("judged")
        chaos.report()
        chaos.out(f"judge: {verdict}")
        if code != 0:
            raise Violation(f"judge: {verdict}")
        chaos.check_that_much_happened()
    finally:
        chaos.log.close()
    return chaos
