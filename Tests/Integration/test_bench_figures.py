#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The arithmetic of the benchmarks: what is read out of load generators, and what a table says of it."""

import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "Benchmarks"))

import figures  # noqa: E402
from aspen_cluster import run  # noqa: E402

ETCD = """
Summary:
  Total:\t4.5794 secs.
  Slowest:\t0.0480 secs.
  Fastest:\t0.0008 secs.
  Average:\t0.0058 secs.
  Stddev:\t0.0041 secs.
  Requests/sec:\t10918.5123

Latency distribution:
  10% in 0.0023 secs.
  50% in 0.0048 secs.
  95% in 0.0130 secs.
  99% in 0.0240 secs.
  99.9% in 0.0410 secs.
"""
ASPEN = ('{"count":10,"puts":0,"seconds":2.0,"rate_per_second":5.5,"latency_ms":{"p50":1.5,"p90":2.0,"p95":2.5,"p99":3.0,'
         '"p99_9":4.0,"max":4.5},"per_second":[5],"errors":{%s},"wrong":%d}\n')


def refuses(function, *arguments):
    try:
        function(*arguments)
    except RuntimeError:
        return
    raise AssertionError(f"{function.__name__} took {arguments}")


def the_load_generators_are_understood():
    assert figures.parse_etcd_load(ETCD, 50_000) == {
        "count": 50_000, "failed": 0, "rate": 10918.5123, "p50_ms": 4.8, "p99_ms": 24.0, "max_ms": 48.0}
    found = figures.parse_aspen_load(ASPEN % ("", 0))
    assert (found["rate"], found["p99_ms"], found["p99_9_ms"], found["count"]) == (5.5, 3.0, 4.0, 10)
    assert found["requests_per_second"] == 5.0


def failures_are_no_figures():
    broken = ETCD + "\nError distribution:\n  [3]\tetcdserver: timeout\n  [1]\tunexpected EOF\n"
    refuses(figures.parse_etcd_load, broken, 100)
    few = figures.parse_etcd_load(broken, 1000)
    assert (few["count"], few["failed"]) == (996, 4), few
    refuses(figures.parse_etcd_load, "dial tcp: connection refused", 10)
    refuses(figures.parse_aspen_load, ASPEN % ('"UNAVAILABLE":1', 0))
    refuses(figures.parse_aspen_load, ASPEN % ("", 1))


def medians_and_spreads():
    assert figures.median([3, 1, 2]) == 2 and figures.median([4, 1, 2, 3]) == 2.5
    assert figures.spread([1, 3, 2]) == "2.00 (1.00..3.00)"
    assert [figures.number(n) for n in (12345.6, 99.94, 0.5, 0.0123, 0, None)] == [
        "12,346", "99.9", "0.50", "0.012", "0", "—"]
    assert figures.ratio([2, 4, 6], [1, 2, 3]) == 2
    assert figures.ratio([1], [0]) is None and figures.ratio([], [1]) is None


def what_was_asked_is_judged():
    assert figures.reached(3.0, (">=", 3)) == "yes" and figures.reached(2.99, (">=", 3)) == "no"
    assert figures.reached(0.41, ("<=", 0.4)) == "no" and figures.reached(0.4, ("<=", 0.4)) == "yes"
    assert figures.reached(None, (">=", 3)) == figures.reached(3, None) == "—"


def the_table_has_a_line_for_each():
    rows = {"puts": {"lines": [
        {"name": "puts/s, 64 clients", "unit": "1/s", "aspen": [200, 300, 400], "peer": [100, 100, 100],
         "peer_name": "etcd"},
        {"name": "alone", "unit": "×", "aspen": [2, 3, 4], "is_ratio": True}],
        "notes": ["by two clients"]}}
    lines = figures.table(figures.comparison(rows)).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1, lines
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[2] == ["puts/s, 64 clients", "1/s", "300 (200..400)", "etcd", "100 (100..100)", "3.00", ">= 3.00",
                        "yes"], cells[2]
    assert cells[3] == ["alone", "×", "3.00 (2.00..4.00)", "—", "—", "3.00", "—", "—"], cells[3]
    assert figures.notes(rows) == ["puts: by two clients"]


def ratios_are_drawn_to_scale():
    rows = {"puts": {"lines": [
        {"name": "puts/s, 64 clients", "unit": "1/s", "aspen": [200, 400, 200], "peer": [100, 100, 50],
         "peer_name": "etcd"},
        {"name": "idle CPU of three nodes", "unit": "%", "aspen": [0.001], "peer": [1], "peer_name": "etcd"},
        {"name": "not asked for", "unit": "1/s", "aspen": [1], "peer": [1], "peer_name": "etcd"}]}}
    scale, puts, idle = figures.plot(rows).splitlines()
    assert puts.startswith("puts/s, 64 clients, 2.00") and idle.startswith("idle CPU of three nodes, 0.001")
    # Seven columns to a factor of two; what is beyond the scale stands at its end.
    assert puts.index("o") - puts.index("|") == 7 and puts.rindex("-") - puts.index("|") == 14, puts
    assert puts[puts.index("|") + figures.column(3) - figures.column(1)] == ">", puts
    assert idle.rindex("o") == idle.index("|") - 28 and scale[idle.index("|")] == "1", scale
    assert figures.plot({}) == ""


if __name__ == "__main__":
    run(the_load_generators_are_understood, failures_are_no_figures, medians_and_spreads,
        what_was_asked_is_judged, the_table_has_a_line_for_each, ratios_are_drawn_to_scale)
