# SPDX-License-Identifier: GPL-2.0-or-later
"""Promises about size, as functions; `prove` runs them, whole or scaled down."""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import test_life
from aspen_cluster import Cluster, alive, bin_dir, wait_for
from proving import (WATCH, Load, Sampler, bench, check, disk_bytes, in_step, join, latencies, member,
                     metric, newcomer, percentile, resident, same_state, spread)
from python_client import Client

SCALE = 1.0


def scaled(count, least=1):
    return max(least, int(count * SCALE))


def timely(condition, text):
    """A promise about time: of the whole size alone, where the programs are release builds."""
    if SCALE >= 1:
        check(condition, text)


def say(text):
    print(f"  {text}", flush=True)


def three_nodes(spares=0):
    """Small proofs keep a small log: it is soon too short for whoever is behind."""
    return Cluster(3, spares=spares, settings={} if SCALE >= 1 else {"ASPEN_LOG_TAIL_ENTRIES": "20"})


def value_size():
    """Bytes; small proofs have few keys, and yet more than the log keeps."""
    return 100 if SCALE >= 1 else 2000


def fill(cluster, keys):
    """Writes every key; the log lets go of what is in the state."""
    report = bench(cluster, "load", "--keys", keys, "--value-size", value_size())
    for node in cluster.nodes[:3]:
        node.cli("cluster", "snapshot", timeout_ms=60_000, check=0)
    say(f"{keys} keys of 32 B, values of {value_size()} B, in {report['seconds']:.0f} s "
        f"({report['rate_per_second']:.0f}/s)")


# --- Snapshots -----------------------------------------------------------------------------------

def learner():
    """Half of the learners compete with the voters for this machine's processors and disk; the others
    yield, take no more than their share and have their files in memory, as if they had a machine of
    their own: what is left then is what sending costs. Neither may double p99."""
    keys, quiet = scaled(1_500_000), max(2, scaled(15))
    # No more than leaves this machine room for another node: a full one says nothing of the learner.
    rate, rounds = (250, 4) if SCALE >= 1 else (200, 1)
    with three_nodes(spares=rounds) as cluster, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        fill(cluster, keys)
        voters, through = cluster.nodes[:3], cluster.leader(cluster.nodes[0])[0]
        bench(cluster, "put", "--keys", keys, "--value-size", value_size(), "--clients", 64,
              "--count", scaled(100_000), nodes=voters)
        load = Load(cluster, "put", "--keys", keys, "--value-size", value_size(), "--clients", 256,
                    "--connections", 12, "--rate", rate, nodes=voters)
        windows = {"without": [], "competing": [], "yielding": [], "a busy core": []}
        time.sleep(3)
        for place, node in enumerate(cluster.nodes[3:]):
            kind = "yielding" if place % 2 == 0 else "competing"
            if kind == "yielding":
                move_files(node, memory)
                yield_processors(node)
            began = time.monotonic()
            time.sleep(quiet)
            windows["without"].append((began, time.monotonic()))
            windows[kind].append(join(cluster, node, through))
            began, ended = windows[kind][-1]
            say(f"node {node.number}, {kind}, in step after {ended - began:.1f} s")
            if node is not cluster.nodes[-1]:
                through.cli("cluster", "remove", "--node-id", str(node.number), check=0)
                node.kill_all()
                time.sleep(1)
        # The same share of this machine taken by a stranger: what contention alone costs.
        hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        began = time.monotonic()
        time.sleep(quiet)
        windows["a busy core"].append((began, time.monotonic()))
        hog.kill()
        hog.wait()
        report = load.finish()
        check(not report["errors"] and not report["wrong"], f"puts failed: {report}")
        index, digest = same_state(voters + [node])
        node.kill_all()
        remove_groups()
        say(f"equal states at index {index}: {digest:016x}")
        tails = {}
        for name, spans in windows.items():
            values = latencies(load.samples, spans)
            if values:
                tails[name] = percentile(values, 99)
                say(f"puts at {rate}/s, {name:12}: {spread(values)}; p99 is "
                    f"{tails[name] / tails['without']:.2f} times that without")
        worst = max(tails.get("yielding", 0), tails.get("competing", 0))
        timely(worst <= 2 * tails["without"], "p99 more than doubles: " + repr(tails))


