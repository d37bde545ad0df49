# SPDX-License-Identifier: GPL-2.0-or-later
"""Three nodes of Debian's etcd on loopback, plain or with TLS, and etcd's own load generator."""

import base64
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request

from figures import parse_etcd_load
from processes import run_counted
from aspen_cluster import wait_for

# What builds etcd's tools/benchmark, besides what runs etcd.
PACKAGES = ("etcd-server golang-go golang-etcd-server-dev golang-gopkg-cheggaaa-pb.v1-dev "
            "golang-github-spf13-cobra-dev golang-github-bgentry-speakeasy-dev "
            "golang-github-dustin-go-humanize-dev golang-golang-x-time-dev openssl").split()
CACHE = os.environ.get("CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "aspen", "etcd-benchmark")
LOAD = os.path.join(CACHE, "benchmark")


def prepare():
    """Says which packages are missing, or builds the load generator once. Nothing outside the cache and
    a temporary directory is written."""
    def installed(package):
        done = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return "install ok installed" in done.stdout
    missing = [package for package in PACKAGES if not installed(package)]
    if missing:
        sys.exit("The comparison needs these Debian packages:\n"
                 f"    apt-get install --no-install-recommends {' '.join(missing)}\n"
                 "(and etcd's own service stopped: systemctl disable --now etcd)")
    if not os.access(LOAD, os.X_OK):
        print(f"Building etcd's benchmark in {CACHE} …", file=sys.stderr, flush=True)
        build()


def build():
    """The -dev package leaves tools/ out, the source package has it. deb-src lists of our own, so that
    the machine's stay as they are."""
    os.makedirs(CACHE, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        source = f"{work}/go/src/go.etcd.io/etcd"
        os.makedirs(f"{work}/lists/partial")
        os.makedirs(source)
        modern = "/etc/apt/sources.list.d/debian.sources"
        if os.path.exists(modern):
            lists = f"{work}/src.sources"
            with open(modern) as old, open(lists, "w") as new:
                new.writelines("Types: deb-src\n" if line.startswith("Types:") else line
                               for line in old)
        else:
            lists = f"{work}/src.list"
            with open("/etc/apt/sources.list") as old, open(lists, "w") as new:
                new.writelines("deb-src " + line[4:] for line in old if line.startswith("deb "))
        apt = ["apt-get", "-q", "-o", f"Dir::Etc::sourcelist={lists}", "-o",
               "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={work}/lists", "-o",
               "APT::Sandbox::User="]
        subprocess.run([*apt, "update"], cwd=work, stdout=sys.stderr, check=True)
        subprocess.run([*apt, "source", "--download-only", "etcd"], cwd=work, stdout=sys.stderr,
                       check=True)
        archive = next(name for name in os.listdir(work)
                       if name.startswith("etcd_") and ".orig.tar" in name)
        subprocess.run(["tar", "xf", archive, "--strip-components=1", "--wildcards", "-C", source,
                        "etcd-*/tools/benchmark/*"], cwd=work, check=True)
        subprocess.run(["go", "build", "-o", LOAD, "go.etcd.io/etcd/tools/benchmark"], check=True,
                       env={**os.environ, "GO111MODULE": "off", "GOFLAGS": "",
                            "GOPATH": f"{work}/go:/usr/share/gocode", "GOCACHE": f"{work}/cache"})


def free_tcp_ports(count):
    """That were free a moment ago, and none that the kernel gives out by itself."""
    found, choose = [], random.SystemRandom()
    while len(found) < count:
        with socket.socket() as s:
            port = choose.randrange(20_000, 32_000)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found


class Certificates:
    """An authority, and one certificate of its for nodes and clients, as etcd's guide has it: P-256."""

    def __init__(self, directory, addresses=("127.0.0.1",)):
        self.authority, self.key = f"{directory}/ca.pem", f"{directory}/key.pem"
        self.certificate = f"{directory}/cert.pem"
        names = ",".join(f"IP:{address}" for address in addresses)
        extensions = f"{directory}/extensions"
        with open(extensions, "w") as f:
            f.write(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        for command in (
                ["req", "-x509", *curve, "-keyout", f"{directory}/ca-key.pem", "-out",
                 self.authority, "-days", "2", "-subj", "/CN=bench"],
                ["req", *curve, "-keyout", self.key, "-out", f"{directory}/request.pem", "-subj",
                 "/CN=node"],
                ["x509", "-req", "-in", f"{directory}/request.pem", "-CA", self.authority, "-CAkey",
                 f"{directory}/ca-key.pem", "-CAcreateserial", "-out", self.certificate, "-days",
                 "2", "-extfile", extensions]):
            subprocess.run(["openssl", *command], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)


class EtcdNode:
    def __init__(self, cluster, number, address, client_port, peer_port, wrapper=()):
        self.cluster, self.number, self.wrapper = cluster, number, list(wrapper)
        self.data = os.path.join(cluster.directory, f"n{number}")
        scheme = "https" if cluster.certificates else "http"
        self.endpoint = f"{address}:{client_port}"
        self.url, self.peer_url = f"{scheme}://{self.endpoint}", f"{scheme}://{address}:{peer_port}"
        self.process = None

    def start(self):
        tls = self.cluster.certificates
        arguments = [
            *self.wrapper, "etcd", "--name", f"n{self.number}", "--data-dir", self.data,
            "--log-level", "error", "--listen-client-urls", self.url, "--advertise-client-urls",
            self.url, "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls",
            self.peer_url, "--initial-cluster",
            ",".join(f"n{node.number}={node.peer_url}" for node in self.cluster.nodes),
            "--initial-cluster-state", "new", "--initial-cluster-token", self.cluster.directory,
            *self.cluster.options]
        if tls:
            for kind in ("", "peer-"):
                arguments += [f"--{kind}cert-file", tls.certificate, f"--{kind}key-file", tls.key,
                              f"--{kind}trusted-ca-file", tls.authority,
                              f"--{kind}client-cert-auth"]
        with open(os.path.join(self.cluster.directory, f"n{self.number}.log"), "ab") as log:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)

    def pids(self):
        return [self.process.pid]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ask(self, path, body, timeout=2.0):
        """etcd's JSON gateway."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout,
                                    context=self.cluster.context) as answer:
            return json.load(answer)

    def put(self, key, value, timeout=10.0):
        self.ask("/v3/kv/put", {"key": base64.b64encode(key).decode(),
                                "value": base64.b64encode(value).decode()}, timeout)

    def is_leader(self):
        status = self.ask("/v3/maintenance/status", {})
        return status.get("leader") == status["header"]["member_id"]


class EtcdCluster:
    """`with EtcdCluster() as c:`. `places` are (address, command prefix) of each node, when they have
    networks of their own."""

    def __init__(self, tls=False, options=(), places=None):
        self.name = "etcd TLS" if tls else "etcd"
        self.holder = tempfile.TemporaryDirectory(prefix="aspen-versus-", dir="/tmp")
        self.directory, self.options = self.holder.name, list(options)
        places = places or [("127.0.0.1", [])] * 3
        self.certificates = Certificates(self.directory, {a for a, _ in places}) if tls else None
        self.context = None
        if tls:
            self.context = ssl.create_default_context(cafile=self.certificates.authority)
            self.context.load_cert_chain(self.certificates.certificate, self.certificates.key)
        ports = free_tcp_ports(2 * len(places))
        self.nodes = [EtcdNode(self, k + 1, address, ports[2 * k], ports[2 * k + 1], wrapper)
                      for k, (address, wrapper) in enumerate(places)]

    def __enter__(self):
        try:
            for node in self.nodes:
                node.start()
            self.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, value, trace):
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.kill()
        self.holder.cleanup()

    def wait_until_ready(self):
        """Each node answers a linearizable read."""
        for node in self.nodes:
            def ask():
                try:
                    return node.ask("/v3/kv/range", {"key": base64.b64encode(b"x").decode()})
                except OSError:
                    return None
            wait_for(f"etcd node {node.number}", ask, 60, every=0.05)

    def leader(self):
        def ask():
            for node in self.nodes:
                try:
                    if node.process.poll() is None and node.is_leader():
                        return node
                except OSError:
                    pass
            return None
        return wait_for("a leader of etcd", ask, 30, every=0.02)

    def pids(self):
        return [pid for node in self.nodes for pid in node.pids()]

    def load(self, operation, clients, total, layout="each", value=256, keys=10_000):
        """One turn of etcd's own generator. Layouts: `each` client its connection, over all nodes;
        `few`: at most eight connections, over all nodes; `leader`: eight, to the leader.
        Raises RuntimeError when it fails or reports errors."""
        connections = clients if layout == "each" else min(clients, 8)
        nodes = [self.leader()] if layout == "leader" else self.nodes
        command = [LOAD, "--endpoints", ",".join(node.endpoint for node in nodes), "--conns",
                   str(connections), "--clients", str(clients)]
        if self.certificates:
            command += ["--cert", self.certificates.certificate, "--key", self.certificates.key,
                        "--cacert", self.certificates.authority]
        if operation == "put":
            command += ["put", "--total", str(total), "--key-size", "32", "--val-size", str(value),
                        "--key-space-size", str(keys)]
        elif operation == "get":
            command += ["range", PROBE.decode(), "--consistency", "l", "--total", str(total)]
        elif operation == "range":
            command += ["range", RANGE[0].decode(), RANGE[1].decode(), "--consistency", "l",
                        "--total", str(total)]
        text, turn = run_counted(command, self.pids())
        return {**turn, **parse_etcd_load(text, total)}

    def fill(self):
        """What `get` and `range` read: one key, and 1,000 others."""
        value = os.urandom(256)
        self.nodes[0].put(PROBE, value)
        for number in range(1000):
            self.nodes[0].put(RANGE[0] + b"%026d" % number, value)


PROBE = b"%032d" % 7
# 32-byte keys, and those alone.
RANGE = (b"range/", b"range0")

