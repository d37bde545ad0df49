# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows that are measured beside etcd, each as a function that gives lines for the table."""

import contextlib
import os
import queue
import signal
import threading
import time

import aspen_side
from aspen_cluster import alive, wait_for
from aspen_side import AspenCluster, node_pids, part_sizes
from etcd_side import EtcdCluster
from figures import median
from networks import Networks
from processes import STRANGERS_SHARE_MAX, cpu_seconds, disk_bytes, pss_bytes, undisturbed

# Where etcd's connections may go; what suits it best is tried out for each row.
LAYOUTS = ("each", "few", "leader")
LAYOUT_TEXTS = {"each": "a connection a client, over all nodes",
                "few": "8 at most, over all nodes", "leader": "8 at most, to the leader"}


class Settings:
    """How long, and how often."""
    rounds = 5
    seconds = 4.0


def log(text):
    print(f"  {text}", flush=True)


class Result:
    """Of one row: lines for the table, all turns, and what a reader must know."""

    def __init__(self):
        self.lines, self.turns, self.notes = [], [], []

    def line(self, name, unit, aspen, peer=None, peer_name="etcd", is_ratio=False):
        found = {"name": name, "unit": unit, "aspen": aspen, "is_ratio": is_ratio}
        if peer:
            found |= {"peer": peer, "peer_name": peer_name}
        self.lines.append(found)

    def note(self, text):
        self.notes.append(text)
        log(text)

    def turn(self, side, round_number, turn):
        self.turns.append({"side": side, "round": round_number, **turn})

    def of(self, side, figure):
        """Of every round that counts."""
        return [figure(turn) for turn in self.turns if turn["side"] == side and turn["round"] > 0]

    def tell_strangers(self):
        """Figures of a machine that others use are worth less: the reader is told how much."""
        shares = [100 * turn["strangers_share"] for turn in self.turns
                  if turn.get("round") and "strangers_share" in turn]
        if shares:
            again = sum(turn.get("tries", 1) - 1 for turn in self.turns)
            self.note(f"strangers took {median(shares):.0f} % of the processors "
                      f"({min(shares):.0f}..{max(shares):.0f} %) while this was measured; {again} turns "
                      f"were repeated because it was more than {100 * STRANGERS_SHARE_MAX:.0f} %")

    def json(self):
        return {"lines": self.lines, "notes": self.notes, "turns": self.turns}


def rate(turn):
    return turn["rate"]


def server_microseconds(turn):
    return 1e6 * turn["server_cpu_s"] / turn["count"]


def client_microseconds(turn):
    return 1e6 * turn["client_cpu_s"] / turn["count"]


# --- Loads, in turns ------------------------------------------------------------------------------

def best_layout(name, load, clients, result):
    """By the median rate of two short turns of each, in turns. `load` takes a number of requests and a
    layout."""
    if clients == 1:
        # One client has one connection; but to whom?
        candidates = ("each", "leader")
    else:
        candidates = LAYOUTS
    total, rates = 300 * min(clients, 16), {layout: [] for layout in candidates}
    load(total, "each")
    for _ in range(2):
        for layout in candidates:
            turn = load(total, layout)
            rates[layout].append(turn["rate"])
            total = max(100, int(turn["rate"] * 1.5))
    best = max(candidates, key=lambda layout: median(rates[layout]))
    result.note(f"{name}, clients {clients}: " + "; ".join(
        f"{LAYOUT_TEXTS[layout]}: {median(rates[layout]):.0f}/s" for layout in candidates)
        + f"; taken: {best}")
    return best, median(rates[best])