def move_files(node, directory):
    """Of a node that has nothing to lose yet: its files are elsewhere from here on."""
    node.kill_all()
    shutil.rmtree(os.path.join(node.data, "run"))
    node.data = shutil.move(node.data, directory)
    node.start()


def yield_processors(node):
    limit_processors(node)
    # Of a node that has a session of its own, which the kernel schedules as one (sched(7), autogroups):
    # there the niceness of processes is only among themselves.
    group = f"/proc/{node.process.pid}/autogroup"
    if os.path.exists(group):
        with open(group, "w", encoding="ascii") as f:
            f.write("19")
    for pid in [node.process.pid] + [node.daemon(name) for name in ("net", "raft")]:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), 19)


def limit_processors(node, share=0.4):
    """At most so much of one processor, and only what nobody else wants, by a control group."""
    period = 10_000
    unified, groups = control_groups()
    group = f"{groups}/aspen-proof-{node.process.pid}"
    try:
        os.mkdir(group)
        limits = {"cpu.max": f"{int(period * share)} {period}", "cpu.weight": 1} if unified else {
            "cpu.cfs_period_us": period, "cpu.cfs_quota_us": int(period * share), "cpu.shares": 2}
        for name, value in limits.items():
            with open(f"{group}/{name}", "w", encoding="ascii") as f:
                f.write(str(value))
    except OSError as error:
        say(f"no control group ({error}): the learner takes what is left of the processors")
        return
    for pid in [node.process.pid] + [node.daemon(name) for name in ("net", "raft")]:
        with open(f"{group}/cgroup.procs", "w", encoding="ascii") as f:
            f.write(str(pid))


def control_groups():
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    return unified, "/sys/fs/cgroup" if unified else "/sys/fs/cgroup/cpu"


def remove_groups():
    """Those whose processes have gone."""
    for group in glob.glob(f"{control_groups()[1]}/aspen-proof-*"):
        try:
            os.rmdir(group)
        except OSError as error:
            say(f"{group} stays: {error}")


def interrupted():
    """Links and the receiver's daemon may break: nothing but what was in flight is sent again. When the
    sender's daemon dies, another leader begins anew."""
    for sender_dies in (False, True):
        interrupt(sender_dies)


def interrupt(sender_dies):
    keys, received = scaled(1_500_000), "aspen_snapshot_bytes_received_total"
    with three_nodes(spares=1) as cluster:
        fill(cluster, keys)
        sender, node = cluster.leader(cluster.nodes[0])[0], cluster.nodes[3]
        load = Load(cluster, "put", "--keys", keys, "--value-size", value_size(), "--clients", 16,
                    "--rate", 100, nodes=cluster.nodes[:3])
        # About what the stream of the snapshot takes.
        size = keys * (32 + value_size() + 60)
        sender.cli("cluster", "add-learner", "--node-id", str(node.number), check=0)
        kills = [(sender, "raft")] if sender_dies else [
            (node, "net"), (sender, "net"), (node, "raft")]
        for place, (who, name) in enumerate(kills, 1):
            wanted = size * place / (len(kills) + 1)
            before = 0
            while before + 1 < wanted and "installed a snapshot" not in node.log():
                before = sent_bytes(cluster) if name == "net" else metric(node, received)
            old, before = who.kill_daemon(name), sent_bytes(cluster)
            wait_for("another daemon", lambda: who.daemon(name) not in (None, old))
            say(f"aspend-{name} of the {'receiver' if who is node else 'sender'} killed at about "
                f"{wanted / 1e6:.0f} MB ({before / 1e6:.0f} MB sent)")
        wait_for("the learner in step", lambda: in_step(cluster, node, cluster.leader()[0]), 600)
        load.finish()
        same_state(cluster.nodes)
        resumed = node.log().count("goes on with a snapshot")
        say(f"{sent_bytes(cluster) / 1e6:.0f} MB sent by those that live, {resumed} × gone on after the "
            f"receiver's death")
        check(sender_dies or resumed == 1 or SCALE < 1, "the snapshot was begun anew")


