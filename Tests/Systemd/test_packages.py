# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages: upgrade and downgrade under load, removal, purge. Last: it ends the cluster."""

import os
import re
import shutil
import struct
import subprocess
import tempfile

from bed import DAEMONS, SUITE, package, version
from test_trouble import RAFT, mended, says

# What a purge may leave: accounts, and what the system's own tools note of packages and units.
LEFT_TO_OTHERS = re.compile(
    r"^/(etc/(passwd|shadow|group|gshadow)-?|etc/subuid-?|etc/subgid-?|etc/\.pwd\.lock|etc/ld\.so\.cache"
    r"|var/log/.*|var/cache/.*|var/lib/(dpkg|apt|systemd/(catalog|timers|random-seed))(/.*)?"
    r"|var/lib/man-db(/.*)?|root(/.*)?|tmp(/.*)?|var/tmp(/.*)?|run(/.*)?|proc(/.*)?|sys(/.*)?"
    r"|dev(/.*)?|etc/systemd/system/?|var/lib/?|etc/?)$")


ALL = (*SUITE, "aspen-tools")
DAEMON_UNITS = [f"{daemon}.service" for daemon in DAEMONS]
RAFT_DIRECTORY = "/var/lib/aspen/raft"
MB = 1_000_000


def packages_are_small_and_tell_of_themselves(cluster):
    """Sizes; a manual page for each program, unit and file of settings; completions."""
    download, files, sizes = 0, set(), {}
    for name in ALL:
        download += os.path.getsize(package(name))
        sizes[name] = int(subprocess.check_output(
            ["dpkg-deb", "-f", package(name), "Installed-Size"], text=True)) * 1024
        listed = subprocess.check_output(["dpkg-deb", "-c", package(name)], text=True)
        # A link's target comes behind its name.
        files |= {line.split(None, 5)[5].split(" -> ")[0].removeprefix(".")
                  for line in listed.splitlines()}
    assert download <= 40 * MB and sum(sizes.values()) <= 150 * MB, (download, sizes)
    pages = {os.path.basename(f) for f in files if "/man/man" in f}

    def has_page(name):
        return any(f"{name}.{section}.gz" in pages for section in range(1, 9))

    programs = {os.path.basename(f) for f in files if not f.endswith("/") and re.search(
        r"^/usr/bin/|^/usr/libexec/|/system-generators/", f)}
    units = {os.path.basename(f) for f in files
             if re.search(r"/systemd/system/[^/]+\.(service|socket|target|slice)$", f)}
    settings = {os.path.basename(f) for f in files if re.search(r"^/etc/.*[^/]$", f)}
    missing = [n for n in (*programs, *units, *settings) if not has_page(n)
               and not has_page(n.removesuffix(".target"))]
    assert len(programs) >= 8 and len(units) >= 10 and settings, (programs, units, settings)
    assert not missing, f"no manual page: {missing}"
    for program in (os.path.basename(f) for f in files if re.search("^/usr/bin/.", f)):
        for place in (f"bash-completion/completions/{program}", f"vendor-completions/_{program}",
                      f"vendor_completions.d/{program}.fish"):
            assert any(f.endswith(place) for f in files), f"no {place}"
    return (f"download {download / MB:.1f} MB, installed {sum(sizes.values()) / MB:.1f} MB, "
            f"{len(programs)} programs, {len(units)} units, {len(pages)} pages")


def renumbered(directory, number):
    """The suite once more, the same programs under another version number."""
    files = []
    for name in SUITE:
        tree = os.path.join(directory, name)
        subprocess.run(["dpkg-deb", "-R", package(name), tree], check=True)
        control = os.path.join(tree, "DEBIAN", "control")
        with open(control) as f:
            text = f.read()
        text = text.replace(f"Version: {version()}", f"Version: {number}")
        text = text.replace(f"(= {version()})", f"(= {number})")
        with open(control, "w") as f:
            f.write(text)
        files.append(os.path.join(directory, f"{name}_{number}_test.deb"))
        subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "-b", tree, files[-1]],
                       check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(tree)
    return files


def installed(machine):
    return machine.sh("dpkg-query -W -f '${Version}' aspen").out


def downgrade(machine):
    names = " ".join(f"./{os.path.basename(package(n))}" for n in SUITE)
    machine.sh(f"cd /root && apt-get install -y --allow-downgrades {names}", timeout=120)
    assert installed(machine) == version()


def hands_over_before_its_net_goes(machine, cursor):
    """aspend-net is told to stop when aspend-raft has stopped: a leader hands over through it."""
    order = [(r["UNIT"], r["MESSAGE"].split()[0])
             for r in machine.journal("_PID=1", "--after-cursor", cursor)
             if r.get("UNIT") in DAEMON_UNITS and r["MESSAGE"].startswith(("Stopping", "Stopped"))]
    assert sorted(order) == sorted((u, w) for u in DAEMON_UNITS for w in ("Stopping", "Stopped")), order
    raft, net = (f"{d}.service" for d in ("aspend-raft", "aspend-net"))
    assert order.index((raft, "Stopped")) < order.index((net, "Stopping")), order


def upgrade_and_downgrade_under_load_lose_nothing(cluster):
    """All three machines in turn, up and down again, while clients write and read back."""
    with tempfile.TemporaryDirectory() as directory:
        newer = renumbered(directory, version() + "+1")
        load = cluster.load(clients=3)
        for machine in cluster.machines:
            machine.copy_packages(newer)
            cursor = machine.cursor()
            machine.sh("cd /root && apt-get install -y ./*_test.deb", timeout=120)
            assert installed(machine) == version() + "+1"
            hands_over_before_its_net_goes(machine, cursor)
            machine.wait_serving()
        for machine in cluster.machines:
            cursor = machine.cursor()
            downgrade(machine)
            hands_over_before_its_net_goes(machine, cursor)
            machine.wait_serving()
        report = load.finish()
    for machine in cluster.machines:
        assert machine.failed_units() == []
    assert report["violations"] == 0, report
    return (f"{report['acknowledged']} writes acknowledged, {report['unknown']} unknown, longest "
            f"gap {report.get('longest_gap_ms')} ms")


