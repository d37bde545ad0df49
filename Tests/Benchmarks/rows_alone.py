# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows that Aspen is measured by against itself or its disk, and the modes of aspen-bench one by one."""

import json
import os
import subprocess
import time

from aspen_cluster import bin_dir
from aspen_side import AspenCluster
from figures import median, number
from networks import Networks
from processes import undisturbed
from proving import Load, in_step, join, latencies, newcomer, percentile
from rows import Result, Settings, client_microseconds, log, rate, server_microseconds


def disk_probe(directory, megabytes=256):
    """aspen-bench disk: its report."""
    done = subprocess.run([f"{bin_dir()}/aspen-bench", "disk", "--directory", directory, "--count",
                           "1000", "--megabytes", str(megabytes), "--json"],
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def seconds(cluster, operation, clients, more=(), **options):
    """A turn of about so many seconds, by count: every request that the servers took time for is counted."""
    def load(total):
        return cluster.load(operation, clients, total=max(total, clients), more=more, **options)
    expected = load(100 * min(clients, 16))["requests_per_second"]
    return undisturbed(lambda: load(int(expected * Settings.seconds)))


def fdatasync():
    """What a put costs a lone client, in syncs of the same disk in the same run."""
    result, quotients = Result(), {"overwrite": [], "append": []}
    with AspenCluster() as cluster:
        for round_number in range(Settings.rounds + 1):
            probe = disk_probe(cluster.directory, megabytes=64)
            turn = seconds(cluster, "put", 1)
            result.turn("disk", round_number, probe)
            result.turn("Aspen", round_number, turn)
            for kind, values in quotients.items():
                if round_number:
                    values.append(turn["p50_ms"] / probe[f"{kind}_ms"]["p50"])
            log(f"round {round_number}: put p50 {turn['p50_ms']:.3f} ms, fdatasync p50 overwriting "
                f"{probe['overwrite_ms']['p50']:.3f} ms, appending {probe['append_ms']['p50']:.3f} ms, "
                f"writing {probe['write_megabytes_per_second']:.0f} MB/s")
    result.line("put p50, one client alone", "ms", result.of("Aspen", lambda t: t["p50_ms"]))
    for kind, text in (("append", "appended"), ("overwrite", "overwritten")):
        result.line(f"fdatasync p50 of 4 KiB {text}", "ms",
                    result.of("disk", lambda t, kind=kind: t[f"{kind}_ms"]["p50"]))
        result.line(f"put p50, 1 client / fdatasync p50, {text}", "×", quotients[kind], is_ratio=True)
    result.line("sequential write of the disk", "MB/s",
                result.of("disk", lambda t: t["write_megabytes_per_second"]))
    return result


def quic():
    """64 clients by ticket from a machine of their own, as far as the network goes, over the same by the
    local sockets."""
    result = Result()
    if os.geteuid() != 0:
        result.note("not measured: network namespaces need root")
        return result
    with Networks(4) as networks, \
            AspenCluster(places=[networks.place(n) for n in (1, 2, 3)]) as cluster:
        away, env = networks.place(4)[1], cluster.client_abroad()
        for round_number in range(Settings.rounds + 1):
            for side, layout, wrapper in (("socket", "each", ()), ("QUIC", "quic", away)):
                turn = seconds(cluster, "put", 64, layout=layout, wrapper=wrapper, env=env)
                result.turn(side, round_number, turn)
                log(f"round {round_number}, {side}: {turn['rate']:.0f}/s, p99 {turn['p99_ms']:.2f} ms, "
                    f"server CPU {server_microseconds(turn):.0f} µs, client "
                    f"{client_microseconds(turn):.0f} µs")
    result.note("nodes and clients in network namespaces on one bridge; clients by QUIC show a token; "
                "the other side are clients of the nodes' sockets")
    for name, unit, figure in (
            ("puts/s by QUIC from another namespace, 64 clients", "1/s", rate),
            ("put p99, the same", "ms", lambda t: t["p99_ms"]),
            ("server CPU per put, the same", "µs", server_microseconds)):
        result.line(name, unit, result.of("QUIC", figure), result.of("socket", figure), "socket")
    return result


def values():
    """Values of 1 MB (10^6 bytes) against a third of what the disk takes in sequence: three nodes share it."""
    result, quotients, size = Result(), [], 1_000_000
    with AspenCluster() as cluster:
        for round_number in range(Settings.rounds + 1):
            probe = disk_probe(cluster.directory, megabytes=512)
            turn = seconds(cluster, "put", 8, value=size, keys=100)
            megabytes = turn["rate"] * size / 1e6
            result.turn("disk", round_number, probe)
            result.turn("Aspen", round_number, {**turn, "megabytes": megabytes})
            if round_number:
                quotients.append(megabytes / (probe["write_megabytes_per_second"] / 3))
            log(f"round {round_number}: {megabytes:.0f} MB/s of values, p99 {turn['p99_ms']:.0f} ms, disk "
                f"{probe['write_megabytes_per_second']:.0f} MB/s")
    result.note("8 clients, 100 keys; each value is written to three logs and three states on one disk")
    result.line("values of 1 MB", "MB/s", result.of("Aspen", lambda t: t["megabytes"]))
    result.line("sequential write of the disk", "MB/s",
                result.of("disk", lambda t: t["write_megabytes_per_second"]))
    result.line("values of 1 MB / (disk / 3)", "×", quotients, is_ratio=True)
    return result


def cost():
    """Server CPU per put, by the number of clients."""
    result, clients = Result(), (1, 4, 16, 64, 256, 1024)
    with AspenCluster() as cluster:
        seconds(cluster, "put", 64)
        for round_number in range(1, Settings.rounds + 1):
            for count in clients:
                turn = seconds(cluster, "put", count)
                result.turn(str(count), round_number, turn)
                log(f"round {round_number}, {count:4} clients: {turn['rate']:7.0f}/s, server CPU "
                    f"{server_microseconds(turn):.0f} µs, p99 {turn['p99_ms']:.2f} ms")
    for count in clients:
        for name, unit, figure in (("server CPU per put", "µs", server_microseconds),
                                   ("puts/s", "1/s", rate), ("put p99", "ms", lambda t: t["p99_ms"])):
            result.line(f"{name}, by {count} clients", unit, result.of(str(count), figure))
    return result


def restart():
    """A node that has 1,000,000 keys is killed and started again."""
    result, keys = Result(), 1_000_000
    with AspenCluster() as cluster:
        done = cluster.cli_bench("load", "--keys", str(keys), "--value-size", "100", timeout=900)
        assert done.returncode == 0, done.stderr
        node = next(node for node in cluster.nodes if node is not cluster.leading())
        for round_number in range(1, Settings.rounds + 1):
            node.kill_all()
            started = time.monotonic()
            node.start()
            node.cli("kv", "get", "nothing", check=3)
            took = time.monotonic() - started
            result.turn("Aspen", round_number, {"seconds": took})
            log(f"round {round_number}: {took:.2f} s to the first linearizable read")
    result.note("32-byte keys, 100-byte values; a follower, all its processes killed with SIGKILL")
    result.line("restart to ready, 1,000,000 keys", "s", result.of("Aspen", lambda t: t["seconds"]))
    return result


def millions():
    """Puts/s over 10,000,000 keys, over the same over 10,000. Long: another half an hour."""
    result = Result()
    with AspenCluster() as small, AspenCluster() as large:
        for cluster, keys in ((small, 10_000), (large, 10_000_000)):
            started = time.monotonic()
            done = cluster.cli_bench("load", "--keys", str(keys), timeout=7200)
            assert done.returncode == 0, done.stderr
            log(f"{keys} keys written in {time.monotonic() - started:.0f} s")
        for round_number in range(Settings.rounds + 1):
            for side, cluster, keys in (("10,000", small, 10_000), ("10,000,000", large, 10_000_000)):
                turn = seconds(cluster, "put", 64, keys=keys)
                result.turn(side, round_number, turn)
                log(f"round {round_number}, {side} keys: {turn['rate']:.0f}/s, p99 "
                    f"{turn['p99_ms']:.1f} ms")
    result.line("puts/s over 10,000,000 keys, 64 clients", "1/s", result.of("10,000,000", rate),
                result.of("10,000", rate), "10,000 keys")
    return result


def snapshot():
    """p99 of an open loop at 30 % of what 64 clients get, while a learner is sent the state, over that
    without. The learner is on this machine too, and takes its share of it."""
    result, keys = Result(), 300_000
    with AspenCluster() as cluster:
        voters, through = cluster.nodes[:3], cluster.leading()
        done = cluster.cli_bench("load", "--keys", str(keys), timeout=900)
        assert done.returncode == 0, done.stderr
        for node in voters:
            node.cli("cluster", "snapshot", timeout_ms=60_000, check=0)
        capacity = seconds(cluster, "put", 64, keys=keys)["rate"]
        wanted = int(0.3 * capacity)
        load = Load(cluster, "put", "--keys", keys, "--clients", 256, "--connections", 12, "--rate",
                    wanted, nodes=voters)
        spans = []
        time.sleep(3)
        for _ in range(Settings.rounds):
            node = newcomer(cluster)
            time.sleep(2)
            began = time.monotonic()
            time.sleep(6)
            spans.append(((began, time.monotonic()), join(cluster, node, through)))
            through.cli("cluster", "remove", "--node-id", str(node.number), check=0)
            node.kill_all()
            time.sleep(2)
        report = load.finish()
        assert not report["errors"] and not report["wrong"], report
    for round_number, (quiet, busy) in enumerate(spans, 1):
        for side, span in (("without", quiet), ("with", busy)):
            found = latencies(load.samples, [span])
            turn = {"p50_ms": percentile(found, 50), "p99_ms": percentile(found, 99),
                    "seconds": span[1] - span[0], "count": len(found)}
            result.turn(side, round_number, turn)
            log(f"round {round_number}, {side:7}: p50 {turn['p50_ms']:.2f} ms, p99 "
                f"{turn['p99_ms']:.2f} ms, {turn['seconds']:.1f} s")
    result.note(f"{wanted} puts/s wanted, {number(report['rate_per_second'])} done; 64 clients get "
                f"{number(capacity)}/s; {keys} keys of 32 + 256 B are streamed; sender, receiver and load "
                "share this machine's processors")
    result.line("open-loop put p99 while a snapshot streams", "ms",
                result.of("with", lambda t: t["p99_ms"]), result.of("without", lambda t: t["p99_ms"]),
                "without")
    return result


# --- The modes, one by one ------------------------------------------------------------------------

MODES = (
    ("put", 1, ()), ("put", 64, ()), ("put", 256, ()), ("put", 64, ("--distribution", "zipf")),
    ("get", 1, ()), ("get", 64, ()), ("get", 64, ("--stale",)), ("range", 16, ("--limit", 1000)),
    ("txn", 64, ()), ("mixed", 64, ("--read-percent", 90)), ("lease", 64, ()),
    ("notify", 16, ("--watchers", 10)))


def modes():
    result, names = Result(), []
    with AspenCluster() as cluster:
        done = cluster.cli_bench("load")
        assert done.returncode == 0, done.stderr
        for round_number in range(Settings.rounds + 1):
            for operation, clients, more in MODES:
                name = f"{operation}, {clients} client{'s' * (clients > 1)}"
                if more:
                    name += f" ({' '.join(str(part).lstrip('-') for part in more)})"
                if name not in names:
                    names.append(name)
                extra = ("--no-load",) if operation in ("get", "range", "mixed", "txn") else ()
                turn = seconds(cluster, operation, clients, (*more, *extra))
                result.turn(name, round_number, turn)
                log(f"round {round_number}, {name}: {turn['rate']:.0f}/s, p99 {turn['p99_ms']:.2f} ms")
        probe = disk_probe(cluster.directory)
    for name in names:
        for what, unit, figure in (("rate", "1/s", rate), ("p50", "ms", lambda t: t["p50_ms"]),
                                   ("p99", "ms", lambda t: t["p99_ms"]),
                                   ("server CPU", "µs", server_microseconds),
                                   ("client CPU", "µs", client_microseconds)):
            result.line(f"{name}: {what}", unit, result.of(name, figure))
    result.turn("disk", 1, probe)
    result.note(f"disk: fdatasync p50 overwriting {probe['overwrite_ms']['p50']} ms, appending "
                f"{probe['append_ms']['p50']} ms; {probe['write_megabytes_per_second']:.0f} MB/s")
    return result


def modes_table(row):
    """A line a mode: for people who want to see them side by side."""
    heading = ("operation", "rate/s", "p50 ms", "p99 ms", "server CPU µs", "client CPU µs")
    found = {}
    for line in row["lines"]:
        name, what = line["name"].rsplit(": ", 1)
        found.setdefault(name, {})[what] = line["aspen"]
    return [heading] + [
        (name, *(spread_short(figures[what]) for what in (
            "rate", "p50", "p99", "server CPU", "client CPU")))
        for name, figures in found.items()]


def spread_short(values):
    return f"{number(median(values))} ({number(min(values))}..{number(max(values))})"


ROWS = {function.__name__: function for function in (
    modes, fdatasync, quic, values, cost, restart, snapshot)}
LONG = {"millions": millions}
