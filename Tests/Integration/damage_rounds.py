# SPDX-License-Identifier: GPL-2.0-or-later
"""Bits flip in the files of one node of three, under load. What must hold, in every round:

   - no read through any node, linearizable or stale, ever shows what was never written, or a state
     that never was (two keys are always written together), or less than was acknowledged (if it is
     linearizable);
   - the node's daemon starts a handful of times at most;
   - afterwards the node is a voter like before, with the state of the others: by itself, or after
     what its own message says is to be done.
"""

import os
import random
import re
import shutil
import signal
import struct
import subprocess
import threading
import time

from aspen_cluster import Cluster, alive, wait_for
from python_client import Client, parse

PAIRS = 120
# A daemon that is started more often than this for one damage is in a loop.
STARTS_MAX = 5
# Seconds after which a node counts as not repaired. A bound, not a measure: it takes tens to hundreds
# of milliseconds.
REPAIRED_WITHIN = 60.0
# Small file systems make small segments and WALs: much happens in little time.
DISK_BYTES = 64 << 20

UNDAMAGED, REPAIRED, NAMED = "unaffected", "repaired", "named"


class Violation(AssertionError):
    pass


def require(condition, text):
    if not condition:
        raise Violation(text)


def value_of(pair, version):
    """The version, then a filling that belongs to pair and version; some need pages of their own."""
    count = 9000 if version % 41 == 0 else 30 + version * 7 % 500
    return f"{version}:".encode() + struct.pack("<II", pair, version) * (count // 8)


class Ledger:
    """What was written, and what was acknowledged of it."""

    def __init__(self):
        self.acknowledged = [0] * PAIRS
        self.attempted = [0] * PAIRS

    def check(self, entries, floor, who):
        """`entries` of one revision against what was acknowledged before the read began (`floor`;
        None: anything older will do)."""
        found = {}
        for key, value in entries.items():
            side, pair = key.split(b"/")[1:]
            pair, version = int(pair), int(value[:value.find(b":")] or -1)
            require(0 < version <= self.attempted[pair],
                    f"{who}: {key} has version {version}, {self.attempted[pair]} was the last")
            require(value == value_of(pair, version),
                    f"{who}: {key} is not what version {version} was")
            found.setdefault(pair, {})[side] = version
        for pair, sides in found.items():
            require(sides.get(b"l") == sides.get(b"r"),
                    f"{who}: pair {pair} was torn: {sides}, acknowledged "
                    f"{self.acknowledged[pair]}")
        for pair, least in enumerate(floor or ()):
            there = found.get(pair, {}).get(b"l", 0)
            require(there >= least,
                    f"{who}: pair {pair} has version {there}, {least} was acknowledged")


class Connection:
    """One client of one node, that connects again after any trouble."""

    def __init__(self, node, seconds=5.0):
        self.node, self.seconds, self.client = node, seconds, None

    def ask(self, *request):
        """The answer's fields; OSError when there was none, RuntimeError(code, message) for an error."""
        try:
            if self.client is None:
                self.client = Client(self.node.socket)
                self.client.socket.settimeout(self.seconds)
            return self.client.ask(*request)
        except (OSError, struct.error) as error:
            self.close()
            raise OSError(f"no answer from node {self.node.number}: {error}") from error

    def close(self):
        if self.client is not None:
            self.client.socket.close()
            self.client.file.close()
            self.client = None

    def scan(self, stale):
        answer = self.ask(21, (1, "d/"), (4, 1 if stale else 0))
        require(answer.get(2, [b""]) == [b""], "the pairs fit in one page")
        fields = [parse(entry) for entry in answer.get(1, [])]
        return {entry[1][0]: entry.get(2, [b""])[0] for entry in fields}

    def info(self):
        """(applied, state hash, is a voter)"""
        answer = self.ask(13)
        node = parse(answer[1][0])
        return node.get(4, [0])[0], answer.get(7, [0])[0], node.get(10, [0])[0] == 1

    def leads(self):
        return parse(self.ask(13)[1][0])[2] == [b"leader"]

    def fill(self, number):
        """A large value that nobody looks at: it makes segments, commits and checkpoints."""
        self.ask(18, (1, f"f/{number % 20}"), (2, struct.pack("<Q", number) * 8000))

    def write(self, pair, version):
        operations = [(2, ((1, ((1, f"d/{side}/{pair}"), (2, value_of(pair, version)))),))
                      for side in "lr"]
        self.ask(25, *operations)


class Load(threading.Thread):
    """Writes its own pairs over and over, through any node but the one that is being damaged."""

    def __init__(self, fuzz, number, of):
        super().__init__(daemon=True)
        self.fuzz, self.pairs = fuzz, range(number, PAIRS, of)
        self.choose = random.Random(fuzz.seed * 100 + number)
        self.connections = [Connection(node) for node in fuzz.cluster.nodes]
        self.writes = 0
        self.failure = None

    def run(self):
        try:
            while not self.fuzz.is_over:
                self.fuzz.is_loading.wait()
                for pair in self.pairs:
                    if not self.fuzz.is_loading.is_set():
                        break
                    with self.fuzz.gate(self):
                        self.write(pair)
        except BaseException as error:  # noqa: BLE001 - raised again by the rounds
            self.failure = error

    def write(self, pair):
        ledger = self.fuzz.ledger
        ledger.attempted[pair] += 1
        version = ledger.attempted[pair]
        others = [c for c in self.connections if c.node is not self.fuzz.victim]
        try:
            self.choose.choice(others).write(pair, version)
            ledger.acknowledged[pair] = version
            self.writes += 1
            if self.writes % 3 == 0:
                self.choose.choice(others).fill(self.writes)
        except (OSError, RuntimeError):
            # Perhaps it was written, perhaps not: both are in order.
            time.sleep(0.02)


class Fuzz:
    """`with Fuzz(seed) as fuzz: fuzz.round()`, many times over on one cluster."""

    LOADS = 3

    def __init__(self, seed):
        self.seed = seed
        self.choose = random.Random(seed)
        os.environ["ASPEN_LOG_TAIL_ENTRIES"] = "300"
        os.environ["ASPEN_HISTORY_REVISIONS"] = "1000"
        os.environ["ASPEN_HISTORY_BYTES_MAX"] = "2000000"
        self.cluster = Cluster(3)
        self.ledger = Ledger()
        self.victim = None
        self.is_over = False
        self.is_loading = threading.Event()
        self.gates = {}
        self.mounted = []
        self.rounds = 0
        # (kind of file, outcome) -> [seconds]
        self.outcomes = {}
        self.starts_most = 0

    def __enter__(self):
        try:
            if os.geteuid() == 0:
                for node in self.cluster.nodes:
                    self.mount(node)
            self.cluster.__enter__()
        except BaseException:
            self.unmount()
            raise
        self.loads = [Load(self, number, self.LOADS) for number in range(self.LOADS)]
        self.gates = {load: threading.Lock() for load in self.loads}
        self.readers = {node: Connection(node) for node in self.cluster.nodes}
        for load in self.loads:
            load.start()
        self.is_loading.set()
        # Long enough for checkpoints, and a log that no longer begins with its first entry.
        wait_for("the first load", lambda: sum(self.ledger.attempted) > 3 * PAIRS, 120)
        return self

    def __exit__(self, kind, value, trace):
        self.is_over = True
        self.is_loading.set()
        for connection in self.readers.values():
            connection.close()
        if kind is not None:
            for node in self.cluster.nodes:
                print(f"--- log of node {node.number}\n{node.log()[-5000:]}")
        for load in self.loads:
            load.join(20)
        for node in self.cluster.nodes:
            if node.process and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.kill_all()
        self.unmount()
        self.cluster.__exit__(None, None, None)

    def mount(self, node):
        """Its key is there already."""
        key = node.data + "-net"
        shutil.copytree(os.path.join(node.data, "net"), key)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", node.data]
        if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
            # It will do without: less happens in the same time then.
            return shutil.rmtree(key)
        self.mounted.append(node)
        shutil.move(key, os.path.join(node.data, "net"))

    def unmount(self):
        for node in self.mounted:
            subprocess.run(["umount", "-l", node.data], check=False)
        self.mounted = []

    def gate(self, load):
        return self.gates[load]

    # ---- one round ----

    def round(self, kind=None, flips=None, how=None):
        """Damages one node and sees it repaired. `kind`: of the file; None: any. `flips`: how many bits;
        None: mostly one. `how`: the daemon goes down for it; None: somehow, or not at all."""
        self.rounds += 1
        victim = self.victim = self.choose.choice(self.cluster.nodes)
        how = how or self.choose.choices(
            ["kill", "term", "node", "running"], [5, 2, 1, 2])[0]
        if kind is None:
            kind = self.choose.choices([None, "wal", "incoming", "spool"], [16, 4, 1, 1])[0]
        if kind in ("wal", "incoming", "spool"):
            how = kind
        if self.choose.random() < 0.5 or how in ("incoming", "spool"):
            # The log is cut behind a checkpoint: what is lost of the state must come from others.
            self.quietly(lambda: self.readers[victim].ask(26))
        time.sleep(self.choose.uniform(0.02, 0.3))
        self.mark = os.path.getsize(victim.log_path)
        began = time.monotonic()
        self.flips = flips
        damage = self.inflict(victim, how, kind)
        if damage is None:
            outcome = UNDAMAGED
        else:
            outcome = self.watch(victim, f"round {self.rounds}, node {victim.number}, {how}, "
                                         f"{damage.text}")
            self.outcomes.setdefault((damage.kind, outcome), []).append(time.monotonic() - began)
            damage.undo()
        self.victim = None
        for load in self.loads:
            if load.failure:
                raise load.failure
        return outcome

    def inflict(self, victim, how, kind):
        """Stops the node's daemon in some way, flips bits, lets it start again."""
        if how == "running":
            return Damage.choose(self, victim, kind)
        if how == "wal":
            return self.ambush(victim)
        if how in ("incoming", "spool"):
            return self.spoil_snapshot(victim, how)
        if how == "node":
            victim.kill_all()
            damage = Damage.choose(self, victim, kind)
            self.launch(victim)
            return damage
        return self.while_down(victim, how, lambda: Damage.choose(self, victim, kind))

    @staticmethod
    def while_down(victim, how, body):
        """Stops the daemon and lets it start again only after `body`."""
        pid = wait_for("aspend-raft", lambda: victim.daemon("raft"))
        victim.process.send_signal(signal.SIGSTOP)
        try:
            os.kill(pid, signal.SIGTERM if how == "term" else signal.SIGKILL)
            wait_for("aspend-raft to be gone", lambda: not alive(pid))
            return body()
        finally:
            victim.process.send_signal(signal.SIGCONT)

    def ambush(self, victim):
        """The WAL is empty most of the time: killed at a moment when it is not, which is in the middle
        of a commit or of a checkpoint."""
        wal = os.path.join(victim.data, "raft", "state", "state.db-wal")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                if os.path.getsize(wal) == 0:
                    continue
            except OSError:
                continue
            found = self.while_down(
                victim, "kill", lambda: Damage.choose(self, victim, "wal"))
            if found:
                return found
        return None

    def spoil_snapshot(self, victim, kind):
        """Its state is lost and its log is cut: the leader fills it. Bits flip in what comes in, or in
        what the leader has spooled to send."""
        state = os.path.join(victim.data, "raft", "state", "state.db")
        self.while_down(victim, "kill", lambda: os.truncate(state, 5000))
        leader = next((node for node in self.cluster.nodes
                       if self.quietly(self.readers[node].leads)), victim)
        pid = leader.daemon("raft")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            path = state + ".incoming" if kind == "incoming" else self.spool(pid)
            try:
                if path and os.stat(path).st_size > 20_000:
                    damage = Damage(kind, path)
                    damage.flip(self.choose)
                    return damage
            except OSError:
                continue
        # There was enough in the log.
        return Damage("database", state)

    @staticmethod
    def spool(pid):
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except OSError:
            # Nobody led when it was asked for, or whoever did has gone.
            return None
        for name in names:
            try:
                # A snapshot on its way has no name.
                if os.readlink(os.path.join(directory, name)).endswith(" (deleted)"):
                    return os.path.join(directory, name)
            except OSError:
                continue
        return None

    @staticmethod
    def launch(victim):
        """As Node.start, but it need not come up."""
        try:
            victim.start()
        except AssertionError:
            pass

    def watch(self, victim, what):
        """Reads everything through the node until it is as good as before."""
        reader = self.readers[victim]
        end = time.monotonic() + REPAIRED_WITHIN
        last = None
        while True:
            starts = self.told(victim).count("starting it again")
            require(starts <= STARTS_MAX, f"{what}: {starts} starts\n{self.told(victim)[-3000:]}")
            if self.is_named(victim):
                self.rebuild(victim)
                self.settle(victim, what)
                return NAMED
            if time.monotonic() > end:
                raise Violation(f"{what}: not repaired, last: {last}\n{self.told(victim)[-3000:]}")
            try:
                self.ledger.check(reader.scan(stale=True), None, f"{what}, stale")
                floor = list(self.ledger.acknowledged)
                self.ledger.check(reader.scan(stale=False), floor, f"{what}, linearizable")
                break
            except (OSError, RuntimeError) as error:
                last = error
                time.sleep(0.01)
        self.settle(victim, what)
        self.starts_most = max(self.starts_most, self.told(victim).count("starting it again"))
        told = self.told(victim)
        return REPAIRED if "damage" in told or "set-aside" in told else UNDAMAGED

    def settle(self, victim, what):
        """The node acknowledges, and its state is that of the others."""
        others = [node for node in self.cluster.nodes if node is not victim]
        self.pause()
        wait_for(f"the same state; {what}", lambda: self.quietly(
            lambda: len({self.readers[node].info() for node in self.cluster.nodes}) == 1
            and self.readers[victim].info()[2]), REPAIRED_WITHIN)
        # With one of the others asleep nothing is acknowledged without the victim. Not the leader: to
        # hold an election takes longer than all the rest.
        others.sort(key=lambda node: self.quietly(self.readers[node].leads) is True)
        asleep, witness = others
        pid = wait_for("aspend-raft", lambda: asleep.daemon("raft"))
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_for(f"its vote to count; {what}", lambda: self.quietly(
                lambda: self.probe(witness)), REPAIRED_WITHIN)
        finally:
            os.kill(pid, signal.SIGCONT)
        floor = list(self.ledger.acknowledged)
        for node in self.cluster.nodes:
            entries = wait_for(f"node {node.number} to answer", lambda: self.quietly(
                lambda: self.readers[node].scan(stale=False)), REPAIRED_WITHIN)
            self.ledger.check(entries, floor, f"{what}, then node {node.number}")
        self.resume()

    def probe(self, node):
        pair = self.choose.randrange(PAIRS)
        self.ledger.attempted[pair] += 1
        version = self.ledger.attempted[pair]
        self.readers[node].write(pair, version)
        self.ledger.acknowledged[pair] = version
        return True

    def pause(self):
        self.is_loading.clear()
        for gate in self.gates.values():
            gate.acquire()

    def resume(self):
        for gate in self.gates.values():
            gate.release()
        self.is_loading.set()

    @staticmethod
    def quietly(body):
        try:
            return body()
        except (OSError, RuntimeError):
            return None

    def told(self, victim):
        """What the node has logged in this round."""
        with open(victim.log_path, errors="replace") as f:
            f.seek(self.mark)
            return f.read()

    # ---- a person does what the node says ----

    def is_named(self, victim):
        return victim.process.poll() is not None and "Rebuild it:" in self.told(victim)

    def rebuild(self, victim):
        """Word for word."""
        told = self.told(victim)
        line = told[told.rindex("Rebuild it:"):].splitlines()[0]
        commands = re.findall(r"`([^`]+)`", line)
        remove, wipe, add, promote = commands
        other = next(node for node in self.cluster.nodes if node is not victim)
        other.cli(*remove.split()[1:], check=0)
        assert wipe == f"rm -r {os.path.join(victim.data, 'raft')}/*", wipe
        subprocess.run(["sh", "-c", wipe], check=True)
        victim.start()
        other.cli(*add.split()[1:], check=0)
        other.cli(*promote.split()[1:], timeout_ms=30000, check=0)

    def summary(self):
        lines = []
        for (kind, outcome), seconds in sorted(self.outcomes.items()):
            lines.append(f"  {kind:12} {outcome:10} {len(seconds):5} ×, at most "
                         f"{max(seconds):.2f} s")
        writes = sum(load.writes for load in self.loads)
        return "\n".join([f"seed {self.seed}: {self.rounds} rounds, {writes} writes acknowledged, "
                          f"at most {self.starts_most} starts for one damage"] + lines)


class Damage:
    """Bits flipped in one file."""

    KINDS = {
        "log-": "log", "spare-": "log-spare", "new-": "log-spare", "damaged-": "log-damaged",
        "state.db-wal": "wal", "state.db.incoming": "incoming", "state.db.set-aside": "set-aside",
        "state.db": "database", "replica": "replica", "reserve": "reserve", "events": "events",
        "LOCK": "lock", "state.damaged": "note", "identity.key": "key",
    }

    @classmethod
    def files(cls, node):
        """kind -> paths, of all that is there."""
        found = {}
        for directory, _, names in os.walk(os.path.join(node.data, "raft")):
            for name in names:
                path = os.path.join(directory, name)
                if not os.path.isfile(path) or os.path.getsize(path) == 0:
                    continue
                kind = next((cls.KINDS[p] for p in cls.KINDS if name.startswith(p)), name)
                found.setdefault(kind, []).append(path)
        return found

    @classmethod
    def choose(cls, fuzz, node, kind):
        choose, found = fuzz.choose, cls.files(node)
        weights = {"log": 5, "database": 5, "wal": 5}
        kinds = sorted(found) if kind is None else [kind]
        kind = choose.choices(kinds, [weights.get(k, 1) for k in kinds])[0]
        if kind not in found:
            return None
        damage = cls(kind, choose.choice(sorted(found[kind])))
        try:
            damage.flip(choose, fuzz.flips)
        except FileNotFoundError:
            return None
        return damage

    def __init__(self, kind, path):
        self.kind, self.path, self.flips, self.wrong, self.inode = kind, path, [], {}, None

    @property
    def text(self):
        return f"{self.kind}: {os.path.basename(self.path)} at " + ", ".join(
            f"{place}^{mask:#x}" for place, mask in sorted(self.flips)[:8])

    def places(self, choose, descriptor, size, flips):
        """Where the file says something, mostly."""
        content = os.pread(descriptor, size, 0)
        end = max(len(content.rstrip(b"\0")), 1)
        how = choose.choices(["used", "tail", "head", "any"], [6, 3, 2, 1])[0]
        low, high = {"used": (0, end), "tail": (max(0, end - 3000), end),
                     "head": (0, min(4096, size)), "any": (0, size)}[how]
        count = flips or choose.choices([1, 2, 8], [8, 1, 1])[0]
        return {choose.randrange(low, max(low + 1, high)) for _ in range(count)}

    def flip(self, choose, flips=None):
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            self.inode = os.fstat(descriptor).st_ino
            size = os.fstat(descriptor).st_size
            for place in self.places(choose, descriptor, size, flips) if size else ():
                byte = os.pread(descriptor, 1, place)
                mask = 1 << choose.randrange(8)
                if byte:
                    os.pwrite(descriptor, bytes([byte[0] ^ mask]), place)
                    self.flips.append((place, mask))
                    self.wrong[place] = byte[0] ^ mask
        finally:
            os.close(descriptor)

    def names(self):
        """Where it may be by now: segments of the log change their names."""
        yield self.path
        directory = os.path.dirname(self.path)
        for name in os.listdir(directory) if os.path.isdir(directory) else ():
            yield os.path.join(directory, name)

    def is_it(self, path):
        try:
            return os.stat(path).st_ino == self.inode
        except FileNotFoundError:
            return False

    def undo(self):
        """What nobody has noticed does not add up to damage of two nodes in a later round."""
        path = next((p for p in self.names() if self.is_it(p)), None)
        if path is None:
            return
        descriptor = os.open(path, os.O_RDWR)
        try:
            for place, mask in self.flips:
                byte = os.pread(descriptor, 1, place)
                if byte and byte[0] == self.wrong[place]:
                    os.pwrite(descriptor, bytes([byte[0] ^ mask]), place)
        finally:
            os.close(descriptor)
