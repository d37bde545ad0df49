#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Secrets with known values, planted; then a cluster that lives, is lied to and crashes; then everything that
anybody but their owners can see is searched for them."""

import base64
import ctypes
import ctypes.util
import glob
import hashlib
import os
import resource
import signal
import subprocess

import token_format as page
from aspen_cluster import Cluster, Node, Result, alive, free_ports, run, wait_for

COOKIE = "planted cookie 7c1e0b of forty-odd characters"
WRONG_COOKIE = "planted wrong cookie 91d2aa, also long enough"
SHORT_COOKIE = "pl4nted-sh0rt"


class Secret:
    """What is looked for: the bytes, and each form in which they may have been written down."""

    def __init__(self, name, data, owners=()):
        self.name = name
        # Files, by the ends of their paths, that are there to hold it.
        self.owners = owners
        words = {data, data.hex().encode(), data.hex().upper().encode(),
                 ", ".join(str(byte) for byte in data[:16]).encode()}
        # Base 64 and 32 of something longer that begins with it: all digits that depend on it alone.
        words.add(base64.b64encode(data)[:len(data) * 8 // 6])
        words.add(base64.urlsafe_b64encode(data)[:len(data) * 8 // 6])
        plain = base64.b32encode(data)[:len(data) * 8 // 5]
        words |= {plain, plain.lower()}
        # A part is enough.
        self.words = words | {word[:24] for word in words} | {data[-16:]}

    def find(self, data):
        return any(word in data for word in self.words)


class Watched:
    """Runs programs, and keeps all that they print."""

    def __init__(self, cluster):
        self.cluster, self.said = cluster, []
        self.home = os.path.join(cluster.directory, "home")
        os.makedirs(self.home, mode=0o700, exist_ok=True)

    def run(self, program, *arguments, check=None, env=None, keeps=True):
        env = {"PATH": os.environ["PATH"], "HOME": self.home, **(env or {})}
        done = subprocess.run([f"{self.cluster.bin}/{program}", *arguments], env=env, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        if keeps:
            self.said.append((f"{program} {arguments[:2]}", done.stdout + done.stderr))
        else:
            self.said.append((f"{program} {arguments[:2]}", done.stderr))
        if check is not None:
            assert done.returncode == check, (arguments[:3], done.returncode, done.stderr)
        return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def start(node, given, cookie, extra=()):
    """A node that gets its cookie by its environment, its arguments or a file, and logs all it can. A limit
    that would allow core dumps is inherited."""
    cluster = node.cluster
    arguments = [os.path.abspath(f"{cluster.bin}/aspen-node"), "--node-id", str(node.number),
                 "--data-dir", node.data, "--listen", f"127.0.0.1:{node.port}", *extra]
    env = {**os.environ, "ASPEN_DISABLE_MDNS": "true", "ASPEN_LOG_LEVEL": "trace",
           "SWIFT_BACKTRACE": "enable=no"}
    if given == "environment":
        env["ASPEN_COOKIE"] = cookie
    elif given == "argument":
        arguments += ["--cookie", cookie]
    else:
        path = os.path.join(cluster.directory, f"{node.number}.cookie")
        with open(path, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(cookie + "\n")
        arguments += ["--cookie-file", path]
    for other in cluster.nodes:
        if other is not node:
            arguments += ["--peers", f"{other.number}@{other.endpoint}@{other.address}"]
    before = node.log().count("is up; its sockets")
    with open(node.log_path, "ab") as log:
        node.process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=env, cwd=node.data, preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
    wait_for(f"node {node.number} up", lambda: node.log().count("is up; its sockets") > before)


def seed_of(path):
    """The secret in a key file: the second line, base 32 of the seed and its check."""
    with open(path) as f:
        return page.from_base32(f.read().split("\n")[1])[:32]


def stretched(cookie):
    """What aspend-net makes of a cookie (Argon2id) and works with: as good as the cookie."""
    sodium = ctypes.CDLL(ctypes.util.find_library("sodium"))
    assert sodium.sodium_init() >= 0
    key, text = ctypes.create_string_buffer(32), cookie.encode()
    salt = hashlib.blake2b(b"aspen cluster cookie v1", digest_size=16).digest()
    assert sodium.crypto_pwhash(key, ctypes.c_ulonglong(32), text, ctypes.c_ulonglong(len(text)), salt,
                                ctypes.c_ulonglong(2), ctypes.c_size_t(64 << 20), 2) == 0
    return key.raw


def kept_by(node, name):
    """The memory file that a node's supervisor keeps for its daemons."""
    for path in glob.glob(f"/proc/{node.process.pid}/fd/*"):
        if os.readlink(path).startswith(f"/memfd:{name} "):
            with open(path, "rb") as f:
                return f.read()
    raise AssertionError(f"no {name} is kept")


