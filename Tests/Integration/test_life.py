#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a cluster: every member replaced under load; backup, restore; a majority lost."""

import json
import os
import subprocess

from aspen_cluster import Cluster, wait_for, run


def every_member_is_replaced_under_load(clients=12, seconds=25):
    with Cluster(3, learners=3) as cluster:
        nodes = cluster.nodes
        arguments = [f"{cluster.bin}/aspen-bench", "audit", "--clients", str(clients), "--duration",
                     str(seconds), "--roam"]
        for node in nodes:
            arguments += ["--socket", node.socket]
        for node in nodes[:3]:
            arguments += ["--leaver", node.socket]
        load = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

        def cli(*words, through):
            return through.cli("cluster", *words, timeout_ms=15000, check=0)

        # To five.
        cli("promote", "--learner-id", "4", "--wait", through=nodes[3])
        cli("promote", "--learner-id", "5", "--wait", through=nodes[4])
        # One out, another in, in one step; leadership to one that stays.
        cli("promote", "--learner-id", "6", "--replace", "1", "--wait", through=nodes[5])
        cli("transfer", "--to", "4", through=nodes[3])
        leader, term = cluster.leader(nodes[4])
        assert leader is nodes[3], leader.number
        old = nodes[3].kill_daemon("raft")
        wait_for("another aspend-raft", lambda: nodes[3].daemon("raft") not in (None, old))
        later, _ = wait_for("another leader", lambda: (
            lambda found: found if found[1] > term else None)(cluster.leader(nodes[4])))
        why = nodes[4].cli("why", "leader", check=0).out.decode()
        assert f"node {later.number} became the leader" in why, why
        # To three: none of the first ones.
        cli("remove", "--node-id", "2", through=nodes[4])
        cli("leave", through=nodes[2])
        members = cli("members", "-o", "json", through=nodes[4]).json()["members"]
        assert [m["node_id"] for m in members if m["voter"]] == [4, 5, 6], members
        for node in nodes[:3]:
            node.kill_all()
        out, _ = load.communicate(timeout=120)
        report = json.loads(out.splitlines()[0])
        print(out.strip())
        assert load.returncode == 0, out
        assert report["refused"] == 0 and report["unknown"] == 0, report
        assert report["acknowledged"] > 500, report
        assert report["longest_gap_ms"] < 2000, report


def a_backup_becomes_a_new_cluster():
    with Cluster(3, learners=0) as cluster:
        path = os.path.join(cluster.directory, "the.backup")
        done = cluster.cli_bench("get", "--clients", "8", "--count", "100", "--keys", "5000",
                                 "--value-size", "100")
        assert done.returncode == 0, done.stderr
        before = cluster.nodes[0].cli("kv", "scan", "--all", "-o", "json", check=0).json()
        made = cluster.nodes[1].cli("cluster", "backup", path, "-o", "json", check=0).json()
        assert os.path.getsize(path) == made["bytes"] and not os.path.exists(path + ".partial")
        checked = cluster.cli("cluster", "backup", "--verify", path, "--json", check=0).json()
        assert checked == made, (checked, made)
        with open(path, "rb") as f:
            damaged = bytearray(f.read())
        damaged[len(damaged) // 2] ^= 4
        with open(path + ".damaged", "wb") as f:
            f.write(damaged)
        cluster.cli("cluster", "backup", "--verify", path + ".damaged", check=1)
        refused = cluster.nodes[0].cli("cluster", "restore", path)
        assert refused.code == 5 and "ALREADY_INITIALIZED" in refused.err, refused.__dict__
        from aspen_cluster import Node, free_ports
        fresh = Node(cluster, 9, free_ports(1)[0])
        cluster.nodes.append(fresh)
        fresh.start()
        begun = fresh.cli("cluster", "restore", path, "-o", "json", timeout_ms=60000, check=0).json()
        assert begun["revision"] == made["revision"] and begun["cluster_id"] != made["cluster_id"]
        after = fresh.cli("kv", "scan", "--all", "-o", "json", timeout_ms=20000, check=0).json()
        assert after["entries"] == before["entries"]
        fresh.kill_all()
        fresh.start()
        again = fresh.cli("kv", "scan", "--all", "-o", "json", timeout_ms=20000, check=0).json()
        assert again["entries"] == before["entries"]


def one_of_three_goes_on_alone():
    with Cluster(3) as cluster:
        nodes = cluster.nodes
        for number in range(20):
            nodes[0].cli("kv", "set", f"k{number}", "v", check=0)
        for node in nodes[1:]:
            node.kill_all()
        cluster_id = nodes[0].cli("cluster", "status", "-o", "json", check=0).json()["cluster_id"]
        wait_for("no leader", lambda: nodes[0].cli("cluster", "leader").code == 6)
        nodes[0].cli("cluster", "recover", "--cluster-id", cluster_id, check=2)
        nodes[0].cli("cluster", "recover", "--cluster-id", cluster_id,
                     "--yes-i-know-the-others-are-gone", check=0)
        assert nodes[0].cli("kv", "get", "k19", check=0).out == b"v\n"
        nodes[0].cli("kv", "set", "after", "1", check=0)
        # The others come back after all: two clusters, and neither hears the other.
        for node in nodes[1:]:
            node.start()
        wait_for("the old ones have a leader",
                 lambda: nodes[1].cli("cluster", "leader").code == 0)
        nodes[1].cli("kv", "get", "after", check=3)
        nodes[0].cli("kv", "get", "after", check=0)


if __name__ == "__main__":
    run(every_member_is_replaced_under_load, a_backup_becomes_a_new_cluster,
        one_of_three_goes_on_alone)