def log_headers(machine):
    """(path, place, format) of each copy of each segment's header; a segment may be without yet."""
    for path in machine.sh(f"ls {RAFT_DIRECTORY}/log/log-*").out.split():
        with open(machine.host_path(path), "rb") as f:
            block = f.read(4096)
        for copy in range(0, 4096, 1024):
            if block.startswith(b"ASPENLOG", copy):
                yield path, copy + 8, struct.unpack_from("<I", block, copy + 8)[0]


def set_format_of_log(machine, version):
    for path, place, _ in list(log_headers(machine)):
        with open(machine.host_path(path), "r+b") as f:
            f.seek(place)
            f.write(struct.pack("<I", version))


def a_downgrade_below_the_data_is_refused_and_harms_nothing(cluster):
    """The data bear the mark of a program that is still to come; it is played by taking that away."""
    machine = cluster[2]
    tree = (f"cd {RAFT_DIRECTORY} && find . -type f ! -name LOCK ! -name events | sort | "
            "xargs sha256sum")
    # The sockets, too: what comes from other nodes would have it started.
    machine.systemctl("stop", *RAFT)
    now = max(version for _, _, version in log_headers(machine))
    set_format_of_log(machine, now + 1)
    before = machine.sh(tree).out
    machine.systemctl("start", "aspen.target")
    said = says(machine, "aspend-raft", "written by a newer program", f"format {now + 1}",
                "start a newer one")
    answer = machine.cli("kv", "get", "greeting", check=None, timeout_ms=3000)
    assert answer.code != 0 and "newer program" in answer.err, (answer.code, answer.err)
    cluster[1].cli("kv", "set", "meanwhile", "written")
    assert machine.sh(tree).out == before, "the older program has touched what it cannot read"
    assert machine.failed_units() == []
    # Over a daemon that refuses, a package installs as over any other.
    with tempfile.TemporaryDirectory() as directory:
        if machine.sh("ls /root/*_test.deb", check=None).code != 0:
            machine.copy_packages(renumbered(directory, version() + "+1"))
    machine.sh("cd /root && apt-get install -y ./*_test.deb", timeout=120)
    assert machine.status_text("aspend-raft").startswith("storage error"), "the mark is still there"
    machine.systemctl("stop", *RAFT)
    set_format_of_log(machine, now)
    mended(machine)
    assert machine.cli("kv", "get", "meanwhile").out.strip() == "written"
    downgrade(machine)
    machine.wait_serving()
    return said


def sockets_stay_through_an_upgrade(cluster):
    """The listening sockets are the very same ones before and after."""
    machine = cluster[2]
    sockets = "stat -c %i /run/aspen/raft.sock /run/aspen/net.sock"
    before = machine.sh(sockets).out
    machine.sh("cd /root && apt-get install -y --reinstall "
               + " ".join(f"./{os.path.basename(package(n))}" for n in SUITE), timeout=120)
    machine.wait_serving()
    assert machine.sh(sockets).out == before


def a_removal_leaves_the_data(cluster):
    machine = cluster[3]
    machine.sh("apt-get remove -y aspen", timeout=120)
    for unit in (*(f"{d}.service" for d in DAEMONS), "aspend-raft.socket"):
        assert not machine.is_active(unit), f"{unit} runs on"
    machine.sh("test -s /var/lib/aspen/net/identity.key && test -s /etc/aspen/credentials/cookie")
    machine.sh(f"cd /root && apt-get install -y ./{os.path.basename(package('aspen'))}",
               timeout=120)
    machine.systemctl("start", "aspen.target")
    machine.wait_serving()
    assert machine.cli("kv", "get", "greeting").out == "hello world\n"


def listing(machine):
    return set(machine.sh("find / -xdev -mindepth 1 2>/dev/null").out.splitlines())


def a_purge_leaves_nothing(cluster):
    machine = cluster[3]
    machine.sh("apt-get purge -y 'aspen*'", timeout=120)
    base = os.environ.get("TB_BASE", "/var/tmp/aspen-testbed/base")
    before = {"/" + os.path.relpath(os.path.join(folder, name), base)
              for folder, folders, files in os.walk(base) for name in folders + files}
    left = sorted(path for path in listing(machine) - before if not LEFT_TO_OTHERS.match(path))
    # The test bed's own: what a first boot writes.
    left = [path for path in left if not re.match(
        r"^/(etc/(hostname|hosts|machine-id|resolv\.conf|adjtime|systemd/network(/.*)?|\.updated)"
        r"|var/\.updated|var/lib/(systemd|private|dbus)(/.*)?|var/spool(/.*)?|mnt(/.*)?)$", path)]
    assert left == [], left[:20]
    mentions = [path for path in listing(machine)
                if "aspen" in path and not path.startswith(("/root", "/proc", "/sys", "/var/log",
                                                            "/var/cache", "/etc/aspen-testbed"))]
    assert mentions == [], mentions[:20]
    assert machine.failed_units() == []
    return "compared with the image, file by file"


TESTS = (
    packages_are_small_and_tell_of_themselves,
    upgrade_and_downgrade_under_load_lose_nothing,
    a_downgrade_below_the_data_is_refused_and_harms_nothing,
    sockets_stay_through_an_upgrade,
    a_removal_leaves_the_data,
    a_purge_leaves_nothing,
)