def processes(node):
    return [node.process.pid] + [node.daemon(name) for name in ("net", "raft", "gossip")]


def look_at_processes(secrets, nodes):
    """Command lines and environments of every process of this machine; the core limits of ours."""
    seen = 0
    for folder in glob.glob("/proc/[0-9]*"):
        # The test itself has made them all.
        if folder == f"/proc/{os.getpid()}":
            continue
        for name in ("cmdline", "environ"):
            try:
                with open(f"{folder}/{name}", "rb") as f:
                    data = f.read()
            except OSError:
                continue
            seen += 1
            for secret in secrets:
                assert not secret.find(data), f"{secret.name} in {folder}/{name}: {data[:60]}"
    assert seen > 20, seen
    for node in nodes:
        for pid in processes(node):
            with open(f"/proc/{pid}/limits") as f:
                line = next(line for line in f if line.startswith("Max core file size"))
            with open(f"/proc/{pid}/cmdline") as f:
                program = os.path.basename(f.read().split("\0")[0])
            assert line.split()[4:6] == ["0", "0"], f"{program}: {line}"


def crash(node, name):
    """As a failed assertion ends a daemon; until it is back."""
    old = wait_for(f"aspend-{name}", lambda: node.daemon(name))
    os.kill(old, signal.SIGABRT)
    wait_for(f"another aspend-{name}", lambda: node.daemon(name) not in (None, old))
    wait_for("no dump is left behind", lambda: not alive(old))


