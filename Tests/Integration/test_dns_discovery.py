#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Discovery through DNS: real nodes in network namespaces of their own, with a router between them that
passes no multicast on, and a real name server (dnsmasq) on the router. Nothing of it touches the
interfaces, the resolver or the name servers of this machine."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time

import test_discovery
from aspen_cluster import bin_dir, run, wait_for
from test_discovery import Link, sh

NEEDED = ("ip", "dnsmasq", "dig", "unshare")
ORIGIN = "nodes.test"
RFC4648, Z_BASE_32 = "abcdefghijklmnopqrstuvwxyz234567", "ybndrfg8ejkmcpqxot1uwisza345h769"


def record_name(endpoint):
    """Where DNS has an endpoint: the other alphabet, and nothing of ours."""
    return f"_iroh.{endpoint.translate(str.maketrans(RFC4648, Z_BASE_32))}.{ORIGIN}"


class Segments(Link):
    """`place(n)` has 10.98.n.1/24 on eth0, and the router 10.98.n.254."""

    def __init__(self, count):
        super().__init__(count)
        self.server = None

    def __enter__(self):
        missing = [program for program in NEEDED if not shutil.which(program)]
        assert not missing, f"needs {missing}: apt-get install iproute2 dnsmasq-base bind9-dnsutils"
        router = self.name("bridge")
        sh("ip", "netns", "add", router)
        sh("ip", "-n", router, "link", "set", "lo", "up")
        for number in range(1, self.count + 1):
            name = self.name(number)
            sh("ip", "netns", "add", name)
            sh("ip", "-n", router, "link", "add", f"p{number}", "type", "veth",
               "peer", "name", "eth0", "netns", name)
            sh("ip", "-n", router, "addr", "add", f"10.98.{number}.254/24", "dev", f"p{number}")
            sh("ip", "-n", router, "link", "set", f"p{number}", "up")
            sh("ip", "-n", name, "addr", "add", f"10.98.{number}.1/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                sh("ip", "-n", name, "link", "set", device, "up")
            sh("ip", "-n", name, "route", "add", "default", "via", f"10.98.{number}.254")
        self.inside("bridge", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        return self

    def publish(self, records, ttl=300):
        """dnsmasq with these TXT records, {name: [text]}, in place of the one before."""
        if self.server:
            self.server.terminate()
            self.server.wait(timeout=20)
        configuration = os.path.join(self.directory, "dnsmasq.conf")
        with open(configuration, "w") as f:
            f.write(f"no-resolv\nno-hosts\nlocal=/{ORIGIN}/\nlocal-ttl={ttl}\nlog-queries\n"
                    "log-facility=-\nuser=root\npid-file=\nbind-interfaces\n")
            for number in range(1, self.count + 1):
                f.write(f"listen-address=10.98.{number}.254\n")
            for name, texts in records.items():
                for text in texts:
                    f.write(f'txt-record={name},"{text}"\n')
        started = self.read("dnsmasq").count("started") if self.server else 0
        self.server = self.start("bridge", "dnsmasq", "dnsmasq", "--keep-in-foreground",
                                 f"--conf-file={configuration}")
        wait_for("dnsmasq", lambda: self.read("dnsmasq").count("started") > started)

    def asked(self, name, of=None):
        """How often the server was asked for a name."""
        wanted = f"query[TXT] {name} from {of or ''}"
        return self.read("dnsmasq").count(wanted)

    def dig(self, number, name, *options):
        return self.inside(number, "dig", f"@10.98.{number}.254", "TXT", name, *options)


class Node(test_discovery.Node):
    """One that knows nothing but endpoint ids."""

    def __init__(self, link, number, *options, address=None, env=None, resolver=None):
        self.link, self.number = link, number
        self.address = address or "0.0.0.0:7700"
        self.data = os.path.join(link.directory, f"data-{number}")
        words = [f"{bin_dir()}/aspen-node", "--node-id", str(number), "--cookie-file", link.cookie,
                 "--data-dir", self.data, "--listen", self.address, *options]
        if resolver:
            path = os.path.join(link.directory, f"resolv-{number}.conf")
            with open(path, "w") as f:
                f.write(resolver)
            words = ["unshare", "-m", "sh", "-c",
                     'mount --bind "$0" /etc/resolv.conf && exec "$@"', path, *words]
        self.process = link.start(number, f"node-{number}", *words, env=env)
        wait_for(f"node {number} up", lambda: "is up; its sockets" in self.log()
                 or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()

    @staticmethod
    def identity(link, number):
        """Its endpoint id, before it runs."""
        state = os.path.join(link.directory, f"data-{number}", "net")
        os.makedirs(state, mode=0o700, exist_ok=True)
        return subprocess.check_output(
            [f"{bin_dir()}/aspend-net", "--print-identity", "--state-dir", state], text=True).strip()

    def cli(self, *arguments, check=True):
        done = subprocess.run(
            ["ip", "netns", "exec", self.link.name(self.number), f"{bin_dir()}/aspen-cli", *arguments,
             "--socket", os.path.join(self.data, "run", "raft.sock")], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}\n{self.log()[-2000:]}"
        return done.stdout

    def peers(self):
        """{endpoint id: line} of `peers list`."""
        return {line["endpoint_id"]: line
                for line in json.loads(self.cli("peers", "list", "--json"))["peers"]}


SWITCHES = ("--disable-mdns", "--enable-dns-discovery", "--dns-discovery-origin", ORIGIN)


def nodes_find_each_other_through_dns():
    """By what is documented: nothing but endpoint ids in the settings, addresses in DNS alone."""
    with Segments(2) as link:
        one, two = (Node.identity(link, number) for number in (1, 2))
        link.publish({record_name(one): ["addr=10.98.1.1:7700"],
                      record_name(two): ["relay=https://relay.test", "addr=10.98.2.1:7700"]})
        started = time.monotonic()
        # The first server is not there; and the other node reads what it is told from files.
        first = Node(link, 1, *SWITCHES, "--peers", f"2@{two}", "--dns-servers", "10.98.1.254:5399",
                     "--dns-servers", "10.98.1.254:53")
        configuration = os.path.join(link.directory, "etc")
        os.makedirs(configuration)
        with open(os.path.join(configuration, "aspen.toml"), "w") as f:
            f.write(f'[node]\npeers = ["1@{one}"]\n[discovery]\ndisable_mdns = true\n'
                    f'enable_dns_discovery = true\ndns_discovery_origin = "{ORIGIN}"\n')
        second = Node(link, 2, "--config", configuration,
                      resolver="# of a test\nnameserver 10.98.2.254\n")

        def linked(node, other):
            line = node.peers().get(other)
            return line and line["connected"] and line
        for node, other in ((first, two), (second, one)):
            wait_for(f"a link of node {node.number}", lambda: linked(node, other), 30)
        took = time.monotonic() - started
        line = first.peers()[two]
        assert "dns" in line["found_by"] and "10.98.2.1:7700" in line["addresses"], line
        table = first.cli("peers", "list")
        assert "dns" in table, table

        # What a node prints for the zone is what DNS has, and what dig shows.
        for node, endpoint, address in ((first, one, "10.98.1.1:7700"),
                                        (second, two, "10.98.2.1:7700")):
            said = node.cli("peers", "dns-record", "--origin", ORIGIN)
            assert said == f'{record_name(endpoint)}. 300 IN TXT "addr={address}"\n', said
            seen = link.dig(1, record_name(endpoint), "+short")
            assert f'"addr={address}"' in seen.splitlines(), seen

        # And consensus goes that way, too: its addresses come from there.
        first.cli("cluster", "init")
        first.cli("cluster", "add-learner", "--node-id", "2")
        first.cli("kv", "set", "found", "through DNS")
        assert first.cli("cluster", "endpoint").strip() == f"1@{one}@10.98.1.1:7700"
        # Who is connected is asked for no more.
        before = link.asked(record_name(two), "10.98.1.1")
        assert before >= 1
        for node in (first, second):
            assert "warning: DNS cannot be asked" not in node.log(), node.log()
            # The sockets of questions that were answered are closed.
            assert link.inside(node.number, "ss", "-unH", "dport", "=", "53") == ""
        # A member that no setting names, and that is not there to speak for itself.
        second.stop()
        first.stop()
        first = Node(link, 1, *SWITCHES, "--dns-servers", "10.98.1.254:53")

        def known():
            said = first.cli("peers", "list", "--json", check=False)
            lines = json.loads(said).get("peers", []) if said.startswith("{") else []
            # That it is a member is known at once.
            return [line for line in lines if line["endpoint_id"] == two and line["found_by"]]
        line = wait_for("what DNS says of a member", known, 20)[0]
        assert line["found_by"] == ["dns"] and line["addresses"] == ["10.98.2.1:7700"], line
        print(f"connected {took:.2f} s after the first start; asked {before} times")


def a_truncated_answer_is_asked_for_over_tcp():
    with Segments(2) as link:
        two = Node.identity(link, 2)
        texts = [f"filler={number:040}" for number in range(20)] + ["addr=10.98.2.1:7700"]
        link.publish({record_name(two): texts})
        cut = link.dig(1, record_name(two), "+ignore", "+noedns")
        assert " tc " in cut or " tc;" in cut, cut
        first = Node(link, 1, *SWITCHES, "--peers", f"2@{two}", "--dns-servers", "10.98.1.254:53")
        wait_for("its address", lambda: first.peers()[two]["addresses"] == ["10.98.2.1:7700"], 20)
        # (dig's is another)
        assert link.asked(record_name(two), "10.98.1.1") == 3, link.read("dnsmasq")


def answers_are_kept_as_long_as_they_are_good_for():
    """A node that moves is found where it is now when the old answer is over, and not asked for before."""
    ttl = 6
    with Segments(2) as link:
        two = Node.identity(link, 2)
        name = record_name(two)
        link.publish({name: ["addr=10.98.2.99:7700"]}, ttl)
        first = Node(link, 1, *SWITCHES, "--peers", f"2@{two}", "--dns-servers", "10.98.1.254:53")
        wait_for("the first answer",
                 lambda: first.peers()[two]["addresses"] == ["10.98.2.99:7700"], 20)
        answered = time.monotonic()
        assert link.asked(name) == 1
        link.publish({name: ["addr=10.98.2.1:7700"]}, ttl)
        Node(link, 2, "--disable-mdns")
        wait_for("the second question", lambda: link.asked(name) == 2, 20)
        waited = time.monotonic() - answered
        assert ttl - 1.0 < waited < ttl + 3.0, waited
        wait_for("a link", lambda: first.peers()[two]["connected"], 20)
        moved = time.monotonic() - answered
        print(f"asked again after {waited:.2f} s of {ttl}, connected after {moved:.2f} s")


LIAR = """
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 5353))
print('bound', flush=True)
while True:
    query, sender = s.recvfrom(4096)
    question = query[12:]
    def record(text):
        data = bytes([len(text)]) + text
        return b'\\xc0\\x0c' + struct.pack('>HHIH', 16, 1, 300, len(data)) + data
    def answer(text, id=query[:2], flags=0x8180, question=question):
        return id + struct.pack('>HHHHH', flags, 1, 1, 0, 0) + question + record(text)
    evil, good = b'addr=10.66.66.66:7700', b'addr=10.98.2.1:7700'
    other = bytes([query[0] ^ 0x55, query[1]])
    name = b'\\x04evil' + question
    for packet in (b'', b'x', bytes(9000), query, answer(evil, id=other), answer(evil, flags=0x0100),
                   answer(evil, question=name), answer(good)[:-5], b'\\xff' * 500,
                   answer(evil)[:12] + b'\\xc0\\x0c' * 200, answer(good), answer(evil)):
        s.sendto(packet, sender)
    print('asked', flush=True)
"""


def lies_and_rubbish_are_harmless():
    with Segments(2) as link:
        two = Node.identity(link, 2)
        link.start("bridge", "liar", sys.executable, "-c", LIAR)
        wait_for("the liar", lambda: "bound" in link.read("liar"))
        second = Node(link, 2, "--disable-mdns")
        first = Node(link, 1, *SWITCHES, "--peers", f"2@{two}",
                     env={"ASPEN_DNS_SERVERS": "10.98.1.254:5353"})
        wait_for("a link", lambda: first.peers()[two]["connected"], 20)
        assert first.peers()[two]["addresses"] == ["10.98.2.1:7700"], first.peers()
        assert link.read("liar").count("asked") == 1
        for node in (first, second):
            assert "starting it again" not in node.log(), node.log()


def without_a_name_server_the_node_lives():
    with Segments(1) as link:
        two = base64.b32encode(bytes(range(32))).decode().lower().strip("=")
        first = Node(link, 1, *SWITCHES, "--peers", f"2@{two}",
                     resolver="nameserver fe80::1%eth0\nnameserver nobody.test\n")
        # Nobody is left but this machine itself, where none runs.
        wait_for("the servers named", lambda: "servers=127.0.0.1:53" in first.log())
        first.cli("cluster", "init")
        first.cli("kv", "set", "still", "there")
        assert first.peers()[two]["addresses"] == []


def gossip_can_be_switched_off():
    """They find each other, and a cluster works; but there is no link, with whomever."""
    with Link(3) as link:
        first = Node(link, 1, "--disable-gossip", address="10.99.0.1:7700")
        second = Node(link, 2, address="10.99.0.2:7700", env={"ASPEN_DISABLE_GOSSIP": "true"})
        third = Node(link, 3, address="10.99.0.3:7700")
        own = {node.number: Node.identity(link, node.number) for node in (first, second, third)}
        for node in (first, second, third):
            others = {own[n] for n in own if n != node.number}
            wait_for(f"what node {node.number} finds", lambda: set(node.peers()) == others)
        first.cli("cluster", "init")
        first.cli("cluster", "add-learner", "--node-id", "2")
        first.cli("cluster", "change-membership", "1", "2")
        first.cli("kv", "set", "without", "gossip")
        # Net's own connection shows that the other is there.
        wait_for("the other member", lambda: first.peers()[own[2]]["connected"])
        assert "gossip=off" in first.log() and "gossip=off" in second.log()
        # Nobody has heard an announcement of, or by way of, those who take no part.
        assert own[3] in first.peers()
        for node in (first, second, third):
            assert {line["state"] for line in node.peers().values()} <= {"unknown", "connected"}, \
                node.peers()
        for node in (first, second):
            line = node.peers()[own[3]]
            assert not line["connected"] and line["found_by"] == ["mdns"], line


def what_makes_no_sense_is_refused():
    with Link(1) as link:
        def refused(*options, env=None):
            done = subprocess.run(
                [f"{bin_dir()}/aspen-node", "--node-id", "1", "--cookie-file", link.cookie,
                 "--data-dir", os.path.join(link.directory, "data"), *options],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=20, env={**os.environ, **(env or {})})
            assert done.returncode == 64, done.stdout
            return done.stdout
        assert "not yet" in refused("--enable-pkarr")
        assert "not yet" in refused(env={"ASPEN_ENABLE_PKARR": "true"})
        assert "--dns-discovery-origin" in refused("--enable-dns-discovery")
        configuration = os.path.join(link.directory, "etc")
        os.makedirs(configuration)
        with open(os.path.join(configuration, "aspen.toml"), "w") as f:
            f.write("[discovery]\nenable_pkarr = true\n")
        done = subprocess.run([f"{bin_dir()}/aspen-cli", "config", "check", "--quiet", "--config",
                               configuration], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=20)
        assert "not yet" in done.stdout, done.stdout


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("SKIPPED, discovery through DNS in network namespaces: not root")
        sys.exit(0)
    run(nodes_find_each_other_through_dns, a_truncated_answer_is_asked_for_over_tcp,
        answers_are_kept_as_long_as_they_are_good_for, lies_and_rubbish_are_harmless,
        without_a_name_server_the_node_lives, gossip_can_be_switched_off,
        what_makes_no_sense_is_refused)
