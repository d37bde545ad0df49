# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that write down all they do and are told, for `aspen-sim judge`.

A write under a session is sent again, to one node after another, under its number until it is answered;
one without is given up at the first doubt. What was refused must never show; what nobody knows may."""

import collections
import itertools
import json
import random
import socket
import struct
import threading
import time

from python_client import Client, message, parse

WRITE, READ, DELETE, OPEN_SESSION, TRANSACTION, BATCH_READ = 18, 19, 20, 22, 25, 34
SAFE, WITH_SESSION = 1, 2
SESSION_EXPIRED, UNKNOWN_OUTCOME, INTERNAL = 9, 16, 17
# What a node gets for an answer, and what it may be late, before another one is asked.
REQUEST_SECONDS = 1.5
LATE_SECONDS = 1.5
# After this an operation counts as one that nobody knows the outcome of.
OPERATION_SECONDS = 20.0
KEYS_A_ROUND = 4


class Refusal(Exception):
    def __init__(self, code, text, retry):
        super().__init__(f"{code}: {text}")
        self.code, self.retry = code, retry


class NotSent(Exception):
    pass


class Connection(Client):
    """A connection to a node that may be gone, or hold still."""

    def __init__(self, node):  # pylint: disable=super-init-not-called
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(REQUEST_SECONDS + LATE_SECONDS)
        try:
            self.socket.connect(node.socket)
        except OSError as error:
            self.socket.close()
            raise NotSent(str(error)) from error
        self.file, self.id = self.socket.makefile("rb"), 0

    def post(self, request, *fields):
        self.id += 1
        body = struct.pack("<Q", self.id) + message(
            (1, int(REQUEST_SECONDS * 1000)), (request, fields))
        self.socket.sendall(struct.pack("<I", len(body)) + body)

    def answer(self):
        """Raises Refusal, or OSError when there is none."""
        head = self.file.read(4)
        body = self.file.read(struct.unpack("<I", head)[0]) if len(head) == 4 else b""
        if len(body) < 8:
            raise OSError("the connection ended")
        fields = parse(body[8:])
        if 1 in fields:
            error = parse(fields[1][0])
            raise Refusal(error[1][0], error.get(2, [b""])[0].decode(), error.get(3, [0])[0])
        return parse(*next(iter(fields.values())))

    def close(self):
        self.file.close()
        self.socket.close()


class History:
    """One line an operation."""

    def __init__(self, path):
        self.path, self.file = path, open(path, "w", encoding="utf-8")
        self.lock, self.values = threading.Lock(), itertools.count(1)
        self.counts, self.refusals = collections.Counter(), collections.Counter()
        self.keys, self.round = 0, 0
        # By key: what was seen last, for a compare that has a chance.
        self.seen = {}
        self.new_round()

    def new_round(self):
        """Other keys from now on: the fewer operations a key has, the easier its history is judged."""
        self.keys += KEYS_A_ROUND

    def add(self, line, outcome):
        if outcome == "refused":
            line["refused"] = True
        with self.lock:
            self.counts[line["op"], outcome] += 1
            # A read that was not answered says nothing.
            if line["op"] != "get" or outcome == "ok":
                self.file.write(json.dumps(line) + "\n")

    def succeeded(self):
        return sum(n for (_, outcome), n in self.counts.items() if outcome == "ok")

    def close(self):
        self.file.close()


class Session:
    def __init__(self, number):
        self.number, self.request = number, 0


class Caller:
    """One client: one operation after the other."""

    def __init__(self, number, nodes, history, seed):
        self.number, self.nodes, self.history = number, nodes, history
        self.choose = random.Random(f"{seed}/{number}")
        self.node = self.choose.choice(nodes)
        self.connection, self.session = None, None
        # How many of its writes go without a session.
        self.bare = 0.05

    # What clients do

    def draw(self):
        """An operation as a line, without times."""
        key = self.history.keys - 1 - self.choose.randrange(KEYS_A_ROUND)
        if self.choose.random() < 0.1:
            key = self.choose.randrange(self.history.keys)
        line = {"client": self.number, "key": key,
                "op": self.choose.choices(["get", "put", "cas", "delete"], [40, 30, 20, 10])[0]}
        if line["op"] in ("put", "cas"):
            line["value"] = next(self.history.values)
        if line["op"] == "cas":
            expected = self.history.seen.get(key)
            if expected is not None:
                line["expected"] = expected
        return line

    @staticmethod
    def request(line, session=()):
        """What `ask` takes; `session`: one SessionRequest, or none."""
        key, value = f"chaos/{line['key']}", str(line.get("value"))
        if line["op"] == "get":
            return READ, (1, key)
        if line["op"] == "put":
            return WRITE, (1, key), (2, value), *((3, s) for s in session)
        if line["op"] == "delete":
            return DELETE, (1, key), *((2, s) for s in session)
        target = (3, str(line["expected"])) if "expected" in line else (7, 0)
        return (TRANSACTION, (1, ((1, key), target)), (2, ((1, ((1, key), (2, value))),)),
                *((4, s) for s in session))

    def note(self, line, answer):
        """Adds what was told."""
        def number(field):
            return answer.get(field, [0])[0]
        op = line["op"]
        line["revision"] = number(2 if op in ("get", "delete", "cas") else 1)
        if op == "get":
            entry = parse(answer[1][0]) if 1 in answer else {}
            line["version"] = entry.get(5, [0])[0]
            if entry:
                line["result"] = int(entry[2][0])
            self.history.seen[line["key"]] = line.get("result")
        elif op == "put":
            line["version"] = number(3)
            self.history.seen[line["key"]] = line["value"]
        else:
            line["result"] = number(1) == 1
            if line["result"]:
                self.history.seen[line["key"]] = line.get("value")

    # How they do it

    def perform(self, line, until=None, stay=False, gives_up=False):
        """One operation to its end, in the history. `stay`: only this node is asked; `gives_up`: a
        refusal is taken for an answer. Returns "ok", "refused" or "unknown"."""
        until = until or time.monotonic() + OPERATION_SECONDS
        is_write = line["op"] != "get"
        under, session = (), None
        if is_write and self.choose.random() >= self.bare:
            session = self.opened(until, stay)
            if session is None:
                self.history.counts["session", "unknown"] += 1
                return "unknown"
            session.request += 1
            under = (((1, session.number), (2, session.request), (3, session.request)),)
        line["begin"] = time.monotonic_ns()
        outcome = self.attempts(line, self.request(line, under), session, until, stay, gives_up)
        if outcome != "unknown":
            line["end"] = time.monotonic_ns()
        self.history.add(line, outcome)
        return outcome

    def attempts(self, line, request, session, until, stay, gives_up):
        is_doubtful, is_write = False, line["op"] != "get"
        while True:
            try:
                self.note(line, self.ask(*request))
                return "ok"
            except NotSent:
                pass
            except OSError:
                is_doubtful = is_write
            except Refusal as refusal:
                self.history.refusals[refusal.code, refusal.retry] += 1
                if refusal.retry == WITH_SESSION or refusal.code in (UNKNOWN_OUTCOME, INTERNAL):
                    is_doubtful = is_write
                if refusal.code == SESSION_EXPIRED:
                    self.session = None
                    return "unknown" if is_doubtful else "refused"
                if gives_up and not is_doubtful:
                    return "refused"
            if is_doubtful and session is None:
                return "unknown"
            if time.monotonic() > until:
                return "unknown" if is_doubtful or not is_write else "refused"
            self.move(stay)

    def read_together(self, keys, until):
        """Several keys at one revision, through this node alone. Whether there was an answer."""
        while time.monotonic() < until:
            begin = time.monotonic_ns()
            try:
                answer = self.ask(BATCH_READ, *((1, f"chaos/{key}") for key in keys))
            except (NotSent, OSError, Refusal):
                self.move(stay=True)
                continue
            end = time.monotonic_ns()
            for key, found in zip(keys, answer[1], strict=True):
                line = {"client": self.number, "key": key, "op": "get", "begin": begin, "end": end}
                self.note(line, {**parse(found), 2: answer[2]})
                self.history.add(line, "ok")
            return True
        return False

    def opened(self, until, stay):
        """A session nobody knows of is left to expire."""
        while self.session is None and time.monotonic() < until:
            try:
                self.session = Session(self.ask(OPEN_SESSION)[1][0])
            except (NotSent, OSError, Refusal):
                self.move(stay)
        return self.session

    def ask(self, request, *fields):
        if self.connection is None:
            self.connection = Connection(self.node)
        try:
            self.connection.post(request, *fields)
            return self.connection.answer()
        except OSError:
            self.drop()
            raise

    def drop(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def move(self, stay):
        time.sleep(self.choose.uniform(0.02, 0.2))
        if not stay:
            self.go_to(self.choose.choice(self.nodes))

    def go_to(self, node):
        if node is not self.node:
            self.drop()
            self.node = node


class Clients:
    """Callers in threads of their own, until `stop`."""

    def __init__(self, count, nodes, history, seed, pause):
        self.stopping, self.pause, self.failures = threading.Event(), pause, []
        self.threads = [
            threading.Thread(target=self.run, args=(Caller(n, nodes, history, seed),), daemon=True)
            for n in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, caller):
        try:
            while not self.stopping.wait(caller.choose.uniform(0, 2 * self.pause)):
                if caller.choose.random() < 0.1:
                    caller.go_to(caller.choose.choice(caller.nodes))
                line = caller.draw()
                if line["op"] != "get" and caller.choose.random() < 0.01:
                    self.vanish(caller, line)
                else:
                    caller.perform(line, gives_up=caller.choose.random() < 0.5)
        except Exception as error:  # noqa: BLE001 - told at the end
            self.failures.append(f"client {caller.number}: {type(error).__name__}: {error}")
        caller.drop()

    @staticmethod
    def vanish(caller, line):
        """Sends, and does not wait."""
        line["begin"] = time.monotonic_ns()
        try:
            connection = caller.connection or Connection(caller.node)
            caller.connection = connection
            connection.post(*caller.request(line))
        except (NotSent, OSError):
            pass
        caller.drop()
        caller.history.add(line, "unknown")

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=60)
        if any(thread.is_alive() for thread in self.threads):
            self.failures.append("a client did not end")
        return self.failures
