# SPDX-License-Identifier: GPL-2.0-or-later
"""What each daemon cannot do, and who may do what over its sockets."""

import concurrent.futures
import os
import re

import test_kernel
import test_life
import test_trouble
from bed import (DAEMONS, EGRESS, HERE, PROGRAMS, ROOT, SOCKETS, compile_probe, instance, probe_lines,
                 wait_for)

EXPOSURE_MAX = 0.5
# It is in the machine's network and opens sockets there.
EGRESS_EXPOSURE_MAX = 1.3


def every_unit_is_barely_exposed(cluster):
    figures = {}
    for unit in PROGRAMS:
        text = cluster[1].run("systemd-analyze", "security", "--no-pager",
                              f"{instance(unit)}.service").out
        figures[unit] = float(re.search(r"exposure level for \S+: ([0-9.]+)", text).group(1))
        assert figures[unit] <= (EGRESS_EXPOSURE_MAX if unit == EGRESS else EXPOSURE_MAX), text
    return figures


def the_units_are_sound(cluster):
    """systemd finds no fault but for manual pages, which come with the packages."""
    units = sorted(u for u in os.listdir(os.path.join(ROOT, "systemd"))
                   if u.endswith((".service", ".socket", ".target", ".slice")))
    found = cluster[1].run("systemd-analyze", "verify", *units, check=None).err
    faults = [line for line in found.splitlines() if "Command 'man " not in line]
    assert faults == [], faults
    return f"{len(units)} units"


def directives(unit):
    """All that a unit file says in its main section."""
    with open(os.path.join(ROOT, "systemd", unit)) as f:
        text = re.split(r"^\[(?:Service|Socket)\]$", f.read(), flags=re.M)[1]
    return {line.split("=", 1)[0] for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}


def a_probe_in_the_daemons_place_can_do_nothing(cluster):
    machine = cluster[2]
    probe = compile_probe()
    figures, filters = {}, {}
    try:
        for unit in PROGRAMS:
            # A small amount, so that the probe takes no more of the machine than that.
            lines = probe_lines(machine, unit, probe, ["MemoryMax=64M", "OOMPolicy=continue"])
            bad = [line for line in lines if line.startswith("PROBE BAD")]
            assert bad == [], bad
            filters[unit] = next(int(line.split()[-1]) for line in lines if "filters:" in line)
            tried = {line.split()[2] for line in lines if line.startswith("PROBE ok")}
            missing = directives(f"{unit}.service") - tried - set(PROVED_BY)
            assert not missing, f"{unit}: no probe tries what these forbid: {missing}"
            figures[unit] = f"{len(lines) - 2} attempts, {len(tried)} directives"
    finally:
        os.unlink(probe)
        machine.systemctl("start", "aspen.target")
        machine.wait_serving()
    for daemon in DAEMONS:
        # The program adds one of its own to those of its unit: it can start no other program.
        assert seccomp_filters(machine, daemon) == filters[daemon] + 1, (daemon, filters)
    return figures


def process_status(machine, daemon):
    text = machine.sh(f"cat /proc/{machine.daemon_pid(daemon)}/status").out
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def seccomp_filters(machine, daemon):
    return int(process_status(machine, daemon)["Seccomp_filters"])


def the_running_daemons_are_confined(cluster):
    """What only the programs themselves can bring about, and what inheriting cannot loosen."""
    machine = cluster[1]
    figures = {}
    for daemon in DAEMONS:
        status = process_status(machine, daemon)
        assert status["Seccomp"].strip() == "2" and status["NoNewPrivs"].strip() == "1"
        assert int(status["CapEff"], 16) == 0 and int(status["CapBnd"], 16) == 0
        user = machine.sh(f"stat -c %U /proc/{machine.daemon_pid(daemon)}/environ").out.strip()
        uid = machine.run("id", "-u", daemon).out.strip()
        assert status["Uid"].split() == [uid] * 4, status["Uid"]
        # Not dumpable: /proc/PID belongs to root, no debugger but root's.
        assert user == "root", user
        # Amounts are the unit's own here, not the probe's.
        with open(os.path.join(ROOT, "systemd", f"{daemon}.service")) as f:
            said = dict(re.findall(r"^(MemoryMax|TasksMax)=(\d+)", f.read(), re.M))
        shown = machine.show(f"{daemon}.service", "MemoryMax", "TasksMax", "Slice", "User")
        assert int(shown["MemoryMax"]) == int(said["MemoryMax"]) << 30, shown
        assert shown["TasksMax"] == said["TasksMax"] and shown["User"] == daemon, shown
        assert shown["Slice"] == "aspen-core.slice", shown
        group = status_group(machine, daemon)
        assert f"/aspen.slice/aspen-core.slice/{daemon}.service" in group, group
        figures[daemon] = f"{status['Seccomp_filters'].strip()} seccomp filters"
    return figures


