#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A laptop with a ticket and a token, against real processes that require tokens."""

import os
import select
import struct
import subprocess
import time

import token_format as page
from aspen_cluster import Cluster, Result, run


class Strict(Cluster):
    """Nodes as packages set them up: clients over the network must show a token."""

    def __enter__(self):
        for node in self.nodes:
            start = node.start
            node.start = lambda start=start: start(extra=("--tokens-required", "true"))
        return super().__enter__()


def until_it_ends(process, seconds):
    """What a program that runs by itself said on its standard error, once it has ended; at most `seconds`."""
    try:
        return process.communicate(timeout=seconds)[1].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError(f"{process.args[1:4]} has not ended within {seconds} s") from None


class Laptop:
    """Another machine's user: a home of its own, a ticket, no socket."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.home = os.path.join(cluster.directory, name)
        os.makedirs(self.home, mode=0o700)
        self.ticket = cluster.nodes[0].cli("cluster", "ticket", check=0).out.decode().strip()

    def env(self, token=None):
        env = {"PATH": os.environ["PATH"], "HOME": self.home, "ASPEN_TICKET": self.ticket}
        if token:
            env["ASPEN_TOKEN"] = token
        return env

    def start(self, program, *arguments, token=None):
        return subprocess.Popen([f"{self.cluster.bin}/{program}", *arguments], env=self.env(token),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, program, *arguments, token=None, check=None):
        done = subprocess.run([f"{self.cluster.bin}/{program}", *arguments], env=self.env(token),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        result = Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
        if check is not None:
            assert result.code == check, (
                f"{program} {' '.join(arguments)}: exit {result.code}, expected {check}\n"
                f"{result.out!r}\n{result.err}")
        return result

    def word(self, program, *arguments):
        return self.run(program, *arguments, check=0).out.decode().strip()

    def key(self):
        return self.word("aspen-token", "client-key")


def delegate(holder, audience, *capabilities, lifetime="1h", extra=()):
    wanted = [part for what in capabilities for part in ("--capability", what)]
    return holder.word("aspen-token", "delegate", "--audience", audience, "--lifetime", lifetime,
                       *wanted, *extra)


def a_laptop_can_do_what_its_token_says_and_nothing_else():
    with Strict(3) as cluster:
        admin, laptop, friend = (Laptop(cluster, n) for n in ("admin", "laptop", "friend"))
        node = cluster.nodes[0]
        node.cli("kv", "set", "app/x", "hello", check=0)
        node.cli("kv", "set", "secret", "s", check=0)

        refused = laptop.run("aspen-cli", "kv", "get", "app/x", check=4)
        assert "no token was shown" in refused.err and "client-key" in refused.err, refused.err

        root = admin.word("aspen-token", "generate-root")
        token = delegate(admin, laptop.key(), "kv:read:app/*", "kv:write:app/jobs/*")
        refused = laptop.run("aspen-cli", "kv", "get", "app/x", token=token, check=4)
        assert "not trusted" in refused.err and token not in refused.err, refused.err

        node.cli("cluster", "trust-root", root, check=0)
        assert node.cli("cluster", "trust-root", "--list").out.decode().split() == [root]
        got = laptop.run("aspen-cli", "kv", "get", "app/x", token=token, check=0)
        assert got.out == b"hello\n", got.out
        path = os.path.join(laptop.home, "token")
        with open(path, "w") as f:
            f.write(token + "\n")
        laptop.run("aspen-cli", "kv", "get", "app/x", "--token", "@" + path, check=0)
        laptop.run("aspen-cli", "kv", "set", "app/jobs/1", "v", token=token, check=0)
        assert node.cli("kv", "get", "app/jobs/1", check=0).out == b"v\n"
        for denied, capability in [
                (("kv", "get", "secret"), "kv:read:secret"),
                (("kv", "set", "app/y", "v"), "kv:write:app/y"),
                (("kv", "delete", "app/x"), "kv:write:app/x"),
                (("kv", "scan"), "kv:read:*"),
                (("cluster", "status"), "cluster:read"),
                (("cluster", "trust-root", root), "cluster:admin")]:
            answer = laptop.run("aspen-cli", *denied, token=token, check=4)
            assert capability in answer.err, answer.err
            assert token not in answer.err
        assert laptop.run("aspen-cli", "kv", "scan", "--prefix", "app/", token=token).code == 0

        # Somebody else's token, and a part of it passed on.
        stolen = friend.run("aspen-cli", "kv", "get", "app/x", token=token, check=4)
        assert "another" in stolen.err or "client key" in stolen.err, stolen.err
        passed = delegate(laptop, friend.key(), "kv:read:app/x", extra=("--from", token))
        assert friend.run("aspen-cli", "kv", "get", "app/x", token=passed).out == b"hello\n"
        friend.run("aspen-cli", "kv", "get", "app/jobs/1", token=passed, check=4)
        wide = laptop.run("aspen-token", "delegate", "--from", token, "--audience", friend.key(),
                          "--capability", "kv:read:*", "--lifetime", "1h")
        assert wide.code == 4, wide.err
        admin.run("aspen-token", "verify", "--root", root, passed, check=0)
        friend.run("aspen-token", "verify", "--root", friend.key(), passed, check=4)

        # Revoked, on every node, with all that was made from it.
        node.cli("kv", "get", "app/x", check=0)
        revoke = subprocess.run([f"{cluster.bin}/aspen-token", "revoke", token, "--socket",
                                 node.socket], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert revoke.returncode == 0, revoke.stderr
        for other in cluster.nodes:  # each has applied it
            other.cli("kv", "get", "app/x", check=0)
        for who, shown in ((laptop, token), (friend, passed)):
            answer = who.run("aspen-cli", "kv", "get", "app/x", token=shown, check=4)
            assert "revoked" in answer.err, answer.err

        # A short one, until it ends; and the trust outlives a restart of everything.
        short = delegate(admin, laptop.key(), "kv:read:app/*", lifetime="3s")
        laptop.run("aspen-cli", "kv", "get", "app/x", token=short, check=0)
        fresh = delegate(admin, laptop.key(), "kv:read:app/*")
        for other in cluster.nodes:
            other.kill_all()
        for other in cluster.nodes:
            other.start()
        laptop.run("aspen-cli", "kv", "get", "app/x", token=fresh, check=0)
        time.sleep(3)  # the lifetime of a token is the subject
        answer = laptop.run("aspen-cli", "kv", "get", "app/x", token=short, check=4)
        assert "expired" in answer.err, answer.err
        node.cli("cluster", "trust-root", "--remove", root, check=0)
        for other in cluster.nodes:  # each has applied it
            other.cli("kv", "get", "app/x", check=0)
        answer = laptop.run("aspen-cli", "kv", "get", "app/x", token=fresh, check=4)
        assert "not trusted" in answer.err, answer.err

        # No secret in a log, nor in a state directory beside what is meant to hold it.
        secrets = [token, fresh, passed]
        for who in (admin, laptop):
            for name in ("client.key", "token-root.key"):
                key = os.path.join(who.home, ".config/aspen", name)
                if os.path.exists(key):
                    assert os.stat(key).st_mode & 0o77 == 0, key
                    with open(key) as f:
                        secrets.append(f.read().split("\n")[1])
        with open(cluster.cookie) as f:
            secrets.append(f.read().strip())
        for other in cluster.nodes:
            log = other.log()
            for secret in secrets:
                assert secret not in log and secret[10:60] not in log, "a secret is in a log"
        found = subprocess.run(["grep", "-rlF", *[x for s in secrets[:-1] for x in ("-e", s)],
                                *[n.data for n in cluster.nodes]], stdout=subprocess.PIPE)
        assert found.stdout == b"", found.stdout


def ticket_for(node, ticket):
    """The same ticket with one node in it: that one will be asked."""
    data = page.from_base32(ticket[5:])
    endpoint = page.from_base32(node.endpoint)
    one = data[:17] + struct.pack("<I", 1) + endpoint + struct.pack("<I", 1) + page.blob(
        node.address.encode())
    assert endpoint in data and page.blob(node.address.encode()) in data
    return "aspen" + page.base32(one + struct.pack("<I", page.crc32c(one)))


def watch(laptop, token):
    """A watch that has begun: its first change has been told."""
    process = laptop.start("aspen-cli", "kv", "watch", "--prefix", "app/", token=token)
    for number in range(1000):
        laptop.cluster.nodes[0].cli("kv", "set", "app/w", str(number), check=0)
        if select.select([process.stdout], [], [], 0.05)[0]:
            return process
    raise AssertionError("the watch heard nothing")


def what_ends_with_a_token_says_so_on_every_node():
    with Strict(3) as cluster:
        admin, laptop = Laptop(cluster, "admin"), Laptop(cluster, "laptop")
        node = cluster.nodes[0]
        # The words of the manual, with nothing added: a token for oneself.
        node.cli("cluster", "trust-root", admin.word("aspen-token", "generate-root"), check=0)
        own = admin.word("aspen-token", "delegate", "--capability", "kv:read:app/*",
                         "--lifetime", "1h")
        node.cli("kv", "set", "app/x", "hello", check=0)
        assert admin.run("aspen-cli", "kv", "get", "app/x", token=own, check=0).out == b"hello\n"

        tickets = [ticket_for(other, laptop.ticket) for other in cluster.nodes]
        long = delegate(admin, laptop.key(), "kv:read:app/*")
        short = delegate(admin, laptop.key(), "kv:read:app/*", lifetime="8s")
        expired = watch(laptop, short)
        revoked = []
        for ticket in tickets:
            laptop.ticket = ticket
            revoked.append(watch(laptop, long))
        done = subprocess.run([f"{cluster.bin}/aspen-token", "revoke", long, "--socket",
                               cluster.nodes[2].socket], stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        for process in revoked:
            said = until_it_ends(process, 5)
            assert process.returncode == 4 and "revoked" in said, (process.returncode, said)
            assert long not in said
        for ticket in tickets:
            laptop.ticket = ticket
            answer = laptop.run("aspen-cli", "kv", "get", "app/x", token=long, check=4)
            assert "revoked" in answer.err, answer.err
        said = until_it_ends(expired, 15)
        assert expired.returncode == 4 and "expired" in said, (expired.returncode, said)

        # It stays revoked when every process has been killed and started again.
        for other in cluster.nodes:
            other.kill_all()
        for other in cluster.nodes:
            other.start()
        for ticket in tickets:
            laptop.ticket = ticket
            answer = laptop.run("aspen-cli", "kv", "get", "app/x", token=long, check=4)
            assert "revoked" in answer.err, answer.err
        assert admin.run("aspen-cli", "kv", "get", "app/x", token=own, check=0).out == b"hello\n"


if __name__ == "__main__":
    run(a_laptop_can_do_what_its_token_says_and_nothing_else,
        what_ends_with_a_token_says_so_on_every_node)
