#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A real cluster, through the CLI: what a user of one node sees from any other."""

import os
import random
import socket
import struct
import subprocess

from aspen_cluster import Cluster, free_ports, run


def any_node_gives_the_same_answer():
    with Cluster(3, learners=1) as cluster:
        for number, node in enumerate(cluster.nodes):
            node.cli("kv", "set", f"k{number}", f"v{number}", check=0)
            for other in cluster.nodes:
                assert other.cli("kv", "get", f"k{number}", check=0).out == f"v{number}\n".encode()
        for node in cluster.nodes:
            missing = node.cli("kv", "get", "missing")
            assert missing.code == 3 and missing.out == b"", missing.__dict__
        roles = {n["node_id"]: n["role"] for n in cluster.status()["nodes"]}
        assert sorted(roles) == [1, 2, 3, 4] and roles[4] == "learner", roles
        cluster.nodes[1].cli("kv", "delete", "k0", check=0)
        for node in cluster.nodes:
            node.cli("kv", "get", "k0", check=3)
        ticket = cluster.nodes[3].cli("cluster", "ticket", check=0).out.decode().strip()
        done = cluster.cli("--ticket", ticket, "kv", "get", "k1", check=0)
        assert done.out == b"v1\n"


def bytes_are_bytes():
    with Cluster(3) as cluster:
        one, two = cluster.nodes[:2]
        values = {
            "empty": b"", "nul": b"a\0b\0", "invalid": b"\xff\xfe\x80", "newline": b"a\n",
            "full": os.urandom(1_048_576),
        }
        for name, value in values.items():
            path = os.path.join(cluster.directory, name)
            with open(path, "wb") as f:
                f.write(value)
            one.cli("kv", "set", "-f", path, name, check=0)
            assert two.cli("kv", "get", name, "--raw", check=0).out == value, name
        path = os.path.join(cluster.directory, "over")
        with open(path, "wb") as f:
            f.write(b"x" * 1_048_577)
        refused = one.cli("kv", "set", "-f", path, "over")
        assert refused.code in (1, 2) and "1048576" in refused.err.replace(",", ""), refused.err
        assert one.cli("kv", "set", "k" * 1024, "v").code == 0
        refused = one.cli("kv", "set", "k" * 1025, "v")
        assert refused.code in (1, 2) and "1024" in refused.err.replace(",", ""), refused.err


def a_long_scan_is_complete():
    with Cluster(3) as cluster:
        # A read load begins by writing its whole key space.
        done = cluster.cli_bench("get", "--clients", "8", "--count", "100", "--keys", "25000",
                                 "--value-size", "16")
        assert done.returncode == 0, done.stderr
        for node in cluster.nodes:
            out = node.cli("kv", "scan", "--all", "--keys-only", "-o", "json", check=0).json()
            keys = [entry["key"] for entry in out["entries"]]
            assert len(keys) == 25000 and keys == sorted(set(keys)), len(keys)


def a_data_directory_has_one_node():
    with Cluster(1) as cluster:
        first = cluster.nodes[0]
        pid = first.daemon("raft")

        def second(data):
            return subprocess.Popen(
                [f"{cluster.bin}/aspen-node", "--node-id", "1", "--cookie-file", cluster.cookie,
                 "--data-dir", data, "--listen", f"127.0.0.1:{free_ports(1)[0]}",
                 "--tokens-required", "false"], stderr=subprocess.PIPE, text=True)

        # The whole node's directory.
        other = second(first.data)
        _, told = other.communicate(timeout=60)
        assert other.returncode != 0 and "another aspen-node runs on" in told, told
        first.cli("kv", "set", "a", "one", check=0)
        # What aspend-raft keeps, by way of another name.
        disguised = os.path.join(cluster.directory, "disguised")
        os.mkdir(disguised)
        os.symlink(os.path.join(first.data, "raft"), os.path.join(disguised, "raft"))
        other = second(disguised)
        try:
            line = next(line for line in other.stderr if "cannot be used" in line)
            assert f"another process (pid {pid}) uses this data directory" in line, line
        finally:
            other.terminate()
            other.communicate(timeout=60)
        assert first.cli("kv", "get", "a", check=0).out == b"one\n"
        first.cli("kv", "set", "a", "two", check=0)
        assert first.daemon("raft") == pid