def in_turns(result, operation, clients, secure=True):
    """Rounds of etcd, Aspen by its socket, and, if `secure`, etcd with TLS and Aspen by QUIC."""
    aspen_operation, more, keys = {
        "put": ("put", (), 10_000), "get": ("get", ("--no-load",), 1),
        "range": ("scan", ("--no-load", "--limit", 1000), 1000)}[operation]
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(EtcdCluster())
        aspen = stack.enter_context(AspenCluster())
        encrypted = stack.enter_context(EtcdCluster(tls=True)) if secure else None
        if operation != "put":
            for cluster in filter(None, (plain, aspen, encrypted)):
                cluster.fill()
        def load_aspen(total, layout):
            return aspen.load(aspen_operation, clients, total, layout, keys=keys, more=more)

        sides = {}

        def add(name, load, layout, expected):
            sides[name] = (lambda total: load(total, layout), int(expected * Settings.seconds))
        for etcd in filter(None, (plain, encrypted)):
            def load_etcd(total, layout, etcd=etcd):
                return etcd.load(operation, clients, total, layout)
            add(etcd.name, load_etcd, *best_layout(etcd.name, load_etcd, clients, result))
            if etcd is plain:
                add("Aspen", load_aspen, *best_layout("Aspen", load_aspen, clients, result))
            else:
                add("Aspen QUIC", load_aspen, "quic",
                    load_aspen(200 * min(clients, 16), "quic")["rate"])
        for round_number in range(Settings.rounds + 1):
            for name, (load, total) in sides.items():
                turn = undisturbed(lambda load=load, total=total: load(max(total, 100)))
                result.turn(name, round_number, {"clients": clients, "operation": operation, **turn})
                log(f"round {round_number}, {name:10}: {turn['rate']:9.0f}/s, p50 "
                    f"{turn['p50_ms']:.2f} ms, p99 {turn['p99_ms']:.2f} ms, server CPU "
                    f"{server_microseconds(turn):.0f} µs, client {client_microseconds(turn):.0f} µs"
                    + ("" if round_number else " (to warm up)"))
    failed = sum(turn.get("failed", 0) for turn in result.turns)
    if failed:
        result.note(f"{failed} requests to etcd failed and are not counted")
    return [("Aspen", "etcd")] + ([("Aspen QUIC", "etcd TLS")] if secure else [])


def puts(clients):
    result = Result()
    for mine, other in in_turns(result, "put", clients):
        suffix = f", {clients} client{'s' * (clients > 1)}" + (", encrypted" if other == "etcd TLS" else "")
        for name, unit, figure in (
                ("puts/s", "1/s", rate), ("put p50", "ms", lambda t: t["p50_ms"]),
                ("put p99", "ms", lambda t: t["p99_ms"]),
                ("server CPU per put", "µs", server_microseconds),
                ("load generator's CPU per put", "µs", client_microseconds)):
            result.line(name + suffix, unit, result.of(mine, figure), result.of(other, figure), other)
    return result


def puts64():
    return puts(64)


def puts256():
    return puts(256)


def put1():
    return puts(1)


def gets64():
    result = Result()
    for mine, other in in_turns(result, "get", 64):
        suffix = ", 64 clients" + (", encrypted" if other == "etcd TLS" else "")
        for name, unit, figure in (
                ("linearizable gets/s", "1/s", rate), ("get p99", "ms", lambda t: t["p99_ms"]),
                ("server CPU per get", "µs", server_microseconds),
                ("load generator's CPU per get", "µs", client_microseconds)):
            result.line(name + suffix, unit, result.of(mine, figure), result.of(other, figure), other)
    return result


def ranges():
    result = Result()
    in_turns(result, "range", 16, secure=False)
    result.note("keys of 32 B, values of 256 B, all 1,000 in one answer; 16 clients; linearizable")
    for name, unit, figure in (
            ("ranges of 1,000 keys/s", "1/s", rate), ("range p99", "ms", lambda t: t["p99_ms"]),
            ("server CPU per range", "µs", server_microseconds),
            ("load generator's CPU per range", "µs", client_microseconds)):
        result.line(name, unit, result.of("Aspen", figure), result.of("etcd", figure))
    return result


# --- Sizes ----------------------------------------------------------------------------------------