def the_daemons_go_before_ordinary_services(cluster):
    """What the kernel has of CPUWeight=: a share counts among the children of one group only."""
    machine = cluster[1]

    def share(group):
        for hierarchy, file in (("/sys/fs/cgroup/cpu", "cpu.shares"),
                                ("/sys/fs/cgroup/cpu,cpuacct", "cpu.shares"),
                                ("/sys/fs/cgroup", "cpu.weight")):
            path = machine.host_path(f"{hierarchy}/{group}/{file}")
            if os.path.exists(path):
                with open(path) as f:
                    return int(f.read())
        return None

    shares = {group: share(group) for group in ("aspen.slice", "system.slice")}
    assert machine.show("aspen.slice", "CPUWeight")["CPUWeight"] == "200"
    if None in shares.values():
        return f"NOT SEEN: no controller of the processor in this machine, {shares}"
    assert shares["aspen.slice"] == 2 * shares["system.slice"], shares
    return shares


def who_copies_a_snapshot_steps_back(cluster):
    """The thread that reads the state for a backup has the lower priority that it asks for."""
    machine = cluster[1]
    tasks = machine.host_path(f"/proc/{machine.daemon_pid('aspend-raft')}/task")

    def niceness(thread):
        try:
            with open(f"{tasks}/{thread}/stat") as f:
                return int(f.read().rpartition(")")[2].split()[16])
        except (FileNotFoundError, ProcessLookupError):
            return 0  # it has ended meanwhile

    def seen_in_one_backup():
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            backup = pool.submit(machine.sh, "rm -f /root/copy && "
                                 "aspen-cli cluster backup /root/copy")
            seen = set()
            while not backup.done():
                seen |= {niceness(thread) for thread in os.listdir(tasks)}
            backup.result()
        return seen

    # The more there is to copy, the longer can it be seen.
    for number in range(20):
        machine.sh(f"head -c 1000000 /dev/urandom | aspen-cli kv set copied-{number} -")
    before = {niceness(thread) for thread in os.listdir(tasks)}
    assert before == {0}, before
    seen = wait_for("a thread that has stepped back", lambda: (
        lambda found: found if found - {0} else None)(seen_in_one_backup()), 30)
    assert seen == {0, 10}, seen
    machine.sh("rm -f /root/copy")
    return f"niceness {sorted(seen)}"


def status_group(machine, daemon):
    return machine.sh(f"cat /proc/{machine.daemon_pid(daemon)}/cgroup").out


def only_members_reach_the_sockets(cluster):
    machine = cluster[1]
    machine.sh("for u in stranger user admin; do id $u >/dev/null 2>&1 || "
               "useradd -M -s /bin/sh $u; done; "
               "usermod -aG aspen user; usermod -aG aspen-admin admin")

    def as_user(user, *arguments):
        return machine.run("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups",
                           "aspen-cli", "--timeout", "3000", *arguments, check=None)

    def connects(user, path):
        script = ("import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])")
        return machine.run("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups",
                           "python3", "-c", script, path, check=None).code == 0

    sockets = [f"/run/aspen/{name}"
               for name in ("net.sock", "raft.sock", "raft.peer.sock", "gossip.sock", "egress.sock")]
    matrix = {}
    for user in ("stranger", "user", "admin", "aspend-net", "aspend-raft", "aspend-gossip"):
        matrix[user] = "".join("y" if connects(user, path) else "n" for path in sockets)
    assert matrix == {"stranger": "nnnnn", "user": "yynyn", "admin": "yynyn", "aspend-net": "yyyyn",
                      "aspend-raft": "yynyn", "aspend-gossip": "yynyy"}, matrix
    assert as_user("stranger", "kv", "get", "x").code != 0
    for user in ("user", "admin"):
        assert as_user(user, "kv", "set", f"by-{user}", "1").code == 0
    # Membership is for administrators.
    members = [str(m.number) for m in cluster.machines]
    refused = as_user("user", "cluster", "change-membership", *members)
    assert refused.code == 4, (refused.code, refused.err)
    assert as_user("admin", "cluster", "change-membership", *members).code == 0
    # A daemon gets into the directory as a member of `aspen`, and has no right to keys by that.
    thief = as_user("aspend-net", "kv", "get", "by-user")
    assert thief.code == 4, (thief.code, thief.out, thief.err)
    return f"{matrix}; user: {refused.err.strip()[:90]}"


