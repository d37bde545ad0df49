# SPDX-License-Identifier: GPL-2.0-or-later
"""Real nodes on loopback for the integration tests: start, kill one daemon, ask through the CLI."""

import base64
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def bin_dir():
    """ASPEN_BIN_DIR, or what the last build left."""
    if os.environ.get("ASPEN_BIN_DIR"):
        return os.environ["ASPEN_BIN_DIR"]
    return os.path.join(ROOT, ".build", "debug")


def free_ports(count):
    """UDP ports that were free a moment ago, and none that the kernel gives out by itself: those might be
    another test's before they are used."""
    sockets, choose = [], random.SystemRandom()
    while len(sockets) < count:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            s.bind(("127.0.0.1", choose.randrange(20_000, 32_000)))
        except OSError:
            s.close()
            continue
        sockets.append(s)
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(what, condition, seconds=20.0, every=0.01):
    """Polls until `condition` gives something true; fails loudly when it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain for: {what}")


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def json(self):
        return json.loads(self.out)


class Node:
    def __init__(self, cluster, number, port):
        self.cluster, self.number, self.port = cluster, number, port
        # Where others dial it, where it listens, and what its command line begins with.
        self.address = self.listen = f"127.0.0.1:{port}"
        self.wrapper = []
        self.data = os.path.join(cluster.directory, str(number))
        self.log_path = os.path.join(cluster.directory, f"{number}.log")
        self.process = None
        os.makedirs(os.path.join(self.data, "net"), mode=0o700, exist_ok=True)
        self.endpoint = subprocess.check_output(
            [f"{cluster.bin}/aspend-net", "--print-identity",
             "--state-dir", os.path.join(self.data, "net")], text=True).strip()

    @property
    def socket(self):
        return os.path.join(self.data, "run", "raft.sock")

    def start(self, cookie_file=None, extra=(), env=None, programs=None):
        before = self.log().count("is up; its sockets")
        arguments = self.wrapper + [
            f"{programs or self.cluster.bin}/aspen-node", "--node-id", str(self.number),
            "--cookie-file", cookie_file or self.cluster.cookie, "--data-dir", self.data,
            "--listen", self.listen, "--tokens-required", "false",
            "--storage-backend", self.cluster.backend]
        for other in self.cluster.nodes:
            if other is not self:
                arguments += ["--peers", f"{other.number}@{other.endpoint}@{other.address}"]
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            arguments + list(extra), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            # Clusters of other tests have nothing to do with this one.
            start_new_session=True, env={**os.environ, "ASPEN_DISABLE_MDNS": "true",
                                         **self.cluster.settings, **(env or {})})
        log.close()
        wait_for(f"node {self.number} up (log {self.log_path})",
                 lambda: self.log().count("is up; its sockets") > before
                 or self.process.poll() is not None, self.cluster.patience)
        assert self.process.poll() is None, f"node {self.number} ended: {self.log()[-2000:]}"

    def log(self):
        try:
            with open(self.log_path, errors="replace") as f:
                return f.read()
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def daemon(self, name):
        """The pid of aspend-NAME under this node's supervisor, or None."""
        if self.process is None:
            return None
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
                children = f.read().split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        for pid in children:
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            # Not the first word where another program runs the daemon, as valgrind does.
            if any(word.endswith(f"/aspend-{name}".encode()) for word in words):
                return int(pid)
        return None

    def kill_daemon(self, name, seconds=20.0):
        pid = wait_for(f"aspend-{name} of node {self.number}", lambda: self.daemon(name), seconds)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        return pid

    def kill_all(self):
        """Supervisor and daemons at once, as a power cut would (without its effect on disks)."""
        # Held first: it must not start another one meanwhile.
        try:
            os.kill(self.process.pid, signal.SIGSTOP)
        except ProcessLookupError:
            pass
        pids = [self.process.pid] + [p for p in map(self.daemon, ("net", "raft", "gossip")) if p]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        wait_for("the processes to be gone", lambda: not any(alive(p) for p in pids))

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=20)

    def cli(self, *arguments, timeout_ms=None, stdin=None, check=None):
        return self.cluster.cli("--socket", self.socket,
                                "--timeout", str(timeout_ms or self.cluster.timeout_ms),
                                *arguments, stdin=stdin, check=check)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Cluster:
    """`with Cluster(3) as c:` gives three voters, and leaves nothing behind. Spares run, and are no members."""

    def __init__(self, count=3, backend="persistent", learners=0, spares=0, settings=None,
                 patience=20.0):
        self.bin = bin_dir()
        self.patience = patience
        self.settings = settings or {}
        self.backend, self.timeout_ms = backend, 10_000
        self.holder = tempfile.TemporaryDirectory(prefix="aspen-test-", dir="/tmp")
        self.directory = self.holder.name
        self.cookie = os.path.join(self.directory, "cookie")
        with open(self.cookie, "wb") as f:
            f.write(base64.b64encode(os.urandom(32)))
        os.chmod(self.cookie, 0o600)
        self.voters, self.members = count, count + learners
        self.nodes = []
        for number, port in enumerate(free_ports(count + learners + spares), 1):
            self.nodes.append(Node(self, number, port))

    def __enter__(self):
        try:
            for node in self.nodes:
                node.start()
            first = self.nodes[0]
            first.cli("cluster", "init", check=0)
            for node in self.nodes[1:self.members]:
                first.cli("cluster", "add-learner", "--node-id", str(node.number), check=0)
            if self.voters > 1:
                first.cli("cluster", "change-membership",
                          *[str(n.number) for n in self.nodes[:self.voters]], check=0)
            # Who was added hears of it from the leader, a moment later.
            for node in self.nodes[1:self.members]:
                wait_for(f"node {node.number} to know that it belongs",
                         lambda: node.cli("kv", "get", "no such key").code == 3, self.patience)
        except BaseException as error:
            # Whoever has mounted something in there takes it away once they hear of this.
            self.stop(error)
            raise
        return self

    def stop(self, error=None):
        if error is not None:
            for node in self.nodes:
                print(f"--- log of node {node.number}\n{node.log()[-3000:]}", file=sys.stderr)
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.kill_all()

    def __exit__(self, kind, value, trace):
        self.stop(value)
        self.holder.cleanup()

    def cli(self, *arguments, stdin=None, check=None):
        done = subprocess.run([f"{self.bin}/aspen-cli", *arguments], input=stdin,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        result = Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
        if check is not None:
            assert result.code == check, (
                f"aspen-cli {' '.join(arguments)}: exit {result.code}, expected {check}\n"
                f"{result.out!r}\n{result.err}")
        return result

    def cli_bench(self, *arguments, timeout=120):
        """aspen-bench over all nodes' sockets."""
        sockets = []
        for node in self.nodes:
            sockets += ["--socket", node.socket]
        return subprocess.run([f"{self.bin}/aspen-bench", *arguments, *sockets],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=timeout)

    def status(self, through=None):
        node = through or self.nodes[0]
        return node.cli("cluster", "status", "-o", "json", check=0).json()

    def leader(self, through=None):
        """(node, term) once there is a leader."""
        def ask():
            for node in [through] if through else self.nodes:
                if node.process is None or node.process.poll() is not None:
                    continue
                result = node.cli("cluster", "leader", "-o", "json", timeout_ms=1000)
                if result.code == 0:
                    answer = result.json()
                    if answer.get("leader_id"):
                        return self.nodes[answer["leader_id"] - 1], answer["term"]
            return None
        return wait_for("a leader", ask, 30)


def run(*tests):
    """Runs the functions (those named as arguments, or all); prints one line each; the exit code says whether all held."""
    failed = 0
    if len(sys.argv) > 1:
        tests = [test for test in tests if test.__name__ in sys.argv[1:]]
    for test in tests:
        started = time.monotonic()
        try:
            test()
            print(f"✔ {test.__name__} ({time.monotonic() - started:.1f} s)", flush=True)
        except BaseException as error:  # noqa: BLE001 - reported, then counted
            failed += 1
            print(f"✘ {test.__name__}: {type(error).__name__}: {error}", flush=True)
            if isinstance(error, KeyboardInterrupt):
                break
    print(f"integration: {len(tests) - failed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)