def size():
    """Fresh clusters each round: what 100,000 puts leave."""
    result, count = Result(), 100_000
    result.note("100,000 puts of 32 + 256 B over 10,000 keys by 64 clients, fresh clusters each round; "
                "the mean of the three nodes; Aspen's node is its supervisor and its daemons; both keep "
                "history as they do by default")
    for round_number in range(1, Settings.rounds + 1):
        for name, make in (("etcd", EtcdCluster), ("Aspen", AspenCluster)):
            with make() as cluster:
                cluster.load("put", 64, count)
                of_nodes = [node_pids(node) if name == "Aspen" else node.pids()
                            for node in cluster.nodes]
                memory = sum(pss_bytes(pids) for pids in of_nodes) / 3
                disk = [disk_bytes(node.data) for node in cluster.nodes]
                turn = {"pss": memory, "allocated": sum(d[0] for d in disk) / 3,
                        "apparent": sum(d[1] for d in disk) / 3,
                        "parts": part_sizes(cluster.nodes[0].data)}
            result.turn(name, round_number, turn)
            log(f"round {round_number}, {name}: PSS {memory / 1e6:.0f} MB, allocated "
                f"{turn['allocated'] / 1e6:.0f} MB, apparent {turn['apparent'] / 1e6:.0f} MB")
    for title, key in (("PSS of a node", "pss"), ("disk of a node, allocated blocks", "allocated"),
                       ("disk of a node, apparent size", "apparent")):
        def figure(turn, key=key):
            return turn[key] / 1e6
        result.line(f"{title}, after 100,000 puts", "MB", result.of("Aspen", figure),
                    result.of("etcd", figure))
    return result


def idle():
    result, seconds = Result(), 20
    with EtcdCluster() as etcd, AspenCluster() as aspen:
        for cluster in (etcd, aspen):
            cluster.load("put", 64, 20_000)
        time.sleep(10)
        sides = {"etcd": etcd.pids(), "Aspen": aspen.pids()}
        for round_number in range(1, Settings.rounds + 1):
            before = {name: cpu_seconds(pids) for name, pids in sides.items()}
            time.sleep(seconds)
            for name, pids in sides.items():
                share = 100 * (cpu_seconds(pids) - before[name]) / seconds
                result.turn(name, round_number, {"percent": share})
                log(f"round {round_number}, {name}: {share:.2f} % of a core")
    result.note("both clusters rest at the same time, 10 s after 20,000 puts; 20 s a round; defaults")
    result.line("idle CPU of three nodes", "% of a core", result.of("Aspen", lambda t: t["percent"]),
                result.of("etcd", lambda t: t["percent"]))
    return result


# --- Leaders that go ------------------------------------------------------------------------------

def first_write(attempts, every=0.02, limit=60):
    """Seconds until any write is acknowledged. A new attempt, by whom is next, begins every so often: no
    side's clients are slow to try again.

    Raises TimeoutError after `limit` seconds."""
    acknowledged, started = queue.SimpleQueue(), time.monotonic()

    def attempt(write):
        try:
            write()
            acknowledged.put(time.monotonic() - started)
        except Exception:  # noqa: BLE001 - refused, broken off, half an answer: the next one is on its way
            pass
    number = 0
    while time.monotonic() - started < limit:
        threading.Thread(target=attempt, args=[attempts[number % len(attempts)]], daemon=True).start()
        number += 1
        try:
            return acknowledged.get(timeout=every)
        except queue.Empty:
            pass
    raise TimeoutError(f"no write in {limit} s")


def writes(cluster, nodes):
    """Of a small key, through each of the nodes, by a new connection."""
    if isinstance(cluster, EtcdCluster):
        return [lambda node=node: node.put(b"first", b"x") for node in nodes]
    return [lambda node=node: aspen_side.put(node.socket, "first", "x") for node in nodes]


def everyone_in_step(cluster):
    if isinstance(cluster, EtcdCluster):
        return cluster.wait_until_ready()
    return wait_for("all members in step", lambda: (
        lambda done: done.code == 0 and all(
            member.get("lag") == 0 and member.get("reachable") for member in done.json()["nodes"]))(
                cluster.nodes[0].cli("cluster", "status", "-o", "json", timeout_ms=3000)), 60,
        every=0.1)


