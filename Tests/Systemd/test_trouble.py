# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong on machines: said clearly, and mended by mending it."""

import os
import shutil
import socket
import struct
import subprocess
import time

from bed import DAEMONS, ROOT, SOCKETS, wait_for

# What a daemon waits at most before it tries again, and its start.
RETRY_SECONDS = 25
RAFT = ("aspend-raft.service", "aspend-raft.socket", "aspend-raft-peer.socket")
# How a status line begins when something is to be mended.
TROUBLE = ("cannot serve: ", "configuration error: ", "storage error: ")


def says(machine, unit, *words, seconds=10):
    """The status line comes to hold all the words; so does a record of the journal."""
    text = wait_for(f"{unit} to say {words}; it says '{machine.status_text(unit)}'",
                    lambda: (lambda t: t.startswith(TROUBLE)
                             and all(w in t for w in words) and t)(
                                 machine.status_text(unit)), seconds, 0.05)
    assert any(all(w in str(r["MESSAGE"]) for w in words)
               for r in machine.journal("-u", unit, "-n", "300")), words
    assert machine.is_active(unit), "it stays up and answers"
    return text


def mended(machine):
    """Starting the target is all that is needed."""
    machine.systemctl("start", "aspen.target")
    try:
        machine.wait_serving(RETRY_SECONDS)
        wait_for("its peers", lambda: "2 peers" in machine.status_text("aspend-net"),
                 RETRY_SECONDS, 0.1)
    except AssertionError as error:
        said = machine.sh("journalctl --no-pager -o short-precise -u 'aspend-*' -n 40", check=None).out
        raise AssertionError(f"{error}\n{machine.status_text('aspend-net')}\n{said}") from error
    assert machine.failed_units() == []


def a_missing_cookie(cluster):
    machine = cluster[2]
    machine.sh("mv /etc/aspen/credentials/cookie /root/cookie")
    try:
        machine.systemctl("restart", "aspend-net", check=None)
        text = says(machine, "aspend-net", "no cluster cookie")
    finally:
        machine.sh("mv /root/cookie /etc/aspen/credentials/cookie")
    mended(machine)
    return text


def a_key_that_others_can_read(cluster):
    machine = cluster[2]
    machine.sh("chmod 644 /var/lib/aspen/net/identity.key")
    try:
        machine.systemctl("restart", "aspend-net", check=None)
        text = says(machine, "aspend-net", "can be read by others", "chmod 600")
    finally:
        machine.sh("chmod 600 /var/lib/aspen/net/identity.key")
    mended(machine)
    return text


def a_wrong_setting(cluster):
    machine = cluster[2]
    machine.drop_in("aspend-raft.service", "90-wrong",
                    ["[Service]", "Environment=ASPEN_HEARTBEAT_INTERVAL_MS=soon"])
    machine.systemctl("daemon-reload")
    cursor = machine.cursor()
    try:
        machine.systemctl("restart", "aspend-raft", check=None)
        says(machine, "aspend-raft", "heartbeat-interval-ms", "soon")
        # Callers hear it, too.
        answer = machine.cli("kv", "get", "x", check=None, timeout_ms=3000)
        assert answer.code != 0 and "soon" in answer.err, (answer.code, answer.err)
        events = [r.get("ASPEN_EVENT") for r in machine.journal("--after-cursor", cursor)]
        assert "configuration-refused" in events, events
    finally:
        machine.remove_drop_in("aspend-raft.service", "90-wrong")
    mended(machine)
    return answer.err.strip()


def a_read_only_disk(cluster):
    machine = cluster[2]
    machine.sh("mount --bind /var/lib/aspen/raft /var/lib/aspen/raft && "
               "mount -o remount,bind,ro /var/lib/aspen/raft")
    try:
        machine.systemctl("restart", "aspend-raft", check=None)
        text = says(machine, "aspend-raft", "/var/lib/aspen/raft")
    finally:
        machine.sh("umount -l /var/lib/aspen/raft")
    mended(machine)
    return text