def sent_bytes(cluster):
    return sum(metric(node, "aspen_snapshot_bytes_sent_total") for node in cluster.nodes[:3])


# --- Followers -----------------------------------------------------------------------------------

def follower():
    writes, keys = scaled(200_000), scaled(50_000)
    with three_nodes() as cluster:
        leader, _ = cluster.leader()
        away, other = [node for node in cluster.nodes if node is not leader]
        bench(cluster, "load", "--keys", keys, "--value-size", 256)
        for how, seconds in (("the log", 20), ("a snapshot", 20)):
            away.kill_all()
            rounds = 1 if how == "the log" else 3
            for _ in range(rounds):
                report = bench(cluster, "put", "--keys", keys, "--clients", 128, "--connections",
                               16, "--count", writes, nodes=[leader, other])
            say(f"away for {rounds * writes} writes at {report['rate_per_second']:.0f}/s")
            load = Load(cluster, "put", "--keys", keys, "--clients", 32, "--rate", 300,
                        nodes=[leader, other])
            time.sleep(1)
            started = time.monotonic()
            away.start()
            found = wait_for("a voter in good standing", lambda: (
                lambda m: m and m["is_voter"] and m["role"] == "follower" and m)(
                    in_step(cluster, away, leader)), 120)
            took = time.monotonic() - started
            why = away.cli("why", "member", str(away.number)).out.decode().splitlines()
            say(f"in step after {took:.1f} s (lag {found['lag']}), {snapshots(away)} snapshots "
                f"taken: {why[0] if why else ''}")
            timely(took <= seconds, f"in step only after {took:.1f} s")
            load.finish()
            # It is trusted: with the third one gone, nothing is committed without it.
            other.kill_all()
            leader.cli("kv", "set", "quorum", how, check=0)
            other.start()
            same_state(cluster.nodes)


def snapshots(node):
    return int(metric(node, "aspen_snapshots_received_total"))


# --- Watches -------------------------------------------------------------------------------------

def watchers():
    one_watch_and_kills()
    thousand_watches()


def one_watch_and_kills():
    seconds, rate = max(6, scaled(20)), 6000
    with three_nodes() as cluster:
        leader, _ = cluster.leader()
        victim, other = [node for node in cluster.nodes if node is not leader]
        first = node_revision(cluster) + 1
        watch = Load(cluster, "watch", "--from-revision", first, "--watchers", 4, "--connections",
                     4, nodes=[victim, other])
        load = Load(cluster, "put", "--clients", 256, "--connections", 8, "--value-size", 32,
                    "--rate", rate, "--warmup", "1ms", nodes=[leader, other])
        kills, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(2)
            if kills % 3 == 2:
                victim.kill_all()
                victim.start()
            else:
                old = victim.kill_daemon("raft")
                wait_for("another aspend-raft", lambda: victim.daemon("raft") not in (None, old))
            kills += 1
        written = load.finish()
        other.cli("kv", "set", "bench/~end", "x", check=0)
        report = watch.finish(interrupt=False)
        say(f"{written['rate_per_second']:.0f} writes/s, {kills} × kill -9: 4 watches saw "
            f"{report['events_least']}..{report['events_most']} events in {report['updates']} updates, "
            f"{report['violations']} missed, repeated or out of order")
        check(watch.process.returncode == 0, f"{report} {watch.complaints}")
        wanted = node_revision(cluster) - first + 1
        check(report["events_least"] == report["events_most"] == wanted, f"{report}, {wanted} writes")
        timely(written["rate_per_second"] >= 5000, f"only {written} writes/s")


