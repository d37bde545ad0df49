# SPDX-License-Identifier: GPL-2.0-or-later
"""The pure part: from what programs print to medians, spreads, ratios and tables."""

import json
import math
import re


def parse_etcd_load(text, total):
    """Of etcd's tools/benchmark: rate, milliseconds. Raises RuntimeError when more than one request in a
    hundred failed."""
    def find(pattern):
        found = re.search(pattern, text)
        if not found:
            raise RuntimeError(f"etcd's benchmark says nothing of {pattern}:\n{text}")
        return float(found.group(1))
    # A few of etcd's large answers break off now and then (gRPC, "unexpected EOF"): they are told.
    failed = sum(map(int, re.findall(r"^\s+\[(\d+)\]\t", text.split("Error distribution:")[1], re.M))) \
        if "Error distribution:" in text else 0
    if failed > total / 100:
        raise RuntimeError(f"{failed} of {total} requests to etcd failed:\n{text[-2000:]}")
    return {"count": total - failed, "failed": failed, "rate": find(r"Requests/sec:\s+([0-9.]+)"),
            "p50_ms": 1000 * find(r"50% in ([0-9.]+)"), "p99_ms": 1000 * find(r"99% in ([0-9.]+)"),
            "max_ms": 1000 * find(r"Slowest:\s+([0-9.]+)")}


def parse_aspen_load(text):
    """Of `aspen-bench --json`. Raises RuntimeError when a request failed or was answered wrongly."""
    report = json.loads(text.splitlines()[0])
    if report["errors"] or report["wrong"]:
        raise RuntimeError(f"requests to Aspen failed: {text}")
    times = report["latency_ms"] or {}
    return {"count": report["count"], "rate": report["rate_per_second"],
            "p50_ms": times.get("p50"), "p99_ms": times.get("p99"),
            "p99_9_ms": times.get("p99_9"), "max_ms": times.get("max"),
            "per_second": report["per_second"],
            "requests_per_second": (report.get("puts") or report["count"]) / report["seconds"]}


def median(values):
    values = sorted(values)
    if not values:
        raise ValueError("no values have no median")
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def number(value):
    """With three digits that count, and no more."""
    if value is None:
        return "—"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3f}"


def spread(values):
    """Median, least and most."""
    return f"{number(median(values))} ({number(min(values))}..{number(max(values))})"


def ratio(aspen, other):
    """Of medians; None where there is nothing to divide by."""
    if not aspen or not other or median(other) == 0:
        return None
    return median(aspen) / median(other)


def reached(value, asked):
    """`asked` is (">=" or "<=", figure) of the ratio, or None: nothing was asked."""
    if value is None or asked is None:
        return "—"
    sign, wanted = asked
    return "yes" if (value >= wanted if sign == ">=" else value <= wanted) else "no"


# What is asked: of the ratio to etcd without TLS where it is the peer, to the other peer that is named, else of
# the figure itself.
ASKED = {
    "puts/s, 64 clients": (">=", 3), "puts/s, 256 clients": (">=", 3),
    "put p99, 64 clients": ("<=", 0.33), "put p99, 256 clients": ("<=", 0.33),
    "put p50, 1 client": ("<=", 1),
    "linearizable gets/s, 64 clients": (">=", 4),
    "ranges of 1,000 keys/s": (">=", 2),
    "server CPU per put, 64 clients": ("<=", 0.4), "server CPU per put, 256 clients": ("<=", 0.4),
    "PSS of a node, after 100,000 puts": ("<=", 0.5),
    "disk of a node, allocated blocks, after 100,000 puts": ("<=", 1),
    "first write after kill -9 of the leader's node": ("<=", 0.25),
    "first write after kill -9 of the leading daemon": ("<=", 0.25),
    "first write after the leader's packets vanish": ("<=", 1),
    "idle CPU of three nodes": ("<=", 0.3),
    "put p50, 1 client / fdatasync p50, appended": ("<=", 6),
    "put p50, 1 client / fdatasync p50, overwritten": ("<=", 6),
    "puts/s by QUIC from another namespace, 64 clients": (">=", 1 / 1.5),
    "values of 1 MB / (disk / 3)": (">=", 0.5),
    "restart to ready, 1,000,000 keys": ("<=", 2),
    "puts/s over 10,000,000 keys, 64 clients": (">=", 0.5),
    "open-loop put p99 while a snapshot streams": ("<=", 2),
}


def table(rows):
    """Lines of columns, the first a heading; all but the first column to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for position, row in enumerate(rows):
        cells = [cell.ljust(width) if column == 0 else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths))]
        lines.append("| " + " | ".join(cells) + " |")
        if position == 0:
            lines.append("|" + "|".join(
                "-" * (width + 1) + ("-" if column == 0 else ":")
                for column, width in enumerate(widths)) + "|")
    return "\n".join(lines)


def comparison(results):
    """The last table, out of the JSON file: each row against each peer it was measured beside."""
    rows = [("row", "unit", "Aspen", "peer", "of it", "ratio", "asked", "reached")]
    for row in results.values():
        for line in row["lines"]:
            mine, other = line["aspen"], line.get("peer") or []
            # A quotient of one side alone is its own ratio.
            value = ratio(mine, other) if other else median(mine) if line.get("is_ratio") else None
            asked = ASKED.get(line["name"])
            judged = value if value is not None else median(mine) if mine else None
            rows.append((
                line["name"], line["unit"], spread(mine), line.get("peer_name", "—"),
                spread(other) if other else "—", number(value) if value is not None else "—",
                f"{asked[0]} {number(asked[1])}" if asked else "—", reached(judged, asked)))
    return rows


# Of the plot: factors of two on either side of one, and columns to each.
OCTAVES, COLUMNS = 4, 7


def column(value):
    """Where a ratio stands, on a scale of logarithms; what is beyond it stands at its end."""
    most = 2 * OCTAVES * COLUMNS
    return min(most, max(0, round((math.log2(value) + OCTAVES) * COLUMNS)))


def plot(results):
    """The ratios of which something is asked, as text: `o` the medians', `-` from the least to the most of
    single rounds, `<` or `>` the side of what is asked on which it is reached, `|` as much as the peer."""
    width = 2 * OCTAVES * COLUMNS + 1
    scale = [" "] * (width + 2)
    for power in range(-OCTAVES, OCTAVES + 1):
        text = f"1/{2 ** -power}" if power < 0 else str(2 ** power)
        start = max(0, column(2.0 ** power) - len(text) // 2)
        scale[start:start + len(text)] = text
    lines = []
    for row in results.values():
        for line in row["lines"]:
            value, asked = ratio(line["aspen"], line.get("peer")), ASKED.get(line["name"])
            if value is None or asked is None:
                continue
            cells = [" "] * width
            rounds = [a / b for a, b in zip(line["aspen"], line["peer"]) if a and b]
            for place in range(column(min(rounds)), column(max(rounds)) + 1):
                cells[place] = "-"
            cells[column(1)] = "|"
            cells[column(asked[1])] = asked[0][0]
            cells[column(value)] = "o"
            lines.append((f"{line['name']}, {number(value)}", "".join(cells)))
    if not lines:
        return ""
    margin = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(margin)} {cells}".rstrip()
                     for name, cells in [("", "".join(scale)), *lines])


def notes(results):
    """What a reader must know of the rows, a line each."""
    return [f"{name}: {note}" for name, row in results.items() for note in row.get("notes", [])]