def a_full_disk(cluster):
    machine = cluster[2]
    # The sockets, too: what comes from other nodes would have it started while its files are moved.
    machine.systemctl("stop", *RAFT)
    # Without what was kept back on the large file system: it would last for long on the small one.
    machine.sh("mkdir -p /mnt/small && mount -t tmpfs -o size=160m tmpfs /mnt/small && "
               "cp -a /var/lib/aspen/raft/. /mnt/small/ && rm -f /mnt/small/reserve && chown aspend-raft: /mnt/small && "
               "chmod 700 /mnt/small && mount --bind /mnt/small /var/lib/aspen/raft")
    machine.systemctl("start", "aspen.target")
    machine.wait_serving()
    cursor = machine.cursor()
    before = machine.daemon_pid("aspend-raft")
    machine.sh("head -c 200M /dev/zero >/mnt/small/filler", check=None)
    load = cluster.load(machines=[cluster[1], cluster[3]], kind="put")
    try:
        event = wait_for("the event disk-full", lambda: [
            r for r in machine.journal("--after-cursor", cursor)
            if r.get("ASPEN_EVENT") == "disk-full"], 20, 0.5)[0]
        text = wait_for("a status line that says it", lambda: (
            lambda t: "disk full" in t and t)(machine.status_text("aspend-raft")), 20)
        load.finish_quietly()
        assert cluster[1].leader(), "the others go on"
    finally:
        machine.sh("rm -f /mnt/small/filler")
    wait_for("a status line without it", lambda: "disk full" not in machine.status_text(
        "aspend-raft"), 5)
    mended(machine)
    assert machine.daemon_pid("aspend-raft") == before, "the daemon was restarted"
    machine.systemctl("stop", *RAFT)
    machine.sh("umount /var/lib/aspen/raft && rm -rf /var/lib/aspen/raft/* && "
               "cp -a /mnt/small/. /var/lib/aspen/raft/ && umount /mnt/small")
    mended(machine)
    return f"{event['MESSAGE']} | {text}"


def a_clock_set_back(cluster):
    """Machines here share their clock, which must not be set: a daemon is shown another time."""
    machine = cluster[2]
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
    if not os.path.exists(machine.disk + library):
        return "NOT SEEN: the image has no libfaketime"
    machine.drop_in("aspend-raft.service", "90-clock", [
        "[Service]", f"Environment=LD_PRELOAD={library}", "Environment=FAKETIME=-30d",
        "Environment=FAKETIME_DONT_FAKE_MONOTONIC=1", "Environment=DONT_FAKE_MONOTONIC=1",
        "Environment=FAKETIME_DISABLE_SHM=1"])
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "aspend-raft")
    machine.wait_serving()
    maps = machine.sh(f"cat /proc/{machine.daemon_pid('aspend-raft')}/maps").out
    assert "libfaketime" in maps, "the daemon sees the true time"
    machine.cli("kv", "set", "in-the-past", "1")
    assert cluster[1].cli("kv", "get", "in-the-past").out.strip() == "1"
    machine.remove_drop_in("aspend-raft.service", "90-clock")
    mended(machine)
    return "30 days back: serves as before"


def caller():
    """Waits in the kernel for at most 5 s. (With settimeout() Python connects without waiting, and
    in the moment of a daemon's start, when NIO shortens the queue to 128, that is EAGAIN.)"""
    s = socket.socket(socket.AF_UNIX)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 5, 0))
    return s