def an_encrypted_cookie_works(cluster):
    machine = cluster[3]
    machine.sh("systemd-creds encrypt --with-key=host --name=cookie "
               "/etc/aspen/credentials/cookie /etc/aspen/credentials/cookie.cred")
    machine.drop_in("aspend-net.service", "60-encrypted", [
        "[Service]", "LoadCredential=",
        "LoadCredentialEncrypted=cookie:/etc/aspen/credentials/cookie.cred"])
    machine.sh("mv /etc/aspen/credentials/cookie /root/cookie")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "aspend-net")
    wait_for("its peers", lambda: "2 peers" in machine.status_text("aspend-net"), 10)
    machine.sh("mv /root/cookie /etc/aspen/credentials/cookie")
    machine.remove_drop_in("aspend-net.service", "60-encrypted")
    machine.systemctl("restart", "aspend-net")
    machine.wait_serving()


def the_nodes_key_may_be_a_credential(cluster):
    """Moved to /etc/aspen/credentials/key it is used from there, and the node stays who it is."""
    machine, own = cluster[3], "/var/lib/aspen/net/identity.key"
    endpoint = machine.cli("cluster", "endpoint").out
    machine.sh(f"install -m 0600 {own} /etc/aspen/credentials/key; mv {own} /root/identity.key")
    try:
        machine.systemctl("restart", "aspend-net")
        assert machine.cli("cluster", "endpoint").out == endpoint
        machine.sh(f"[ ! -e {own} ]")
        machine.wait_serving()
        table = machine.run("aspen-cli", "config", "check").out
        assert "/etc/aspen/credentials/key" in table and own not in table, table
        machine.sh("chmod 0644 /etc/aspen/credentials/key")
        said = machine.run("aspen-cli", "config", "check", check=1).err
        assert "the node key is open to others" in said, said
        machine.sh(": >/etc/aspen/credentials/key; chmod 0600 /etc/aspen/credentials/key")
        machine.systemctl("restart", "aspend-net")
        status = machine.status_text("aspend-net")
        assert "the credential 'key'" in status and "is damaged" in status, status
    finally:
        machine.sh(f"rm -f /etc/aspen/credentials/key; mv -f /root/identity.key {own}")
        machine.systemctl("restart", "aspend-net")
    assert machine.cli("cluster", "endpoint").out == endpoint
    machine.wait_serving()
    return status[:80]


def the_configuration_check_is_quiet(cluster):
    """Nothing wrong, nothing said: no thread of its own asks for what the sandbox refuses."""
    machine = cluster[1]
    cursor = machine.cursor()
    machine.systemctl("restart", "aspen.target")
    machine.wait_serving()
    assert machine.is_active("aspen-config-check"), "it has run"
    said = [r["MESSAGE"] for r in machine.journal("-t", "aspen-config-check", "--after-cursor",
                                                  cursor)]
    assert said == [], said


def no_directive_is_without_a_test(cluster):
    """Of the sockets as of the services: what the probe cannot try has a test that is named here."""
    units = [f"{unit}.service" for unit in PROGRAMS] + list(SOCKETS)
    said = set().union(*(directives(unit) for unit in units))
    with open(os.path.join(HERE, "probe.c")) as f:
        probed = set(re.findall(r"(?:refused|must|report)\((?:[^\"]*, )?\"(\w+)\"", f.read()))
    missing = said - probed - set(PROVED_BY)
    assert not missing, f"nothing tries these: {missing}"
    stale = set(PROVED_BY) - said
    assert not stale, f"no unit says these: {stale}"
    return f"{len(said)} directives, {len(PROVED_BY)} by tests of their own"


