#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody with the cluster's cookie sends a node gossip as fast as he can: what that costs its daemons, and
whether others are heard meanwhile."""

import base64
import os
import shutil
import socket
import struct
import subprocess
import threading
import time

from aspen_cluster import Cluster, run, wait_for
from test_gossip import peers

SECONDS = 20.0
LONG_SECONDS = 45.0
# As in Limits.md; what is under way in sockets and windows comes on top.
FRAMES_AT_ONCE, FRAMES_PER_SECOND = 1000, 200
STREAMS_AT_ONCE = 16  # and one a second
BYTES_AT_ONCE, BYTES_PER_SECOND = 1 << 20, 128 << 10
UNDER_WAY = 8 << 20
PERCENT_MAX = 20  # of a core, both daemons together
# Of a stream that is not let in, or of whose end the sender has not heard.
WINDOW = 2 << 20
FRAME_BYTES_MAX = 16_384


def frame(content):
    return struct.pack("<I", len(content)) + content


def read_frame(file):
    head = file.read(4)
    return file.read(struct.unpack("<I", head)[0]) if len(head) == 4 else b""


def text(word):
    return struct.pack("<I", len(word)) + word.encode()


def gossip_stream(node, endpoint):
    """A stream to the gossip daemon of that endpoint, through the node's own aspend-net; None: refused."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(os.path.join(node.data, "run", "net.sock"))
    key = base64.b32decode(endpoint.upper() + "=" * (-len(endpoint) % 8))
    s.sendall(frame(b"\1" + key + text("aspen-gossip") + b"\2"))
    if read_frame(s.makefile("rb", buffering=0))[:1] != b"\1":
        s.close()
        return None
    return s


def announcements(node, endpoint):
    """The signed announcements that the other has, by endpoint."""
    with gossip_stream(node, endpoint) as s:
        s.sendall(frame(bytes([1, 12, 0, 0])))
        file = s.makefile("rb", buffering=0)
        while True:
            message = read_frame(file)
            assert message, "the link was closed"
            if message[1] == 13:
                break
    found, place = {}, 3
    for _ in range(message[2]):
        length = struct.unpack_from("<H", message, place + 2)[0]
        signed = message[place + 4:place + 4 + length]
        found[signed[5:37]] = signed
        place += 4 + length
    return found


def carried(signed):
    return struct.pack("<HH", 0, len(signed)) + signed


def gossip(signed):
    return frame(bytes([1, 8, 0]) + carried(signed))


def dated(signed, milliseconds):
    """The same with another time, under a signature that does not hold."""
    timestamp = struct.unpack_from("<Q", signed, 45)[0] + milliseconds
    return signed[:45] + struct.pack("<Q", timestamp) + signed[53:]


