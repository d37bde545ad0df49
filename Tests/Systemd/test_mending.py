# SPDX-License-Identifier: GPL-2.0-or-later
"""Damage and misconfiguration as an operator meets them: seen, said, mended without a hand."""

import os

from bed import DAEMONS, SOCKETS, wait_for
from test_trouble import RAFT, RETRY_SECONDS, mended, says


def event(machine, cursor, name, seconds=20):
    """The first record of that event after `cursor`."""
    return wait_for(f"the event {name}", lambda: [
        r for r in machine.journal("--after-cursor", cursor) if r.get("ASPEN_EVENT") == name],
        seconds, 0.2)[0]


def a_wrong_file_keeps_everything_from_starting(cluster):
    """What the daemons would meet one by one is said once, before anything starts."""
    machine = cluster[2]
    everything = (*DAEMONS, *SOCKETS)

    def started():
        return [unit for unit in everything if machine.show(unit, "ActiveState")["ActiveState"] != "inactive"]

    machine.systemctl("stop", "aspen.target")
    wait_for("all daemons to stop", lambda: not any(machine.is_active(d) for d in DAEMONS), 10)
    wrong = "/etc/aspen/aspen.toml.d/99-wrong.toml"
    machine.sh(f"printf '[raft]\\nheartbeat_intervall_ms = 500\\n' >{wrong}")
    cursor = machine.cursor()
    try:
        assert machine.systemctl("start", "aspen.target", check=None).code != 0, "it fails loudly"
        # Whatever was to be started with it has been, or will not be.
        wait_for("no job to be left", lambda: "No jobs" in machine.systemctl("list-jobs").out, 10)
        assert started() == [], started()
        text = "\n".join(str(r["MESSAGE"]) for r in machine.journal(
            "-u", "aspen-config-check", "--after-cursor", cursor))
        assert f"{wrong}:2" in text and "heartbeat_interval_ms" in text, text
        assert machine.failed_units() == ["aspen-config-check.service"], machine.failed_units()
        # Nor does one of them start by itself, or because somebody asks it something.
        assert machine.systemctl("start", "aspend-raft", check=None).code != 0
        assert machine.cli("kv", "get", "anything", check=None).code != 0
        assert started() == [], started()
    finally:
        machine.sh(f"rm {wrong}")
    mended(machine)
    return next(line for line in text.splitlines() if wrong in line)


def all_of_var_is_read_only(cluster):
    machine = cluster[2]
    machine.sh("mount --bind /var /var && mount -o remount,bind,ro /var")
    try:
        machine.systemctl("restart", "aspend-net", "aspend-raft", check=None)
        text = says(machine, "aspend-raft", "/var/lib/aspen/raft")
        assert machine.is_active("aspend-net"), "what needs no writing goes on, or says why not"
    finally:
        machine.sh("umount -l /var")
    mended(machine)
    return text


def flip(machine, path, places):
    """Other bits at each of these places of a file of the machine."""
    with open(machine.host_path(path), "r+b") as f:
        for place in places:
            f.seek(place)
            was = f.read(1)
            f.seek(place)
            f.write(bytes([was[0] ^ 0x55]))


def a_damaged_database_is_made_again(cluster):
    machine = cluster[2]
    for number in range(50):
        cluster[1].cli("kv", "set", f"kept-{number}", f"value {number}")
    machine.systemctl("stop", *RAFT)
    path = "/var/lib/aspen/raft/state/state.db"
    size = os.path.getsize(machine.host_path(path))
    flip(machine, path, range(600, size, 4096))
    cursor = machine.cursor()
    machine.systemctl("start", "aspen.target")
    found = event(machine, cursor, "damage-found")
    mended(machine)
    repaired = event(machine, cursor, "repaired", RETRY_SECONDS)
    assert machine.cli("kv", "get", "kept-49").out.strip() == "value 49"
    return f"{found['MESSAGE']}; {repaired['MESSAGE']}"


def a_damaged_log_is_repaired_by_the_others(cluster):
    machine = cluster[3]
    for number in range(50):
        cluster[1].cli("kv", "set", f"logged-{number}", f"value {number}")
    machine.systemctl("stop", *RAFT)
    directory = "/var/lib/aspen/raft/log"
    places = []
    for name in sorted(os.listdir(machine.host_path(directory))):
        path = f"{directory}/{name}"
        if os.path.getsize(machine.host_path(path)) < 1 << 20:
            continue
        with open(machine.host_path(path), "rb") as f:
            data = f.read()
        # In the midst of its records: what comes behind was acknowledged.
        places.append((path, data.find(b"logged-25")))
    path, place = next((p, at) for p, at in places if at > 0)
    flip(machine, path, [place])
    cursor = machine.cursor()
    machine.systemctl("start", "aspen.target")
    found = event(machine, cursor, "damage-found")
    mended(machine)
    repaired = event(machine, cursor, "repaired", RETRY_SECONDS)
    assert machine.cli("kv", "get", "logged-49").out.strip() == "value 49"
    return f"{found['MESSAGE']}; {repaired['MESSAGE']}"


TESTS = (
    a_wrong_file_keeps_everything_from_starting,
    all_of_var_is_read_only,
    a_damaged_database_is_made_again,
    a_damaged_log_is_repaired_by_the_others,
)