# Directive: the test that fails without it.
PROVED_BY = {
    # Services
    "Type": test_life.killed_daemons_come_back,  # READY ends the start
    "NotifyAccess": the_units_are_sound,
    "ExecStart": the_running_daemons_are_confined,
    "Sockets": test_trouble.floods_of_connections_leave_the_sockets_alive,
    "User": the_running_daemons_are_confined,
    "Group": only_members_reach_the_sockets,
    "Slice": the_running_daemons_are_confined,
    "WorkingDirectory": a_probe_in_the_daemons_place_can_do_nothing,
    "LoadCredential": the_nodes_key_may_be_a_credential,
    "SetCredential": test_trouble.a_missing_cookie,
    "Restart": test_life.killed_daemons_come_back,
    "RemainAfterExit": the_configuration_check_is_quiet,  # active once it has run
    "RestartSec": test_life.killed_daemons_come_back,
    "TimeoutStartSec": test_life.stopping_the_target_stops_everything,
    "TimeoutStopSec": test_life.stopping_the_target_stops_everything,
    "KillSignal": test_life.restarting_net_is_not_noticed,
    "WatchdogSec": test_life.a_hung_daemon_is_killed_by_its_watchdog,
    "WatchdogSignal": test_life.a_hung_daemon_is_killed_by_its_watchdog,
    "FileDescriptorStoreMax": test_trouble.a_daemon_that_dies_of_its_start_costs_little,
    "LogRateLimitIntervalSec": test_trouble.a_flood_from_outside_does_not_fill_the_journal,
    "LogRateLimitBurst": test_trouble.a_flood_from_outside_does_not_fill_the_journal,
    "IPAddressDeny": test_kernel.an_address_is_denied_even_to_who_has_a_socket,
    "SyslogIdentifier": the_configuration_check_is_quiet,
    "PrivateMounts": every_unit_is_barely_exposed,
    "RuntimeMaxSec": test_life.dns_is_asked_through_egress,
    # Sockets
    "ListenStream": only_members_reach_the_sockets,
    "ListenDatagram": test_life.the_quic_socket_takes_every_address_and_large_bursts,
    "BindIPv6Only": test_life.the_quic_socket_takes_every_address_and_large_bursts,
    "ListenNetlink": test_life.nodes_on_the_link_find_each_other,
    "ReusePort": test_life.nodes_on_the_link_find_each_other,
    "ReceiveBuffer": test_life.the_quic_socket_takes_every_address_and_large_bursts,
    "SendBuffer": test_life.the_quic_socket_takes_every_address_and_large_bursts,
    "PassPacketInfo": test_life.what_one_writes_another_reads,
    "FileDescriptorName": test_life.what_one_writes_another_reads,
    "SocketMode": only_members_reach_the_sockets,
    "SocketUser": only_members_reach_the_sockets,
    "DirectoryMode": only_members_reach_the_sockets,
    "Backlog": test_trouble.floods_of_connections_leave_the_sockets_alive,
    "RemoveOnStop": test_life.stopping_the_target_stops_everything,
    "Service": test_life.a_daemon_starts_on_first_use,
    "Accept": test_life.dns_is_asked_through_egress,
    "MaxConnections": test_life.dns_is_asked_through_egress,
    "TriggerLimitIntervalSec": test_trouble.fifty_crashes_in_a_row_leave_the_units_alive,
}

TESTS = (
    every_unit_is_barely_exposed,
    the_units_are_sound,
    no_directive_is_without_a_test,
    a_probe_in_the_daemons_place_can_do_nothing,
    the_running_daemons_are_confined,
    the_daemons_go_before_ordinary_services,
    who_copies_a_snapshot_steps_back,
    only_members_reach_the_sockets,
    an_encrypted_cookie_works,
    the_nodes_key_may_be_a_credential,
    the_configuration_check_is_quiet,
)
