# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults of the chaos test. Each kind is a function that draws one from a generator of chance: a
text, and what carries it out and undoes it in a `Chaos`. Nothing is drawn while they go on, so that a
seed gives one plan; who leads is found out then."""

import os
import signal
import threading
import time

from test_clocks import Jumping

NODES = (1, 2, 3)
# Seconds for what a busy machine starts; where it has nothing else to do they are fractions of one.
PATIENCE = 120.0
DAEMONS = ("net", "raft")
KINDS = {}


def kind(function):
    KINDS[function.__name__.replace("_", "-")] = function
    return function


def send_signal(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, TypeError):
            pass


# Processes

@kind
def kill_daemon(draw):
    """kill -9, once or again while it recovers; the supervisor starts it anew."""
    number, name = draw.choice(NODES), draw.choice(DAEMONS)
    pauses = [draw.uniform(0.05, 1) for _ in range(draw.choice([1, 1, 3]))]

    def go(chaos):
        for pause in pauses:
            with chaos.locks[number]:
                chaos.node(number).kill_daemon(name, PATIENCE)
            time.sleep(pause)
    return f"kill {name} of {number}, {len(pauses)} times", go


@kind
def kill_leader(draw):
    """Its raft daemon alone, or both of its daemons."""
    names = draw.choice([("raft",), ("net", "raft"), ("raft", "net")])

    def go(chaos):
        number = chaos.leader()
        with chaos.locks[number]:
            for name in names:
                chaos.node(number).kill_daemon(name, PATIENCE)
    return f"kill {' and '.join(names)} of the leader", go


def kill_nodes(chaos, numbers, seconds):
    for number in numbers:
        chaos.locks[number].acquire()
    try:
        for number in numbers:
            chaos.node(number).kill_all()
        time.sleep(seconds)
        for number in numbers:
            chaos.node(number).start()
    finally:
        for number in numbers:
            chaos.locks[number].release()


@kind
def kill_node(draw):
    number, seconds = draw.choice(NODES), draw.uniform(0, 4)
    return (f"kill node {number}, start it {seconds:.1f} s later",
            lambda chaos: kill_nodes(chaos, [number], seconds))


@kind
def kill_all(draw):
    seconds = draw.uniform(0, 1)
    return (f"kill all nodes, start them {seconds:.1f} s later",
            lambda chaos: kill_nodes(chaos, NODES, seconds))


def hold(chaos, number, names, seconds):
    node = chaos.node(number)
    pids = [node.daemon(name) for name in names]
    send_signal(pids, signal.SIGSTOP)
    time.sleep(seconds)
    send_signal(pids, signal.SIGCONT)


@kind
def pause(draw):
    number, seconds = draw.choice(NODES), draw.uniform(0.5, 6)
    names = draw.choice([("net",), ("raft",), DAEMONS])
    return (f"hold {' and '.join(names)} of {number} for {seconds:.1f} s",
            lambda chaos: hold(chaos, number, names, seconds))


@kind
def pause_leader(draw):
    """Longer than an election timeout: it wakes up and takes itself for the leader still."""
    seconds = draw.uniform(3.5, 6)
    return (f"hold the leader for {seconds:.1f} s",
            lambda chaos: hold(chaos, chaos.leader(), DAEMONS, seconds))


# The network

def worse(chaos, pairs, seconds, **rule):
    layer = chaos.network.worsen(pairs, **rule)
    time.sleep(seconds)
    chaos.network.mend(layer)


@kind
def cut_one_way(draw):
    (a, b), seconds = draw.sample(NODES, 2), draw.uniform(1, 6)
    return (f"nothing from {a} to {b} for {seconds:.1f} s",
            lambda chaos: worse(chaos, {(a, b)}, seconds, cut=True))


@kind
def cut_pair(draw):
    (a, b), seconds = draw.sample(NODES, 2), draw.uniform(1, 6)
    return (f"nothing between {a} and {b} for {seconds:.1f} s",
            lambda chaos: worse(chaos, {(a, b), (b, a)}, seconds, cut=True))


@kind
def isolate(draw):
    number, seconds = draw.choice(NODES), draw.uniform(1, 6)
    return (f"{number} is alone for {seconds:.1f} s",
            lambda chaos: worse(chaos, chaos.network.pairs(number), seconds, cut=True))


@kind
def isolate_leader(draw):
    seconds, way = draw.uniform(3.5, 6), draw.choice(["from and to", "from", "to"])

    def go(chaos):
        leader = chaos.leader()
        pairs = {(a, b) for a, b in chaos.network.pairs(leader)
                 if way == "from and to" or (a if way == "from" else b) == leader}
        worse(chaos, pairs, seconds, cut=True)
    return f"nothing {way} the leader for {seconds:.1f} s", go


@kind
def flap(draw):
    """A cut that comes and goes."""
    number = draw.choice(NODES)
    times = [draw.uniform(0.1, 1) for _ in range(8)]

    def go(chaos):
        for cut, whole in zip(times[::2], times[1::2]):
            worse(chaos, chaos.network.pairs(number), cut, cut=True)
            time.sleep(whole)
    return f"{number} comes and goes for {sum(times):.1f} s", go


@kind
def lose(draw):
    share, seconds = draw.uniform(0.02, 0.3), draw.uniform(2, 6)
    return (f"lose {share:.0%} everywhere for {seconds:.1f} s",
            lambda chaos: worse(chaos, chaos.network.pairs(), seconds, loss=share))


@kind
def delay(draw):
    number, seconds = draw.choice(NODES), draw.uniform(2, 6)
    least, jitter = draw.uniform(0.005, 0.1), draw.uniform(0, 0.2)
    disorder = draw.random() < 0.5
    return (f"{least * 1000:.0f} to {(least + jitter) * 1000:.0f} ms from and to {number}, "
            f"{'out of' if disorder else 'in'} order, for {seconds:.1f} s",
            lambda chaos: worse(chaos, chaos.network.pairs(number), seconds, delay=least,
                                jitter=jitter, disorder=disorder))


@kind
def garble(draw):
    """Datagrams come twice, or with a wrong bit."""
    doubling, damage, seconds = draw.uniform(0, 0.5), draw.uniform(0, 0.05), draw.uniform(2, 6)
    return (f"{doubling:.0%} twice, {damage:.0%} damaged everywhere for {seconds:.1f} s",
            lambda chaos: worse(chaos, chaos.network.pairs(), seconds, doubling=doubling,
                                damage=damage, jitter=0.01, disorder=True))


# What else happens to nodes

@kind
def transfer(draw):
    """Leadership goes from one to the next."""
    targets = [draw.choice(NODES) for _ in range(3)]

    def go(chaos):
        for number in targets:
            chaos.transfer(number)
            time.sleep(0.5)
    return f"leadership to {', '.join(map(str, targets))}", go


@kind
def fill_disk(draw):
    seconds = draw.uniform(2, 6)

    def go(chaos):
        chaos.disks.fill(chaos.small)
        time.sleep(seconds)
        chaos.disks.unfill(chaos.small)
    return f"a disk is full for {seconds:.1f} s", go


@kind
def wrong_clock(draw):
    number, seconds, shift = draw.choice(NODES), draw.uniform(2, 6), draw.choice([-1, 1]) * 60
    shift *= draw.randint(1, 30)

    def go(chaos):
        chaos.clocks.shift(chaos.node(number), shift)
        time.sleep(seconds)
        chaos.clocks.shift(chaos.node(number), 0)
    return f"the clock of {number} is {shift} s off for {seconds:.1f} s", go


@kind
def jumping_clock(draw):
    number, seconds = draw.choice(NODES), draw.uniform(2, 6)

    def go(chaos):
        with Jumping(chaos.clocks, [chaos.node(number)]):
            time.sleep(seconds)
        chaos.clocks.shift(chaos.node(number), 0)
    return f"the clock of {number} jumps for {seconds:.1f} s", go


class Plan:
    """Rounds of one to three faults, which may overlap. Every kind comes once before any comes again."""

    def __init__(self, draw, without=()):
        self.draw = draw
        self.kinds = [name for name in KINDS if name not in without]
        self.deck = []

    def round(self):
        """[(name, seconds until it begins, text, what carries it out)]"""
        faults = []
        for _ in range(self.draw.choice([1, 2, 2, 3, 3])):
            if not self.deck:
                self.deck = self.draw.sample(self.kinds, len(self.kinds))
            if self.deck[-1] in [fault[0] for fault in faults]:
                break
            name = self.deck.pop()
            faults.append((name, self.draw.uniform(0, 2), *KINDS[name](self.draw)))
        return faults


class Running(threading.Thread):
    """One fault; `failure` says why it could not be carried out or undone."""

    def __init__(self, chaos, name, start, text, go):
        super().__init__(daemon=True)
        self.chaos, self.name, self.start_at, self.text, self.go = chaos, name, start, text, go
        self.failure = None
        self.start()

    def run(self):
        time.sleep(self.start_at)
        self.chaos.say(f"begins: {self.text}")
        try:
            self.go(self.chaos)
            self.chaos.say(f"over: {self.text}")
        except Exception as error:  # noqa: BLE001 - told at the end of the round
            self.failure = f"{self.text}: {type(error).__name__}: {error}"
            self.chaos.say(f"failed: {self.failure}")