def leader_of(cluster):
    return cluster.leader() if isinstance(cluster, EtcdCluster) else cluster.leading()


def kill():
    """Every process of the leader's node at once, as when a machine goes; and, of Aspen, the daemon that
    leads alone, since its node outlives it."""
    result = Result()
    with EtcdCluster() as etcd, AspenCluster() as aspen:
        for round_number in range(1, Settings.rounds + 1):
            for name, cluster in (("etcd", etcd), ("Aspen", aspen), ("Aspen daemon", aspen)):
                everyone_in_step(cluster)
                leader = leader_of(cluster)
                rest = [node for node in cluster.nodes if node is not leader]
                if name == "etcd":
                    leader.process.kill()
                elif name == "Aspen":
                    kill_at_once(node_pids(leader))
                else:
                    leader.kill_daemon("raft")
                took = first_write(writes(cluster, rest))
                result.turn(name, round_number, {"seconds": took})
                log(f"round {round_number}, {name}: {took:.2f} s")
                if name != "Aspen daemon":
                    leader.process.wait()
                    leader.start()
    result.note("each with its default timeouts: etcd 100 ms heartbeat, 1 s election; Aspen 500 ms, "
                "1.5-3 s; a new attempt through a survivor every 20 ms")
    etcd_times = result.of("etcd", lambda t: t["seconds"])
    result.line("first write after kill -9 of the leader's node", "s",
                result.of("Aspen", lambda t: t["seconds"]), etcd_times)
    result.line("first write after kill -9 of the leading daemon", "s",
                result.of("Aspen daemon", lambda t: t["seconds"]), etcd_times)
    return result


def kill_at_once(pids):
    """As a machine that loses its power would: nobody says a last word."""
    # Held first, all of them: the last word of a daemon whose sibling is gone already would be heard.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    wait_for("the processes to be gone", lambda: not any(map(alive, pids)))


def vanish():
    """The leader's packets are dropped on the bridge: no reset, no unreachable, no lost carrier."""
    result = Result()
    if os.geteuid() != 0:
        result.note("not measured: network namespaces need root")
        return result
    options = ["--heartbeat-interval", "100", "--election-timeout", "1000"]
    settings = {"ASPEN_HEARTBEAT_INTERVAL_MS": "100", "ASPEN_ELECTION_TIMEOUT_MIN_MS": "1000",
                "ASPEN_ELECTION_TIMEOUT_MAX_MS": "2000"}
    result.note("both: heartbeat 100 ms, election timeout 1-2 s (etcd draws from one to two times its "
                "--election-timeout=1000; Aspen's raft.election_timeout_min_ms=1000, _max_ms=2000); a "
                "new attempt through a survivor every 20 ms")
    with Networks(6) as networks, \
            EtcdCluster(options=options, places=[networks.place(n) for n in (1, 2, 3)]) as etcd, \
            AspenCluster(settings, places=[networks.place(n) for n in (4, 5, 6)]) as aspen:
        for round_number in range(1, Settings.rounds + 1):
            for name, cluster, first in (("etcd", etcd, 0), ("Aspen", aspen, 3)):
                everyone_in_step(cluster)
                leader = leader_of(cluster)
                rest = [node for node in cluster.nodes if node is not leader]
                networks.cut(first + leader.number)
                took = first_write(writes(cluster, rest))
                networks.mend(first + leader.number)
                result.turn(name, round_number, {"seconds": took})
                log(f"round {round_number}, {name}: {took:.2f} s")
    result.line("first write after the leader's packets vanish", "s",
                result.of("Aspen", lambda t: t["seconds"]), result.of("etcd", lambda t: t["seconds"]))
    return result


ROWS = {function.__name__: function for function in (
    puts64, puts256, put1, gets64, ranges, size, idle, kill, vanish)}
