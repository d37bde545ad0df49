# SPDX-License-Identifier: GPL-2.0-or-later
"""What each daemon cannot do, and who may do what over its sockets."""

import os
import re
import shutil

from bed import DAEMONS, HERE, ROOT, compile_probe, wait_for

EXPOSURE_MAX = 0.5
# Directives of the sandbox that bound amounts or say how, not what: nothing to try.
NOT_PROBED = {
    "User", "Group", "IPAddressDeny", "MemoryMax", "TasksMax", "ReadWritePaths",
}


def every_unit_is_barely_exposed(cluster):
    figures = {}
    for unit in (*DAEMONS, "aspen-config-check"):
        text = cluster[1].run("systemd-analyze", "security", "--no-pager", f"{unit}.service").out
        figures[unit] = float(re.search(r"exposure level for \S+: ([0-9.]+)", text).group(1))
        assert figures[unit] <= EXPOSURE_MAX, text
    return figures


def the_units_are_sound(cluster):
    """systemd finds no fault but for manual pages, which come with the packages."""
    units = sorted(u for u in os.listdir(os.path.join(ROOT, "systemd"))
                   if u.endswith((".service", ".socket", ".target", ".slice")))
    found = cluster[1].run("systemd-analyze", "verify", *units, check=None).err
    faults = [line for line in found.splitlines() if "Command 'man " not in line]
    assert faults == [], faults
    return f"{len(units)} units"


def directives(daemon):
    """Those below the heading of the sandbox."""
    with open(os.path.join(ROOT, "systemd", f"{daemon}.service")) as f:
        text = f.read().split("--- The sandbox", 1)[1]
    names = {line.split("=", 1)[0] for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}
    return names - NOT_PROBED


def a_probe_in_the_daemons_place_can_do_nothing(cluster):
    machine = cluster[2]
    probe = compile_probe()
    figures, filters = {}, {}
    try:
        for daemon in DAEMONS:
            program = f"{machine.disk}/usr/libexec/aspen/{daemon}"
            machine.systemctl("stop", "aspen.target")
            shutil.move(program, program + ".real")
            shutil.copy(probe, program)
            os.chmod(program, 0o755)
            machine.drop_in(f"{daemon}.service", "99-probe",
                            ["[Service]", "Type=oneshot", "Restart=no"])
            machine.systemctl("daemon-reload")
            cursor = machine.cursor()
            try:
                machine.systemctl("start", daemon, check=None)
                lines = wait_for("the probe's end", lambda: (
                    lambda found: "PROBE end" in found and found)(
                        [r["MESSAGE"] for r in machine.journal("-u", daemon, "--after-cursor",
                                                               cursor)
                         if str(r["MESSAGE"]).startswith("PROBE")]), 20, 0.2)
            finally:
                machine.systemctl("stop", "aspen.target")
                shutil.move(program + ".real", program)
                machine.remove_drop_in(f"{daemon}.service", "99-probe")
            bad = [line for line in lines if line.startswith("PROBE BAD")]
            assert bad == [], bad
            filters[daemon] = next(int(line.split()[-1]) for line in lines if "filters:" in line)
            tried = {line.split()[2] for line in lines if line.startswith("PROBE ok")}
            assert directives(daemon) <= tried, (
                f"{daemon}: no probe tries what these forbid: {directives(daemon) - tried}")
            figures[daemon] = f"{len(lines) - 1} attempts, {len(directives(daemon))} directives"
    finally:
        os.unlink(probe)
        machine.systemctl("start", "aspen.target")
        machine.wait_serving()
    for daemon, count in filters.items():
        # The program adds one of its own to those of its unit: it can start no other program.
        assert seccomp_filters(machine, daemon) == count + 1, (daemon, count)
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
        figures[daemon] = f"{status['Seccomp_filters'].strip()} seccomp filters"
    return figures


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

    sockets = [f"/run/aspen/{name}" for name in ("net.sock", "raft.sock", "raft.peer.sock")]
    matrix = {}
    for user in ("stranger", "user", "admin", "aspend-net", "aspend-raft"):
        matrix[user] = "".join("y" if connects(user, path) else "n" for path in sockets)
    assert matrix == {"stranger": "nnn", "user": "yyn", "admin": "yyn", "aspend-net": "yyy",
                      "aspend-raft": "yyn"}, matrix
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
    machine.systemctl("start", "aspen-config-check")
    said = [r["MESSAGE"] for r in machine.journal("-t", "aspen-config-check", "--after-cursor",
                                                  cursor)]
    assert said == [], said

TESTS = (
    every_unit_is_barely_exposed,
    the_units_are_sound,
    a_probe_in_the_daemons_place_can_do_nothing,
    the_running_daemons_are_confined,
    only_members_reach_the_sockets,
    an_encrypted_cookie_works,
    the_nodes_key_may_be_a_credential,
    the_configuration_check_is_quiet,
)
