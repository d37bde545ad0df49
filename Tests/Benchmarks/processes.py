# SPDX-License-Identifier: GPL-2.0-or-later
"""What processes take, as the kernel tells: processor time, memory, disk."""

import os
import subprocess
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids):
    """User and system time of all threads of these processes so far. They must be alive."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def machine_cpu_seconds():
    """(busy, stolen) of all processors so far, whoever was busy; stolen: what a hypervisor gave to others."""
    with open("/proc/stat") as f:
        user, nice, system, _, _, interrupts, soft, stolen = map(int, f.readline().split()[1:9])
    return (user + nice + system + interrupts + soft) / TICKS, stolen / TICKS


def pss_bytes(pids):
    """Proportional set size: what is shared counts in parts."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            total += next(int(line.split()[1]) for line in f if line.startswith("Pss:")) * 1024
    return total


def disk_bytes(directory):
    """(allocated blocks, apparent sizes) of the files below a directory, as `du -B1` and
    `du -B1 --apparent-size` have it, directories left out."""
    allocated = apparent = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                found = os.lstat(os.path.join(where, name))
            except FileNotFoundError:
                continue
            allocated, apparent = allocated + found.st_blocks * 512, apparent + found.st_size
    return allocated, apparent


def run_counted(command, servers, env=None):
    """Runs a load to its end; `env` is added to this program's.

    Returns its output, and: seconds; CPU seconds of the servers meanwhile, and of the load itself; which
    share of all processors went to strangers (other processes, interrupts of nobody, the hypervisor).
    Raises RuntimeError when it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        before, started = cpu_seconds(servers), time.monotonic()
        machine_before = machine_cpu_seconds()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
                                   env={**os.environ, **(env or {})})
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.monotonic() - started
        servers_took = cpu_seconds(servers) - before
        busy, stolen = (now - then for now, then in zip(machine_cpu_seconds(), machine_before))
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        text, complaints = out.read(), errors.read()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}\n{text}{complaints}")
    own = usage.ru_utime + usage.ru_stime
    strangers = max(0, busy + stolen - servers_took - own) / (seconds * os.cpu_count())
    return text + complaints, {"seconds": seconds, "server_cpu_s": servers_took, "client_cpu_s": own,
                               "strangers_share": strangers}


# A turn in which strangers take more than this share of the processors is repeated, so often at most.
STRANGERS_SHARE_MAX = 0.2
TRIES = 3


def undisturbed(turn):
    """The first turn that strangers left alone, or, of a few, the one that they disturbed least: what is
    kept does not depend on how it went. `tries` says how many there were."""
    found = []
    while len(found) < TRIES:
        found.append(turn())
        if found[-1]["strangers_share"] <= STRANGERS_SHARE_MAX:
            break
    return {**min(found, key=lambda one: one["strangers_share"]), "tries": len(found)}


def machine(directory="/tmp"):
    """What a reader of figures must know of it."""
    def text(path):
        try:
            with open(path) as f:
                return f.read().strip()
        except OSError:
            return "unknown"
    cpu = next((line.split(":")[1].strip() for line in text("/proc/cpuinfo").splitlines()
                if line.startswith("model name")), "unknown")
    memory = next((int(line.split()[1]) // 1024 for line in text("/proc/meminfo").splitlines()
                   if line.startswith("MemTotal")), 0)
    mount = subprocess.run(["findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", "-T", directory],
                           stdout=subprocess.PIPE, text=True).stdout.strip()
    return {"kernel": os.uname().release, "cpu": cpu, "cores": os.cpu_count(),
            "memory_mb": memory, "disk": " ".join(mount.split())}