def node_revision(cluster):
    return cluster.status()["revision"]


def thousand_watches():
    seconds, count, rate = max(3, scaled(10)), 1000, 6000
    with three_nodes() as cluster:
        leader, _ = cluster.leader()
        node, other = [node for node in cluster.nodes if node is not leader]
        bench(cluster, "put", "--clients", 64, "--count", scaled(20_000), "--value-size", 16)
        pid = wait_for("raft", lambda: node.daemon("raft"))
        before = resident(pid)
        stuck = Client(node.socket)
        for _ in range(10):
            stuck.send(WATCH, (1, "bench/"), (2, "bench0"))
        first = node_revision(cluster) + 1
        # Readers yield to the nodes: they would have machines of their own.
        watch = Load(cluster, "watch", "--from-revision", first, "--watchers", count,
                     "--connections", 10, "--timeout", "10m", nodes=[node], nice=5)
        memory = Sampler(lambda: resident(pid))
        time.sleep(2)
        load = Load(cluster, "put", "--clients", 256, "--connections", 8, "--value-size", 16,
                    "--key-size", 16, "--rate", rate, "--warmup", "1ms", nodes=[leader, other])
        time.sleep(seconds)
        written = load.finish()
        ended = time.monotonic()
        other.cli("kv", "set", "bench/~end", "x", check=0)
        report = watch.finish(interrupt=False)
        caught_up, largest = time.monotonic() - ended, memory.finish()
        say(f"{count} watches, 10 more that nobody reads: {written['rate_per_second']:.0f} writes/s; "
            f"{report['events']} events in {report['seconds']:.0f} s, the last "
            f"{caught_up:.1f} s after the last write")
        say(f"aspend-raft that serves them: {before} MB before, at most {largest} MB, "
            f"{resident(pid)} MB after")
        check(watch.process.returncode == 0, f"{report} {watch.complaints}")
        wanted = node_revision(cluster) - first + 1
        check(report["events_least"] == report["events_most"] == wanted, f"{report}, {wanted} writes")
        check(largest - before < 200, f"memory grows with watches: {before} -> {largest} MB")
        check(alive(pid), "the daemon died")
        timely(written["rate_per_second"] >= 5000, f"only {written} writes/s")


# --- Backups, sizes, restarts --------------------------------------------------------------------

def backup():
    keys, leases = scaled(200_000), scaled(50, 5)
    with three_nodes() as cluster:
        node = cluster.nodes[1]
        fill(cluster, keys)
        for number in range(leases):
            lease = node.cli("lease", "grant", "--ttl", "60m", check=0).out.decode().strip()
            node.cli("kv", "set", f"leased/{number}", "x", "--lease", lease, check=0)
        listed = leases_of(node)
        load = Load(cluster, "put", "--keys", keys, "--value-size", value_size(), "--clients", 64,
                    "--connections", 6, "--rate", 2000)
        time.sleep(1)
        path, began = os.path.join(cluster.directory, "the.backup"), time.monotonic()
        made = node.cli("cluster", "backup", path, "-o", "json", timeout_ms=300_000, check=0).json()
        took = time.monotonic() - began
        then = scan(cluster.nodes[2], "--revision", str(made["revision"]))
        report = load.finish()
        values = sorted(latency / 1e6 for _, latency in load.samples)
        say(f"{made['bytes'] / 1e6:.0f} MB at revision {made['revision']} in {took:.1f} s under "
            f"{report['rate_per_second']:.0f} writes/s: {spread(values)}")
        fresh = newcomer(cluster)
        began = time.monotonic()
        begun = fresh.cli("cluster", "restore", path, "-o", "json", timeout_ms=300_000, check=0).json()
        say(f"restored in {time.monotonic() - began:.1f} s")
        check(begun["revision"] == made["revision"], f"{begun}, {made}")
        now = scan(fresh)
        check(len(then) == keys + leases, f"{len(then)} keys at the backup's revision")
        check(now == then, "the restored state is another one")
        check(leases_of(fresh) == listed and len(listed) == leases, "leases differ")
        say(f"{len(now)} keys and {leases} leases are equal")


