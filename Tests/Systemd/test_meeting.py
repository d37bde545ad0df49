# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that know a cookie and no address find each other, and become a cluster."""

import concurrent.futures
import os
import time

from bed import Cluster, testbed, wait_for

LINK = [1, 2, 3]


def cluster():
    return Cluster(4, form=False)


def on_all(machines, work):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(work, machines))


def peers(machine):
    """{node id: line} of those that it has heard itself say who they are."""
    answer = machine.cli("peers", "list", "-o", "json", check=None)
    if answer.code != 0:
        return {}
    return {line["node_id"]: line for line in answer.json()["peers"]
            if line["last_seen_ms"] is not None and line["state"] in ("alive", "connected")}


def know_each_other(machines, seconds=30.0):
    """Gives the seconds that it took."""
    started = time.monotonic()
    wanted = {machine.number for machine in machines}
    wait_for("all to know all", lambda: all(
        wanted - {machine.number} <= set(peers(machine)) for machine in machines), seconds)
    return time.monotonic() - started


def voters(machine):
    answer = machine.cli("cluster", "status", "-o", "json", check=None)
    return sorted(n["node_id"] for n in answer.json()["nodes"] if n["is_voter"]) if not answer.code else []


def set_up(machine, cookie, *options):
    machine.write("/root/cookie", cookie, mode=0o600)
    machine.sh("cd /root && apt-get install -y ./*.deb && aspen-cli setup --cookie-file cookie "
               f"--node-id {machine.number} {' '.join(options)} && aspen-cli config check",
               timeout=120)


def three_machines_with_a_cookie_are_a_cluster(cluster):
    """No address is typed anywhere, nor written into a file."""
    machines = [cluster[number] for number in LINK]
    cluster.cookie = os.urandom(32).hex()
    on_all(machines, lambda machine: set_up(machine, cluster.cookie, "--auto-join"))
    on_all(machines, lambda machine: machine.systemctl("start", "aspen.target"))
    took = know_each_other(machines)
    for machine in machines:
        assert machine.address not in machine.sh("cat /etc/aspen/aspen.toml.d/*").out
    machines[0].cli("cluster", "init")
    started = time.monotonic()
    wait_for("three voters", lambda: voters(machines[0]) == LINK)
    became = time.monotonic() - started
    for machine in machines:
        machine.wait_serving()
        assert not machine.failed_units(), machine.failed_units()
    machines[1].cli("kv", "set", "met", "yes")
    assert machines[2].cli("kv", "get", "met").out == "yes\n"
    return f"all know all {took:.1f} s after the start, three voters {became:.1f} s after init"


def one_bootstrap_address_joins_two_links(cluster):
    """The fourth machine hears no multicast of the others, nor they its; it knows where one of them is."""
    far = cluster[4]
    testbed("deaf", "4")
    try:
        first = cluster[1].cli("cluster", "endpoint").out.strip()
        set_up(far, cluster.cookie, "--auto-join", "--peers", first)
        far.systemctl("start", "aspen.target")
        took = know_each_other([cluster[number] for number in (*LINK, 4)])
        found = peers(cluster[3])[4]["found_by"]
        assert "mdns" not in found and "gossip" in found, found
        wait_for("it is a member, and no voter: four would agree more slowly, for nothing",
                 lambda: len(cluster[1].status()["nodes"]) == 4)
        assert voters(cluster[1]) == LINK
    finally:
        testbed("unpart")
    return f"all know all {took:.1f} s after its start"


def a_machine_with_another_address_is_back(cluster):
    """Nobody tells anybody."""
    moved, leader = cluster[3], cluster.leader()[0]
    if leader is moved:
        leader.cli("cluster", "transfer", "--to", "1")
        leader = cluster[1]

    def is_there():
        return any(node["node_id"] == 3 and node["reachable"] for node in leader.status()["nodes"])

    wait_for("it is there", is_there)
    moved.sh("ip addr del 10.77.0.3/24 dev host0 && ip addr add 10.77.0.33/24 dev host0")
    started = time.monotonic()
    wait_for("its new address is known", lambda: any(
        address.startswith("10.77.0.33:") for address in peers(leader)[3]["addresses"]))
    told = time.monotonic() - started
    wait_for("it is a voter that can be reached", is_there)
    moved.cli("kv", "set", "moved", "yes")
    took = time.monotonic() - started
    moved.sh("ip addr del 10.77.0.33/24 dev host0 && ip addr add 10.77.0.3/24 dev host0")
    wait_for("it is back where it was", lambda: is_there() and any(
        address.startswith("10.77.0.3:") for address in peers(leader)[3]["addresses"]))
    return f"told of after {told:.1f} s, back {took:.1f} s after it has moved"


def a_cookie_is_replaced(cluster):
    """As Joining.md says, on one machine after the other; nobody loses anybody."""
    fresh = os.urandom(32).hex()
    machines = [cluster[number] for number in (*LINK, 4)]
    place = "/etc/aspen/credentials"
    steps = (
        f"umask 077; cp /root/fresh {place}/cookie-accepted",
        f"mv {place}/cookie {place}/old && mv {place}/cookie-accepted {place}/cookie && "
        f"mv {place}/old {place}/cookie-accepted",
        f"rm {place}/cookie-accepted")
    for machine in machines:
        machine.write("/root/fresh", fresh + "\n", mode=0o600)
    for step in steps:
        for machine in machines:
            machine.sh(f"{step} && aspen-cli config check && systemctl restart aspend-net")
            machine.wait_serving()
            wait_for("all are there", lambda: all(
                node["reachable"] for node in machine.status()["nodes"]))
    know_each_other(machines)
    for machine in machines:
        log = machine.run("journalctl", "-b", "--no-pager").out
        assert fresh not in log and cluster.cookie not in log, "a cookie is in the journal"
    cluster.cookie = fresh
    return f"{len(steps)} × {len(machines)} restarts of aspend-net"


TESTS = (
    three_machines_with_a_cookie_are_a_cluster,
    one_bootstrap_address_joins_two_links,
    a_machine_with_another_address_is_back,
    a_cookie_is_replaced,
)