def floods_of_connections_leave_the_sockets_alive(cluster):
    machine = cluster[3]
    figures = {}
    for name in ("net.sock", "raft.sock", "raft.peer.sock"):
        path = machine.host_path(f"/run/aspen/{name}")
        began = time.monotonic()
        made = 0
        for _ in range(1000):
            with caller() as s:
                s.connect(path)
                made += 1
        figures[name] = f"{made} in {time.monotonic() - began:.2f} s"
        assert time.monotonic() - began < 5
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for number in range(1000):
            s.sendto(bytes([number % 256]) * 1200, (machine.address, 7700))
    # And all at the same time, while the daemon is away: whom they wait for is started by them.
    for name, daemon in (("net.sock", "aspend-net"), ("raft.sock", "aspend-raft"),
                         ("raft.peer.sock", "aspend-raft")):
        path = machine.host_path(f"/run/aspen/{name}")
        # What comes from other nodes may have it started in the same moment: that ends this job.
        machine.systemctl("stop", f"{daemon}.service", check=None)
        crowd = []
        for _ in range(1000):
            crowd.append(caller())
            crowd[-1].connect(path)
        for s in crowd:
            s.close()
        wait_for(f"{daemon}, for {name}", lambda: machine.is_active(daemon), 30, 0.1)
        figures[f"{name}, nobody there"] = f"{len(crowd)} at a time"
    machine.systemctl("stop", "aspend-raft.service", "aspend-net.service", check=None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for number in range(1000):
            s.sendto(bytes([number % 256]) * 1200, (machine.address, 7700))
    wait_for("aspend-net, for its datagrams", lambda: machine.is_active("aspend-net"), 30, 0.1)
    mended(machine)
    for unit in SOCKETS:
        assert machine.is_active(unit), unit
    return figures


def fifty_crashes_in_a_row_leave_the_units_alive(cluster):
    machine = cluster[3]
    took = {}
    for daemon in DAEMONS:
        began = time.monotonic()
        for _ in range(50):
            pid = wait_for("a process", lambda: machine.daemon_pid(daemon), 10)
            machine.sh(f"kill -KILL {pid}", check=None)
            wait_for("its end", lambda: machine.daemon_pid(daemon) != pid, 10)
        took[daemon] = f"{time.monotonic() - began:.1f} s"
    assert machine.failed_units() == []
    machine.wait_serving()
    # The one that was killed last may be on its way yet.
    for unit in (*SOCKETS, *(f"{d}.service" for d in DAEMONS)):
        wait_for(unit, lambda: machine.is_active(unit), 20, 0.1)
    machine.cli("kv", "set", "after", "fifty")
    # Nobody but systemd gave a hand.
    restarts = {d: machine.show(f"{d}.service", "NRestarts")["NRestarts"] for d in DAEMONS}
    return f"{took}, restarts counted {restarts}"


# Stands in front of libsystemd: the process dies in the moment that it would say READY.
DIES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
int sd_notify(int unset, const char *state) {
    int (*real)(int, const char *) = (int (*)(int, const char *))dlsym(RTLD_NEXT, "sd_notify");
    if (strncmp(state, "READY=1", 7) == 0) raise(SIGKILL);
    return real ? real(unset, state) : 0;
}
"""


def a_daemon_that_dies_of_its_start_costs_little(cluster):
    """Its processes follow one another at once, but not for long; mended, it is there by itself."""
    machine = cluster[3]

    def restarts():
        return int(machine.show("aspend-raft.service", "NRestarts")["NRestarts"])
    library = "/usr/lib/aspen/dies.so"
    subprocess.run([shutil.which("cc") or "clang", "-shared", "-fPIC", "-x", "c", "-o",
                    machine.disk + library, "-", "-ldl"], input=DIES.encode(), check=True)
    machine.drop_in("aspend-raft.service", "90-dies",
                    ["[Service]", f"Environment=LD_PRELOAD={library}"])
    machine.systemctl("daemon-reload")
    try:
        machine.systemctl("restart", "--no-block", "aspend-raft")
        began = time.monotonic()
        text = wait_for("its status line", lambda: (
            lambda t: t.startswith("started too often") and t)(
                machine.status_text("aspend-raft")), 60, 0.05)
        fast = time.monotonic() - began
        free = restarts()
        before, processor, began = free, machine.processor_seconds(), time.monotonic()
        wait_for("six more starts", lambda: restarts() >= before + 6, 60, 0.2)
        took = time.monotonic() - began
        # One a second; without a pace they would take half a second together.
        assert took > 3, f"6 starts in {took:.1f} s"
        used = (machine.processor_seconds() - processor) / took
        assert any("started too often" in str(r["MESSAGE"])
                   for r in machine.journal("-u", "aspend-raft", "-n", "100"))
    finally:
        machine.remove_drop_in("aspend-raft.service", "90-dies")
        machine.sh(f"rm {library}")
    mended(machine)
    return (f"{free} starts in {fast:.1f} s, then 6 in {took:.1f} s at {used:.0%} of a processor | "
            f"{text}")


# The daemon takes long to be ready, as for a long log; EXTEND_TIMEOUT_USEC is what it says before.
LATE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>
int sd_notify(int unset, const char *state) {
    int (*real)(int, const char *) = (int (*)(int, const char *))dlsym(RTLD_NEXT, "sd_notify");
    if (strncmp(state, "READY=1", 7) == 0) sleep(6);
    return real ? real(unset, state) : 0;
}
"""


def a_long_recovery_is_given_time(cluster):
    """Ready after 6 s where a start may take 3: nobody kills it, for it has asked for more."""
    machine = cluster[3]
    library = "/usr/lib/aspen/late.so"
    subprocess.run([shutil.which("cc") or "clang", "-shared", "-fPIC", "-x", "c", "-o",
                    machine.disk + library, "-", "-ldl"], input=LATE.encode(), check=True)
    machine.drop_in("aspend-raft.service", "90-late", [
        "[Service]", "TimeoutStartSec=3s", f"Environment=LD_PRELOAD={library}"])
    machine.systemctl("daemon-reload")
    try:
        began = time.monotonic()
        machine.systemctl("restart", "aspend-raft")
        took = time.monotonic() - began
        shown = machine.show("aspend-raft.service", "NRestarts", "Result")
        assert took >= 6 and shown == {"NRestarts": "0", "Result": "success"}, (took, shown)
    finally:
        machine.remove_drop_in("aspend-raft.service", "90-late")
        machine.sh(f"rm {library}")
        machine.systemctl("restart", "aspend-raft")
    mended(machine)
    return f"ready after {took:.1f} s"


def a_machine_without_ipv6_is_reached_by_ipv4(cluster):
    """Where PID 1 sees no IPv6 (and the interfaces have none) a bare port means IPv4."""
    machine = cluster[3]
    drop_in = machine.sh("cat /run/systemd/generator/aspend-net-quic.socket.d/50-listen.conf").out
    assert "\nListenDatagram=7700\n" in drop_in, drop_in

    def set_ipv6(disabled):
        subprocess.run(["nsenter", "-t", str(machine.pid), "-n", "sysctl", "-q", "-w",
                        f"net.ipv6.conf.all.disable_ipv6={disabled}"], check=True)

    def bound():
        machine.systemctl("daemon-reexec")
        machine.systemctl("stop", "aspen.target")
        wait_for("all units to stop", lambda: not any(
            machine.is_active(u) for u in (*SOCKETS, *DAEMONS)), 20, 0.1)
        mended(machine)
        return machine.sh("ss -H -u -l -n sport = 7700").out.split()[3]

    set_ipv6(1)
    # What a kernel without IPv6 lacks is how systemd knows one.
    machine.sh("mount -t tmpfs -o mode=555,size=4k none /proc/1/net")
    try:
        without = bound()
        assert without == "0.0.0.0:7700", without
        machine.cli("kv", "set", "by-ipv4", "4")
        assert cluster[1].cli("kv", "get", "by-ipv4").out.strip() == "4"
    finally:
        machine.sh("umount /proc/1/net")
        set_ipv6(0)
    again = bound()
    assert again in ("*:7700", "[::]:7700"), again
    return f"{without}, with IPv6 {again}"


def the_journal_can_be_asked(cluster):
    machine, term = cluster.leader()
    other = next(m for m in cluster.machines if m is not machine)
    machine.systemctl("restart", "aspend-raft")
    found = wait_for("a leader elected", lambda: [
        (m, r) for m in cluster.machines
        for r in m.journal("ASPEN_EVENT=leader-elected", f"ASPEN_TERM={term + 1}")], 20, 0.2)
    where, record = found[0]
    assert record["ASPEN_NODE"] == str(where.number), record
    assert record["MESSAGE_ID"] and record["_SYSTEMD_UNIT"] == "aspend-raft.service"
    assert record["SYSLOG_IDENTIFIER"] == "aspend-raft" and record["PRIORITY"] == "5"
    for m in cluster.machines:
        m.wait_serving()
    added = cluster[1].journal("ASPEN_EVENT=member-added")
    assert {"2", "3"} <= {r["ASPEN_PEER"] for r in added}, added
    lost = machine.journal("ASPEN_EVENT=leadership-lost")
    explained = where.run("journalctl", "-x", "--no-pager", "-n", "1",
                          f"MESSAGE_ID={record['MESSAGE_ID']}").out
    assert "was elected leader" in explained, explained
    catalogue = open(os.path.join(ROOT, "systemd", "aspen.catalog")).read()
    source = open(os.path.join(ROOT, "Sources/System/ServiceKit/JournalEvent.swift")).read()
    for line in source.splitlines():
        if '": "' not in line and line.strip().startswith("case .") and '"' in line:
            assert f"-- {line.split(chr(34))[1]}\n" in catalogue, line
    secret = cluster.cookie
    for m in cluster.machines:
        text = m.run("journalctl", "--no-pager", "-o", "export").out
        assert secret not in text, "the cookie is in the journal"
    # What was said of a peer by its number: who is restarted within the grace is not said to be gone,
    # so that its endpoint need not be named.
    said = other.journal(f"ASPEN_PEER={machine.number}")
    assert said and {r["_SYSTEMD_UNIT"] for r in said} <= {f"{d}.service" for d in DAEMONS}, said
    return f"leader-elected by node {where.number}, {len(lost)} × leadership-lost"


def a_flood_from_outside_does_not_fill_the_journal(cluster):
    machine = cluster[3]
    before = len(machine.journal("-u", "aspend-net", "-u", "aspend-raft"))
    for name in ("net.sock", "raft.sock"):
        path = machine.host_path(f"/run/aspen/{name}")
        for number in range(2000):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                try:
                    s.sendall(b"\x10\0\0\0" + os.urandom(16))
                except OSError:
                    pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for number in range(5000):
            s.sendto(os.urandom(1200), (machine.address, 7700))
    machine.cli("kv", "set", "after", "the flood")
    lines = len(machine.journal("-u", "aspend-net", "-u", "aspend-raft")) - before
    assert lines < 60, f"{lines} lines"
    return f"{lines} lines for 4,000 bad connections and 5,000 datagrams"


TESTS = (
    a_missing_cookie,
    a_key_that_others_can_read,
    a_wrong_setting,
    a_read_only_disk,
    a_full_disk,
    a_clock_set_back,
    floods_of_connections_leave_the_sockets_alive,
    fifty_crashes_in_a_row_leave_the_units_alive,
    a_daemon_that_dies_of_its_start_costs_little,
    a_long_recovery_is_given_time,
    a_machine_without_ipv6_is_reached_by_ipv4,
    the_journal_can_be_asked,
    a_flood_from_outside_does_not_fill_the_journal,
)
