# SPDX-License-Identifier: GPL-2.0-or-later
"""Three nodes of Aspen on loopback, as the integration tests start them, and aspen-bench."""

import functools
import os
import subprocess

from aspen_cluster import Cluster
from figures import parse_aspen_load
from processes import run_counted
from python_client import Client

WRITE_KEY = 18


def node_pids(node):
    """Of a node: its supervisor, which stands in for systemd, and each daemon."""
    with open(f"/proc/{node.process.pid}/task/{node.process.pid}/children") as f:
        return [node.process.pid, *map(int, f.read().split())]


class AspenCluster(Cluster):
    """`with AspenCluster() as c:`. `places` are (address, command prefix) of each node, when they have
    networks of their own."""

    name = "Aspen"

    def __init__(self, settings=None, places=None, spares=0):
        super().__init__(3, settings=settings, spares=spares)
        for node, (address, wrapper) in zip(self.nodes, places or []):
            node.address = node.listen = f"{address}:{node.port}"
            node.wrapper = list(wrapper)

    def __enter__(self):
        # Reached from elsewhere than this machine's loopback, nodes must require tokens.
        if not self.nodes[0].listen.startswith("127."):
            for node in self.nodes:
                node.start = functools.partial(node.start, extra=("--tokens-required", "true"))
        return super().__enter__()

    def client_abroad(self):
        """The environment of a client without a socket, who may do everything by a token."""
        home = {"HOME": os.path.join(self.directory, "client")}
        os.makedirs(home["HOME"], mode=0o700)

        def word(*arguments):
            return subprocess.check_output([f"{self.bin}/aspen-token", *arguments], text=True,
                                           env={**os.environ, **home}).strip()
        self.nodes[0].cli("cluster", "trust-root", word("generate-root"), check=0)
        return {**home, "ASPEN_TOKEN": word(
            "delegate", "--audience", word("client-key"), "--lifetime", "1h", "--capability",
            "kv:read:*", "--capability", "kv:write:*")}

    def pids(self):
        """Of the members."""
        return [pid for node in self.nodes[:self.members] for pid in node_pids(node)]

    def leading(self):
        return self.leader()[0]

    def target(self, layout):
        """How clients come: `each` and `few` by the local sockets of all nodes, `leader` by the leader's;
        `quic`: by ticket, encrypted, to all nodes."""
        if layout == "quic":
            ticket = self.nodes[0].cli("cluster", "ticket", check=0).out.decode().strip()
            return ["--ticket", ticket]
        nodes = [self.leading()] if layout == "leader" else self.nodes[:self.members]
        return [part for node in nodes for part in ("--socket", node.socket)]

    def load(self, operation, clients, total=None, layout="each", value=256, keys=10_000,
             more=(), wrapper=(), env=None):
        """One turn of aspen-bench. `each` and `quic`: a connection a client; `few` and `leader`: eight at
        most. Raises RuntimeError when it fails, or an answer is an error or wrong."""
        connections = min(clients, 8) if layout in ("few", "leader") else min(clients, 500)
        command = [*wrapper, f"{self.bin}/aspen-bench", operation, *self.target(layout),
                   "--clients", str(clients), "--connections", str(connections), "--key-size", "32",
                   "--value-size", str(value), "--keys", str(keys), "--json", *map(str, more)]
        if total:
            command += ["--count", str(total), "--warmup", "1ms"]
        text, turn = run_counted(command, self.pids(), env)
        return {**turn, **parse_aspen_load(text)}

    def fill(self):
        """What `get` and `range` read, by those names: one key, and 1,000 others, of 256 bytes."""
        for keys in (1, 1000):
            done = self.cli_bench("load", "--keys", str(keys), "--value-size", "256")
            assert done.returncode == 0, done.stderr


def put(path, key, value):
    """Through a node's socket; raises OSError or RuntimeError when it fails."""
    client = Client(path)
    try:
        client.socket.settimeout(10)
        client.ask(WRITE_KEY, (1, key), (2, value))
    finally:
        client.file.close()
        client.socket.close()


def part_sizes(directory):
    """Allocated bytes by kind of file."""
    found = {}
    for where, _, names in os.walk(directory):
        for name in names:
            key = "log" if os.path.basename(where) == "log" else name
            found[key] = found.get(key, 0) + os.lstat(os.path.join(where, name)).st_blocks * 512
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:6])