def scan(node, *arguments):
    """Every key with its value, revisions, version and lease."""
    done = subprocess.run(
        [f"{bin_dir()}/aspen-cli", "kv", "scan", "--all", "--json", "--timeout", "5m", "--socket",
         node.socket, *arguments], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["entries"]


def leases_of(node):
    found = node.cli("lease", "list", "--json", check=0).json()["leases"]
    return sorted(sorted(pair for pair in lease.items() if "remaining" not in pair[0])
                  for lease in found)


def overwrites():
    count, keys, value = scaled(5_000_000), 10_000, 256
    with three_nodes() as cluster:
        limit, wal = 4 * keys * (32 + value) + 128_000_000, 32_000_000
        # With what it is made of, to see what was in the way.
        sizes = [Sampler(lambda node=node: (disk_bytes(node.data), parts(node.data)), 1, (0, []))
                 for node in cluster.nodes]
        report = bench(cluster, "put", "--keys", keys, "--value-size", value, "--clients", 256,
                       "--connections", 24, "--count", count, timeout=3600)
        say(f"{count} overwrites of {keys} keys in {report['seconds']:.0f} s "
            f"({report['rate_per_second']:.0f}/s)")
        largest = [sampler.finish() for sampler in sizes]
        at_end = [disk_bytes(node.data) for node in cluster.nodes]
        for node, (most, made_of), end in zip(cluster.nodes, largest, at_end):
            for when, size, files in (("at the end", end, parts(node.data)), ("at most", most, made_of)):
                say(f"node {node.number}: {size / 1e6:.0f} MB {when}, limit {limit / 1e6:.0f} MB; "
                    + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in files))
        check(max(at_end) < limit, f"{max(at_end)} bytes, more than {limit}")
        # While it is written to, a transaction waits in the WAL besides.
        most = max(size for size, _ in largest)
        check(most < limit + wal, f"at most {most} bytes, more than {limit + wal}")


def parts(directory):
    """What lies in a data directory, by file, the log as one."""
    found = {}
    for where, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(where, name)
            key = "log" if os.path.basename(where) == "log" else name
            try:
                found[key] = found.get(key, 0) + os.lstat(path).st_blocks * 512
            except FileNotFoundError:
                pass
    return [pair for pair in sorted(found.items(), key=lambda pair: -pair[1]) if pair[1] > 500_000]


def restart():
    keys = scaled(1_000_000)
    with three_nodes() as cluster:
        fill(cluster, keys)
        bench(cluster, "put", "--keys", keys, "--value-size", value_size(), "--clients", 64, "--count",
              scaled(50_000))
        leader, _ = cluster.leader()
        node = next(node for node in cluster.nodes if node is not leader)
        for how, end in (("kill -9", node.kill_all), ("SIGTERM", node.stop)) * 2:
            end()
            started = time.monotonic()
            node.start()
            node.cli("kv", "get", "nothing", check=3)
            answered = time.monotonic() - started
            wait_for("in step", lambda: in_step(cluster, node, leader))
            say(f"after {how}: first linearizable read after {answered:.2f} s, in step after "
                f"{time.monotonic() - started:.2f} s")
            timely(answered < 10, f"{answered:.1f} s")


def replaced():
    test_life.every_member_is_replaced_under_load(clients=scaled(64, 12), seconds=40)


PROOFS = {function.__name__: function for function in (
    learner, follower, watchers, backup, overwrites, restart, replaced, interrupted)}
