# SPDX-License-Identifier: GPL-2.0-or-later
"""On a machine with control groups of version 2, as Debian has them; what only the kernel decides."""

import os
import re

from bed import EGRESS, PROGRAMS, ROOT, Cluster, compile_probe, package, probe_lines, wait_for


def cluster():
    """One machine: the other groups' machines have version 1 where the host does."""
    return Cluster(1, form=False, unified=True)


def installed(machine):
    machine.sh("cd /root && apt-get install -y ./*.deb && "
               f"aspen-cli setup --node-id 1 --listen :7700 --advertise {machine.address}:7700 && "
               "systemctl start aspen.target && aspen-cli cluster init", timeout=120)
    machine.wait_serving()


def the_packages_own_tests_pass(cluster):
    """What autopkgtest would run, on a machine that has nothing but the packages."""
    machine = cluster[1]
    machine.copy_packages([package("aspen-tools")])
    machine.sh("cd /root && apt-get install -y ./*.deb", timeout=120)
    folder = os.path.join(ROOT, "packaging", "debian", "tests")
    with open(os.path.join(folder, "control")) as f:
        names = re.findall(r"^Tests: (.+)$", f.read(), re.M)
    for name in names:
        machine.copy_packages([os.path.join(folder, name)])
        machine.sh(f"sh /root/{name}", timeout=120)
    assert not machine.is_active("aspend-raft"), "its clean-up stops what it started"
    return ", ".join(names)


def an_address_is_denied_even_to_who_has_a_socket(cluster):
    """With a socket that another directive would have refused, and the host's network in sight."""
    machine = cluster[1]
    installed(machine)
    probe = compile_probe()
    lifted = ["RestrictAddressFamilies=", "PrivateNetwork=no", "Environment=PROBE_ADDRESSES=1"]
    try:
        free = probe_lines(machine, "aspend-net", probe, [*lifted, "IPAddressDeny="])
        assert any("BAD IPAddressDeny" in line for line in free), f"it fails anyhow: {free}"
        for unit in PROGRAMS:
            if unit == EGRESS:
                continue  # whom it may reach is the administrator's to say
            lines = probe_lines(machine, unit, probe, lifted)
            if any("succeeded" in line for line in lines):
                log = machine.run("journalctl", "-b", "--no-pager", "-g", "firewall", check=None).out
                if "does not support" in log:
                    return f"NOT SEEN: {log.strip().splitlines()[-1]}"
            assert not any("BAD" in line for line in lines), lines
    finally:
        os.unlink(probe)
    machine.systemctl("start", "aspen.target")
    machine.wait_serving()
    return lines[1]


def a_node_under_control_groups_of_version_2_lives(cluster):
    machine = cluster[1]
    for daemon in ("aspend-net", "aspend-raft"):
        old = machine.daemon_pid(daemon)
        machine.kill_daemon(daemon)
        wait_for(f"another {daemon}", lambda: machine.is_active(daemon)
                 and machine.daemon_pid(daemon) not in (0, old), 30, 0.1)
    machine.wait_serving()
    machine.cli("kv", "set", "two", "2")
    machine.systemctl("stop", "aspen.target")
    machine.systemctl("start", "aspen.target")
    machine.wait_serving()
    assert machine.cli("kv", "get", "two").out.strip() == "2"
    assert machine.failed_units() == []


TESTS = (
    the_packages_own_tests_pass,
    an_address_is_denied_even_to_who_has_a_socket,
    a_node_under_control_groups_of_version_2_lives,
)