def a_wrong_cookie_is_refused():
    with Cluster(1, learners=0) as cluster:
        from aspen_cluster import Node
        stranger = Node(cluster, 2, free_ports(1)[0])
        cluster.nodes.append(stranger)
        wrong = os.path.join(cluster.directory, "wrong")
        with open(wrong, "w") as f:
            f.write("another secret altogether, long enough")
        stranger.start(cookie_file=wrong)
        first = cluster.nodes[0]
        refused = first.cli("cluster", "add-learner", "--node-id", "2", "--endpoint",
                            stranger.endpoint, "--addr", f"127.0.0.1:{stranger.port}",
                            timeout_ms=3000)
        assert refused.code != 0, refused.__dict__
        assert "cookie" in first.log() + stranger.log()
        for log in (first.log(), stranger.log()):
            assert "another secret" not in log
        first.cli("kv", "set", "a", "b", check=0)


def the_cookie_is_not_shown():
    """However it is given, neither the process list nor what the daemons inherit shows it."""
    secret = "a secret of thirty-two bytes, or so"
    for given in ("environment", "argument"):
        with Cluster(1) as cluster:
            node = cluster.nodes[0]
            node.kill_all()
            data = os.path.join(cluster.directory, given)
            words = [f"{cluster.bin}/aspen-node", "--node-id", "1", "--data-dir", data,
                     "--listen", f"127.0.0.1:{free_ports(1)[0]}", "--tokens-required", "false"]
            environment = dict(os.environ, ASPEN_COOKIE=secret)
            if given == "argument":
                del environment["ASPEN_COOKIE"]
                words += ["--cookie", secret]
            process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
            try:
                next(line for line in process.stderr if "is up; its sockets" in line)
                with open(f"/proc/{process.pid}/task/{process.pid}/children") as f:
                    pids = [process.pid] + [int(pid) for pid in f.read().split()]
                assert len(pids) == 4, pids
                for pid in pids:
                    for name in ("environ", "cmdline"):
                        with open(f"/proc/{pid}/{name}", "rb") as f:
                            assert secret.encode() not in f.read(), f"{name} of {pid}"
            finally:
                process.terminate()
                process.communicate(timeout=60)


def a_learner_that_is_down_is_named():
    with Cluster(2) as cluster:
        port, = free_ports(1)
        from aspen_cluster import Node
        absent = Node(cluster, 3, port)
        word = f"3@{absent.endpoint}@127.0.0.1:{port}"
        for node in cluster.nodes:
            told = node.cli("cluster", "add-learner", word, timeout_ms=4000)
            assert told.code == 6, told.__dict__
            text = told.err
            assert f"node 3 cannot be reached, at 127.0.0.1:{port}" in text, text
            assert absent.endpoint in text and "nothing was changed" in text, text


def garbage_is_refused():
    randomness = random.Random(1)
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        pids = (node.daemon("net"), node.daemon("raft"))
        for name in ("net.sock", "raft.sock"):
            path = os.path.join(node.data, "run", name)
            for _ in range(500):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
                    s.connect(path)
                    try:
                        for _ in range(20):
                            body = randomness.randbytes(randomness.randrange(0, 100))
                            s.sendall(struct.pack("<I", len(body)) + body)
                    except (BrokenPipeError, ConnectionResetError):
                        pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for _ in range(10000):
                s.sendto(randomness.randbytes(randomness.randrange(1, 1400)),
                         ("127.0.0.1", node.port))
        node.cli("kv", "set", "still", "here", check=0)
        assert pids == (node.daemon("net"), node.daemon("raft")), "a daemon died"
        lines = node.log().count("\n")
        assert lines < 500, f"{lines} log lines for garbage"


def killing_everything_loses_nothing():
    with Cluster(3) as cluster:
        for number in range(50):
            cluster.nodes[number % 3].cli("kv", "set", f"key{number}", str(number), check=0)
        for node in cluster.nodes:
            node.kill_all()
        for node in cluster.nodes:
            node.start()
        for number in range(50):
            got = cluster.nodes[number % 3].cli("kv", "get", f"key{number}", check=0)
            assert got.out == f"{number}\n".encode()


if __name__ == "__main__":
    run(any_node_gives_the_same_answer, bytes_are_bytes, a_long_scan_is_complete,
        a_data_directory_has_one_node, a_wrong_cookie_is_refused, the_cookie_is_not_shown,
        a_learner_that_is_down_is_named, garbage_is_refused, killing_everything_loses_nothing)
