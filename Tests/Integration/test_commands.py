#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What aspen-cli does to a real cluster, and says when it cannot."""

import os
import stat
import subprocess

from aspen_cluster import Cluster, Node, free_ports, run, wait_for


def every_key_goes_and_the_clusters_own_stay():
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        # The page from the first to the thousandth key reaches over what belongs to the cluster.
        for letter in "Ak":
            for page in range(8):
                node.cli("kv", "batch-write",
                         *[f"{letter}{page}{number:02}=v" for number in range(100)], check=0)
        root = subprocess.run([f"{cluster.bin}/aspen-token", "generate-root", "--out",
                               os.path.join(cluster.directory, "root.key")],
                              stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        node.cli("cluster", "trust-root", root, check=0)
        roots = node.cli("cluster", "trust-root", "--list", check=0).out
        assert root.encode() in roots, roots
        done = node.cli("kv", "delete", "--from", "")
        assert done.code == 0 and b"1600 keys" in done.out, (done.code, done.out, done.err)
        assert node.cli("kv", "scan", "--count", "--from", "", check=0).out == b"0\n"
        assert node.cli("cluster", "trust-root", "--list").out == roots


def backups_at_once_and_to_places_that_are_no_files():
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        done = cluster.cli_bench("load", "--keys", "20000", "--value-size", "1000")
        assert done.returncode == 0, done.stderr
        directory = os.path.join(cluster.directory, "backups")
        os.mkdir(directory)
        path = os.path.join(directory, "the.backup")
        command = [f"{cluster.bin}/aspen-cli", "--socket", node.socket, "cluster", "backup", path]
        for _ in range(3):
            both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
            assert [one.wait() for one in both] == [0, 0]
            node.cli("cluster", "backup", "--verify", path, check=0)
            assert os.listdir(directory) == ["the.backup"], os.listdir(directory)

        link = os.path.join(directory, "link")
        os.symlink("the.backup", link)
        os.truncate(path, 0)
        node.cli("cluster", "backup", link, check=0)
        assert os.path.islink(link)
        node.cli("cluster", "backup", "--verify", path, check=0)

        pipe = os.path.join(directory, "pipe")
        os.mkfifo(pipe)
        refused = node.cli("cluster", "backup", pipe, check=2)
        assert "is a pipe" in refused.err, refused.err
        assert stat.S_ISFIFO(os.stat(pipe).st_mode)

        one = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for("it to have begun", lambda: len(os.listdir(directory)) > 3)
        one.terminate()
        one.wait()
        assert sorted(os.listdir(directory)) == ["link", "pipe", "the.backup"], os.listdir(directory)


def without_a_majority_every_command_says_so():
    with Cluster(3) as cluster:
        first = cluster.nodes[0]
        said = first.cli("why", "member", "1", check=0).out.decode()
        assert "membership" in said, said
        assert "leaving node" not in said, said
        for node in cluster.nodes[1:]:
            node.kill_all()
        wait_for("no leader", lambda: first.cli("cluster", "leader").code == 6)
        for words in (("kv", "set", "a", "1"), ("lease", "grant", "--ttl", "30s"),
                      ("kv", "get", "a")):
            done = first.cli(*words, timeout_ms=3000)
            assert done.code == 6, (words, done.code)
            assert "no leader could be reached" in done.err, (words, done.err)
        fresh = Node(cluster, 9, free_ports(1)[0])
        cluster.nodes.append(fresh)
        fresh.start()
        for area in ("cluster", "why"):
            done = fresh.cli(area, "leader")
            assert done.code == 6 and "cluster init" in done.err, (area, done.code, done.err)


if __name__ == "__main__":
    run(every_key_goes_and_the_clusters_own_stay, backups_at_once_and_to_places_that_are_no_files,
        without_a_majority_every_command_says_so)