def planted_secrets_are_nowhere_but_where_they_belong():
    cluster = Cluster(3)
    for node, given in zip(cluster.nodes, ("environment", "argument", "file")):
        node.start = lambda node=node, given=given: start(node, given, COOKIE)
    with cluster:
        user = Watched(cluster)
        first = cluster.nodes[0]
        root = user.run("aspen-token", "generate-root", check=0).out.decode().strip()
        client = user.run("aspen-token", "client-key", check=0).out.decode().strip()
        friend = page.Key(b"planted seed of a friend's, 32 b")
        token = user.run("aspen-token", "delegate", "--capability", "kv:read:app/*", "--capability",
                         "kv:write:app/*", "--lifetime", "1h", check=0, keeps=False).out.decode().strip()
        passed = user.run("aspen-token", "delegate", "--from", token, "--audience",
                          page.base32(friend.public), "--capability", "kv:read:app/x", "--lifetime",
                          "1h", check=0, keeps=False).out.decode().strip()
        keys = os.path.join(user.home, ".config/aspen")
        kept = os.path.join(user.home, "kept.token")
        with open(kept, "w") as f:
            f.write(token + "\n")
        chain = page.from_base32(token[10:])
        secrets = [
            Secret("the cookie", COOKIE.encode(), (".cookie",)),
            Secret("a wrong cookie", WRONG_COOKIE.encode(), (".cookie",)),
            Secret("a short cookie", SHORT_COOKIE.encode(), (".cookie",)),
            Secret("the stretched cookie", stretched(COOKIE)),
            Secret("the wrong stretched cookie", stretched(WRONG_COOKIE)),
            Secret("the root's key", seed_of(f"{keys}/token-root.key"), ("token-root.key",)),
            Secret("the client's key", seed_of(f"{keys}/client.key"), ("client.key",)),
            # Its head holds public keys only: what makes it worth something are its signatures.
            Secret("the token", chain[-68:-4]),
            Secret("the token's text", token.encode()[-100:], ("kept.token",)),
            Secret("the token passed on", page.from_base32(passed[10:])[-68:-4]),
            Secret("the friend's key", friend.seed),
        ]
        for node in cluster.nodes:
            secrets.append(Secret(f"the key of node {node.number}",
                                  seed_of(f"{node.data}/net/identity.key"), ("net/identity.key",)))
        # Where they belong, they are, and in this form.
        assert secrets[0].find(kept_by(first, "cookie")) and secrets[3].find(kept_by(first, "cookie-key"))
        first.cli("cluster", "trust-root", root, check=0)
        first.cli("kv", "set", "app/x", "hello", check=0)
        ticket = first.cli("cluster", "ticket", check=0).out.decode().strip()
        reach = {"ASPEN_TICKET": ticket, "ASPEN_TOKEN": token}
        assert user.run("aspen-cli", "kv", "get", "app/x", env=reach, check=0).out == b"hello\n"
        look_at_processes([s for s in secrets if "token" not in s.name], cluster.nodes)

        # Peers with another cookie, and with none that will do.
        stranger = Node(cluster, 4, free_ports(1)[0])
        cluster.nodes.append(stranger)
        start(stranger, "environment", WRONG_COOKIE)
        first.cli("cluster", "add-learner", "--node-id", "4", "--endpoint", stranger.endpoint,
                  "--addr", f"127.0.0.1:{stranger.port}", timeout_ms=3000)
        wait_for("the refusal", lambda: "cookie" in first.log() + stranger.log())
        short = Node(cluster, 5, free_ports(1)[0])
        cluster.nodes.append(short)
        start(short, "argument", SHORT_COOKIE)
        # The last of these is a data directory that is in use.
        for extra in (("--listen", "nowhere:1"), ("--node-id", "x"), ("--cookie-file", kept + ".not"), ()):
            assert user.run("aspen-node", "--node-id", "1", "--data-dir", first.data, "--cookie", COOKIE,
                            *extra, env={"ASPEN_COOKIE": WRONG_COOKIE}).code != 0

        # Tickets and tokens that are none, and commands that fail with good ones.
        user.run("aspen-cli", "cluster", "status", env=reach, check=4)
        user.run("aspen-cli", "kv", "get", "other", env=reach, check=4)
        user.run("aspen-cli", "kv", "set", "app/y", "1", "--token", f"@{kept}",
                 env={"ASPEN_TICKET": ticket}, check=0)
        for bad in (ticket[:-1], ticket + "a", token, "aspen", f"@{kept}"):
            assert user.run("aspen-cli", "kv", "get", "app/x",
                            env={"ASPEN_TICKET": bad, "ASPEN_TOKEN": token}).code != 0
        for bad in (token[:-1], token + "aa", token[10:], "Aspen" + token[5:], passed, f"@{kept}.not"):
            assert user.run("aspen-cli", "kv", "get", "app/x",
                            env={"ASPEN_TICKET": ticket, "ASPEN_TOKEN": bad}).code != 0
            user.run("aspen-token", "verify", "--root", root, bad)
            user.run("aspen-token", "inspect", bad, keeps=False)
        for verb in ("inspect", "verify", "revoke", "delegate"):
            user.run("aspen-token", verb, "--no-such-option", token)
            user.run("aspen-cli", "kv", verb, token)
        user.run("aspen-cli", "--token", token, "no-such-area", env=reach)
        user.run("aspen-cli", "config", "check", env={**reach, "ASPEN_COOKIE": COOKIE})
        user.run("aspen-cli", "config", "check", "--json", env={**reach, "ASPEN_COOKIE": COOKIE})

        # What crashes as a failed assertion does leaves nothing behind, and comes back.
        for node in cluster.nodes[:3]:
            for name in ("net", "raft", "gossip"):
                crash(node, name)
        wait_for("an answer after the crashes",
                 lambda: user.run("aspen-cli", "kv", "get", "app/x", env=reach).code == 0, 30)
        look_at_processes([s for s in secrets if "token" not in s.name], cluster.nodes)
        dumps = [name for pattern in ("core", "core.*", "*.core", "vgcore*")
                 for node in cluster.nodes for name in glob.glob(f"{node.data}/**/{pattern}", recursive=True)]
        assert not dumps, dumps
        first.cli("cluster", "why", "leader")
        for words in (("cluster", "status", "--json"), ("cluster", "metrics"), ("peers", "list"),
                      ("why", "leader"), ("cluster", "trust-root", "--list")):
            done = first.cli(*words)
            user.said.append((str(words), done.out + done.err.encode()))
        user.run("aspen-token", "revoke", token, "--socket", first.socket, check=0)
        for node in cluster.nodes[:3]:
            node.stop()

        # All that was said, and all that was written.
        user.said += [("the ticket", ticket.encode()), ("the ticket's bytes", page.from_base32(ticket[5:]))]
        for what, data in user.said:
            for secret in secrets:
                assert not secret.find(data), f"{secret.name} in the output of {what}: {data[:300]}"
        count, found = 0, set()
        for folder, _, names in os.walk(cluster.directory):
            for path in (os.path.join(folder, name) for name in names):
                if not os.path.isfile(path) or path == cluster.cookie:
                    continue
                with open(path, "rb") as f:
                    data = f.read()
                count += 1
                for secret in secrets:
                    if path.endswith(secret.owners or ("\0",)):
                        found |= {secret.name} if secret.find(data) else set()
                    else:
                        assert not secret.find(data), f"{secret.name} is in {path}"
        assert count > 15, count
        # It was logged, and the search finds what is there.
        for node in cluster.nodes:
            assert "debug" in node.log() or "trace" in node.log(), node.log()[:500]
        assert found == {s.name for s in secrets if "key" in s.name and "friend" not in s.name} | {
            "the cookie", "the token's text"}, found


if __name__ == "__main__":
    run(planted_secrets_are_nowhere_but_where_they_belong)
