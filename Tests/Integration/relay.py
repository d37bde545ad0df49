#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A network between nodes on loopback that can be made bad: relay.py NODE=PORT…

Each node has one address in it, which all others dial and which the first line of output tells. What a
node sends there comes out of a port that stands for the sender, so that answers find their way back
and every direction of every pair passes through here alone. A line of input replaces all rules and is
answered by a line; the end of input ends the relay. `Network` is its other side."""

import heapq
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time

# Datagrams taken from one socket before another has its turn.
BATCH = 64
BUFFER = 4 << 20


def udp_socket(avoided):
    """On a port that is none of the nodes', which are free while these are down."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    if s.getsockname()[1] in avoided:
        with s:
            return udp_socket(avoided)
    s.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        s.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    return s


class Relay:
    def __init__(self, ports):
        self.ports = ports
        self.node_at = {port: node for node, port in ports.items()}
        self.fronts = {node: udp_socket(self.node_at) for node in ports}
        self.backs = {
            (a, b): udp_socket(self.node_at) for a in ports for b in ports if a != b}
        self.rules, self.latest = {}, {}
        self.waiting, self.serial = [], 0
        self.counts = dict.fromkeys(("passed", "lost", "delayed", "doubled", "damaged", "strange"), 0)
        self.draw = random.Random(1)
        self.poll = select.epoll()
        self.readers = {}
        for node, s in self.fronts.items():
            self.watch(s, lambda s=s, node=node: self.at_front(s, node))
        for pair, s in self.backs.items():
            self.watch(s, lambda s=s, pair=pair: self.at_back(s, *pair))
        self.watch(sys.stdin, self.command)

    def watch(self, file, reader):
        self.poll.register(file.fileno(), select.EPOLLIN)
        self.readers[file.fileno()] = reader

    def run(self):
        print(json.dumps({n: s.getsockname()[1] for n, s in self.fronts.items()}), flush=True)
        while True:
            pause = max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else -1
            for number, _ in self.poll.poll(pause):
                self.readers[number]()
            now = time.monotonic()
            while self.waiting and self.waiting[0][0] <= now:
                self.send(*heapq.heappop(self.waiting)[2:])

    def command(self):
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        self.rules = {(rule["from"], rule["to"]): rule for rule in json.loads(line)}
        print(json.dumps(self.counts), flush=True)

    def at_front(self, s, receiver):
        """From whoever dials `receiver`."""
        for data, address in self.received(s):
            sender = self.node_at.get(address[1])
            if sender is None or sender == receiver:
                self.counts["strange"] += 1
            else:
                self.pass_on(sender, receiver, data, self.backs[sender, receiver], self.ports[receiver])

    def at_back(self, s, dialler, dialled):
        """Answers of `dialled` to `dialler`."""
        for data, address in self.received(s):
            if address[1] == self.ports[dialled]:
                self.pass_on(dialled, dialler, data, self.fronts[dialled], self.ports[dialler])
            else:
                self.counts["strange"] += 1

    @staticmethod
    def received(s):
        for _ in range(BATCH):
            try:
                yield s.recvfrom(65535)
            except BlockingIOError:
                return

    def pass_on(self, sender, receiver, data, s, port):
        rule = self.rules.get((sender, receiver))
        if rule is None:
            return self.send(s, data, port)
        if rule["cut"] or self.draw.random() < rule["loss"]:
            self.counts["lost"] += 1
            return
        if self.draw.random() < rule["damage"]:
            self.counts["damaged"] += 1
            place = self.draw.randrange(len(data) * 8)
            data = bytearray(data)
            data[place // 8] ^= 1 << place % 8
        self.hold(sender, receiver, rule, (s, data, port))
        if self.draw.random() < rule["doubling"]:
            self.counts["doubled"] += 1
            self.hold(sender, receiver, rule, (s, data, port))

    def hold(self, sender, receiver, rule, datagram):
        delay = rule["delay"] + self.draw.uniform(0, rule["jitter"])
        if delay == 0:
            return self.send(*datagram)
        due = time.monotonic() + delay
        if not rule["disorder"]:
            due = max(due, self.latest.get((sender, receiver), 0))
            self.latest[sender, receiver] = due
        self.counts["delayed"] += 1
        self.serial += 1
        heapq.heappush(self.waiting, (due, self.serial, *datagram))

    def send(self, s, data, port):
        try:
            s.sendto(data, ("127.0.0.1", port))
            self.counts["passed"] += 1
        except OSError:
            # Full, or nobody there: the network loses it.
            self.counts["lost"] += 1


class Network:
    """Starts a relay for `nodes`. Rules lie over each other: each `worsen` is undone by its own
    `mend`, in any order."""

    def __init__(self, nodes):
        self.numbers = [node.number for node in nodes]
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)]
            + [f"{node.number}={node.port}" for node in nodes],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.fronts = {int(n): p for n, p in json.loads(self.process.stdout.readline()).items()}
        self.layers, self.serial = {}, 0
        # Faults have threads of their own. The relay is told one line at a time: of two that come together
        # it would read one, and not hear of the other before a third.
        self.lock = threading.RLock()

    def worsen(self, pairs, **rule):
        """`pairs`: (from, to) each. cut; loss, doubling, damage: shares; delay, jitter: seconds;
        disorder. Returns what `mend` takes."""
        with self.lock:
            self.serial += 1
            self.layers[self.serial] = (set(pairs), rule)
            self.publish()
            return self.serial

    def mend(self, layer):
        with self.lock:
            self.layers.pop(layer, None)
            self.publish()

    def publish(self):
        """Tells the relay; returns its counts."""
        merged = {}
        for pairs, rule in self.layers.values():
            for pair in pairs:
                into = merged.setdefault(pair, {
                    "from": pair[0], "to": pair[1], "cut": False, "disorder": False, "loss": 0,
                    "doubling": 0, "damage": 0, "delay": 0, "jitter": 0})
                for name in ("cut", "disorder"):
                    into[name] |= rule.get(name, False)
                for name in ("delay", "jitter"):
                    into[name] += rule.get(name, 0)
                for name in ("loss", "doubling", "damage"):
                    into[name] = 1 - (1 - into[name]) * (1 - rule.get(name, 0))
        with self.lock:
            self.process.stdin.write(json.dumps(list(merged.values())) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def pairs(self, *numbers):
        """Every direction that touches one of the nodes named; without names, all there are."""
        return {(a, b) for a in self.numbers for b in self.numbers
                if a != b and (not numbers or a in numbers or b in numbers)}

    def close(self):
        """Returns the counts of the whole run."""
        counts = self.publish()
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()
        return counts


if __name__ == "__main__":
    Relay({int(n): int(p) for n, p in (a.split("=") for a in sys.argv[1:])}).run()