def records(signed):
    one = carried(signed)
    count = min(255, (FRAME_BYTES_MAX - 3) // len(one))
    return frame(bytes([1, 13, count]) + one * count)


NEIGHBOR = frame(bytes([1, 3, 1]))


class Flood(threading.Thread):
    """Sends the frames in turn, for so long; opens another stream whenever one is closed."""

    def __init__(self, node, endpoint, frames, seconds):
        super().__init__(daemon=True)
        self.node, self.endpoint, self.seconds = node, endpoint, seconds
        whole = b"".join(frames)
        self.chunk = whole * max(1, 65_536 // len(whole))
        self.sent, self.streams, self.failure = 0, 0, None

    def run(self):
        try:
            self.flood()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            self.failure = error

    def flood(self):
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            s = gossip_stream(self.node, self.endpoint)
            self.streams += 1
            if s is None:
                continue
            with s:
                s.settimeout(0.2)
                try:
                    s.sendall(NEIGHBOR)
                    self.send(s, end)
                except (BrokenPipeError, ConnectionResetError):
                    pass

    def send(self, s, end):
        rest = self.chunk
        while time.monotonic() < end:
            try:
                count = s.send(rest)
            except TimeoutError:
                # It is held up; what was answered is not kept.
                try:
                    if not s.recv(65_536):
                        return
                except TimeoutError:
                    pass
                continue
            self.sent += count
            rest = rest[count:] or self.chunk


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def restart_as_another(node):
    """With a key that nobody has heard of, and without a gossip daemon that would talk by itself."""
    node.stop()
    shutil.rmtree(os.path.join(node.data, "net"))
    os.makedirs(os.path.join(node.data, "net"), mode=0o700)
    node.endpoint = subprocess.check_output(
        [f"{node.cluster.bin}/aspend-net", "--print-identity",
         "--state-dir", os.path.join(node.data, "net")], text=True).strip()
    node.start(extra=("--disable-gossip",))


def flooded(name, cluster, make, seconds=SECONDS, is_shunned=False):
    """Floods the first node while the second one comes to be elsewhere."""
    victim, honest, flooder = cluster.nodes
    restart_as_another(flooder)
    known = announcements(flooder, victim.endpoint)
    frames = make(known[base64.b32decode(honest.endpoint.upper() + "=" * (-len(honest.endpoint) % 8))])
    pids = [victim.daemon(daemon) for daemon in ("net", "gossip")]
    before = [processor_seconds(pid) for pid in pids]
    flood = Flood(flooder, victim.endpoint, frames, seconds)
    started = time.monotonic()
    flood.start()
    # Something to tell, a second into the flood.
    wait_for("the flood", lambda: flood.sent > 0 or flood.failure)
    cluster.moves += 1
    address = f"127.0.0.1:{7000 + cluster.moves}"
    honest.stop()
    honest.start(extra=("--advertise", address))
    up = time.monotonic()
    wait_for("the change", lambda: address in peers(victim)[2]["addresses"], 30)
    spread = time.monotonic() - up
    flood.join(seconds + 30)
    took = time.monotonic() - started
    assert not flood.is_alive() and flood.failure is None, flood.failure
    assert pids == [victim.daemon(daemon) for daemon in ("net", "gossip")], "a daemon has died"
    used = [(processor_seconds(pid) - earlier) / took * 100 for pid, earlier in zip(pids, before)]
    print(f"  {name}: net {used[0]:.1f} %, gossip {used[1]:.1f} % of a core over {took:.0f} s; "
          f"{flood.sent / 1e6:.1f} MB sent on {flood.streams} streams; "
          f"a change known {spread:.1f} s after its node was up", flush=True)
    # Measured are less than two, in a debug build.
    assert sum(used) < PERCENT_MAX, used
    # What is read is bounded by frames and by bytes, whichever is less; more streams are no more.
    size = sum(map(len, frames)) / len(frames)
    most = min((FRAMES_AT_ONCE + FRAMES_PER_SECOND * took) * size,
               BYTES_AT_ONCE + BYTES_PER_SECOND * took)
    assert flood.sent < most + UNDER_WAY + flood.streams * WINDOW, f"{flood.sent} bytes were taken"
    assert flood.streams <= STREAMS_AT_ONCE + took + 2, f"{flood.streams} streams were let in"
    if is_shunned:
        wait_for("the reason", lambda: "no link with it for a minute" in victim.cli(
            "why", "peer", flooder.endpoint).out.decode())
    return used


def a_flood_costs_little_and_others_are_heard():
    with Cluster(1, spares=2) as cluster:
        cluster.moves = 0
        garbage = frame(bytes([1, 200]) + os.urandom(100))
        malformed = frame(bytes([1, 6]) + os.urandom(100))
        flooded("replays of one announcement", cluster, lambda a: [gossip(a)])
        flooded("announcements of the future", cluster, lambda a: [
            gossip(dated(a, 600_000 + number)) for number in range(500)])
        flooded("the largest frames", cluster, lambda a: [records(a)])
        flooded("of a later version", cluster, lambda a: [garbage])
        flooded("forged ones", cluster, lambda a: [
            gossip(dated(a, number)) for number in range(1, 500)], is_shunned=True)
        flooded("garbage", cluster, lambda a: [malformed], is_shunned=True)


def who_floods_for_long_is_cut_off_and_why_is_told():
    with Cluster(1, spares=2) as cluster:
        cluster.moves = 0
        flooded("replays, for long", cluster, lambda a: [gossip(a)], LONG_SECONDS, is_shunned=True)
        why = cluster.nodes[0].cli("why", "peer", cluster.nodes[2].endpoint).out.decode()
        assert "more than gossip reads" in why, why


if __name__ == "__main__":
    run(a_flood_costs_little_and_others_are_heard, who_floods_for_long_is_cut_off_and_why_is_told)
