#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Discovery on the local link: real nodes in network namespaces of their own, on one bridge, and avahi
beside them. Nothing of it touches the interfaces of this machine."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

from aspen_cluster import alive, bin_dir, run, wait_for

SERVICE = "_aspen._udp"
NEEDED = ("ip", "ss", "dbus-daemon", "avahi-daemon", "avahi-browse", "avahi-publish")


def sh(*arguments, check=True):
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}"
    return done.stdout


class Link:
    """Network namespaces on one bridge: `place(n)` has 10.99.0.n/24 on eth0."""

    needed = NEEDED

    def __init__(self, count):
        self.prefix, self.count = f"aspen-link-{os.getpid()}", count
        self.processes = []
        self.holder = tempfile.TemporaryDirectory(prefix="aspen-link-", dir="/tmp")
        self.directory = self.holder.name
        self.cookie = os.path.join(self.directory, "cookie")
        with open(self.cookie, "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(os.urandom(32).hex())

    def name(self, number):
        return f"{self.prefix}-{number}"

    def __enter__(self):
        missing = [program for program in self.needed if not shutil.which(program)]
        assert not missing, f"needs {missing}: apt-get install iproute2 dbus avahi-daemon avahi-utils"
        bridge = self.name("bridge")
        sh("ip", "netns", "add", bridge)
        sh("ip", "-n", bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        sh("ip", "-n", bridge, "link", "set", "br0", "up")
        for number in range(1, self.count + 1):
            name = self.name(number)
            sh("ip", "netns", "add", name)
            sh("ip", "-n", bridge, "link", "add", f"p{number}", "type", "veth",
               "peer", "name", "eth0", "netns", name)
            sh("ip", "-n", bridge, "link", "set", f"p{number}", "master", "br0", "up")
            # An address of IPv6 would be checked for a second first.
            self.inside(number, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
            sh("ip", "-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                sh("ip", "-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            for name in sorted(os.listdir(self.directory)):
                if name.endswith(".log"):
                    with open(os.path.join(self.directory, name), errors="replace") as f:
                        print(f"--- {name}\n{f.read()[-2500:]}")
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for number in [*range(1, self.count + 1), "bridge"]:
            sh("ip", "netns", "del", self.name(number), check=False)
        self.holder.cleanup()

    def inside(self, number, *arguments, **more):
        return sh("ip", "netns", "exec", self.name(number), *arguments, **more)

    def start(self, number, log, *arguments, env=None):
        with open(self.log_path(log), "ab") as f:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name(number), *arguments], stdin=subprocess.DEVNULL,
                stdout=f, stderr=f, start_new_session=True, env={**os.environ, **(env or {})})
        self.processes.append(process)
        return process

    def log_path(self, log):
        return os.path.join(self.directory, f"{log}.log")

    def read(self, log):
        with open(self.log_path(log), errors="replace") as f:
            return f.read()


class Node:
    def __init__(self, link, number, *options, address=None, env=None):
        self.link, self.number = link, number
        self.data = os.path.join(link.directory, f"data-{number}")
        self.address = address or f"10.99.0.{number}:7700"
        up = "is up; its sockets"
        before = self.log().count(up) if os.path.exists(link.log_path(self.log_name)) else 0
        # A state directory of its own, whichever network it is in.
        self.process = link.start(
            number, self.log_name, f"{bin_dir()}/aspen-node", "--node-id", str(number),
            "--cookie-file", link.cookie, "--data-dir", self.data, "--listen", self.address,
            *options, env=env)
        wait_for(f"node {number} up", lambda: self.log().count(up) > before
                 or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()

    @property
    def log_name(self):
        return f"node-{self.number}"

    def log(self):
        return self.link.read(self.log_name)

    def discovered(self):
        """{node: [address]} as gossip.sock has it."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(os.path.join(self.data, "run", "gossip.sock"))
            s.sendall(struct.pack("<IB", 1, 1))
            stream = s.makefile("rb")
            body = stream.read(struct.unpack("<I", stream.read(4))[0])
        kind, count = struct.unpack_from("<BI", body)
        assert kind == 1, body
        found, place = {}, 5
        for _ in range(count):
            source, node = struct.unpack_from("<BQ", body, place)
            assert source == 1
            place += 9 + 32
            addresses, = struct.unpack_from("<I", body, place)
            place += 4
            found[node] = []
            for _ in range(addresses):
                length, = struct.unpack_from("<I", body, place)
                found[node].append(body[place + 4:place + 4 + length].decode())
                place += 4 + length
        assert place == len(body)
        return found

    def finds(self, *others, seconds=10.0):
        """Exactly these; gives the seconds that it took."""
        wanted = {other.number: [other.address] for other in others}
        started = time.monotonic()
        try:
            wait_for("", lambda: self.discovered() == wanted, seconds)
        except AssertionError:
            raise AssertionError(
                f"node {self.number}: {self.discovered()}, not {wanted}") from None
        return time.monotonic() - started

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=20)


@contextlib.contextmanager
def avahi(link, number):
    """avahi-daemon with a bus of its own, in the namespace; gives the environment for its clients."""
    bus = os.path.join(link.directory, "bus")
    configuration = os.path.join(link.directory, "bus.conf")
    with open(configuration, "w") as f:
        f.write(f"""<busconfig><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>
            <policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
            <allow receive_sender="*"/></policy></busconfig>""")
    settings = os.path.join(link.directory, "avahi.conf")
    with open(settings, "w") as f:
        f.write("[server]\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces=eth0\n"
                "[publish]\npublish-workstation=no\n")
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
    link.start(number, "bus", "dbus-daemon", f"--config-file={configuration}", "--nofork",
               "--nopidfile")
    wait_for("the bus", lambda: os.path.exists(bus))
    # Its run-time directory is its own, too.
    link.start(number, "avahi", "unshare", "-m", "sh", "-c",
               "mkdir -p /run/avahi-daemon && mount -t tmpfs none /run/avahi-daemon && "
               f"exec avahi-daemon -f {settings} --no-drop-root --no-chroot --no-rlimits",
               env=environment)
    wait_for("avahi", lambda: "Server startup complete" in link.read("avahi"))
    yield environment


def browse(link, number, environment):
    """{name: (port, txt)} as avahi-browse tells it."""
    done = subprocess.run(
        ["ip", "netns", "exec", link.name(number), "avahi-browse", "-rtp", SERVICE],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60,
        env={**os.environ, **environment})
    found = {}
    for line in done.stdout.splitlines():
        fields = line.split(";")
        if fields[0] == "=" and fields[2] == "IPv4":
            found[fields[3]] = (fields[7], fields[8], fields[9])
    return found


def nodes_on_one_link_find_each_other():
    with Link(3) as link:
        nodes = [Node(link, number) for number in (1, 2, 3)]
        took = [node.finds(*(n for n in nodes if n is not node)) for node in nodes]
        # Who goes is lost at once, for he says so.
        nodes[2].stop()
        gone = nodes[0].finds(nodes[1])
        # A daemon that is killed comes back and finds them anew.
        nodes[2] = Node(link, 3)
        for node in nodes:
            node.finds(*(n for n in nodes if n is not node))
        # An interface that goes down takes what was found there with it, and brings it back.
        sh("ip", "-n", link.name(1), "link", "set", "eth0", "down")
        down = nodes[0].finds()
        sh("ip", "-n", link.name(1), "link", "set", "eth0", "up")
        up = nodes[0].finds(nodes[1], nodes[2])
        print(f"found within {max(took):.2f} s of the last start, lost {gone:.2f} s after a goodbye; "
              f"down seen in {down:.2f} s, found again in {up:.2f} s")


def avahi_and_nodes_see_each_other():
    with Link(3) as link, avahi(link, 1) as environment:
        nodes = [Node(link, number) for number in (1, 2, 3)]
        for node in nodes:
            node.finds(*(n for n in nodes if n is not node))
        found = wait_for("three nodes in avahi-browse", lambda: (
            lambda seen: seen if len(seen) == 3 else None)(browse(link, 1, environment)), 60)
        by_number = {}
        for name, (address, port, text) in found.items():
            texts = dict(word.strip('"').split("=", 1) for word in text.split('" "'))
            assert texts["id"].startswith(name) and texts["v"] == "1", (name, text)
            assert len(texts["id"]) == 52 and port == "7700", (name, text, port)
            by_number[int(texts["node"])] = address
        assert by_number == {n: f"10.99.0.{n}" for n in (1, 2, 3)}, found
        # Somebody whom avahi announces is found by all, the one beside it included.
        identity = "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq"
        link.start(1, "publish", "avahi-publish", "-s", "by-avahi", SERVICE, "7799",
                   f"id={identity}", "node=9", "v=1", env=environment)
        for node in nodes:
            wait_for(f"node 9 at node {node.number}", lambda: node.discovered().get(9), 10)
            # (avahi has this machine's addresses of both families; those of one link only are no use.)
            assert node.discovered()[9] == ["10.99.0.1:7799"], node.discovered()
        holders = link.inside(1, "ss", "-lunpH", "sport", "=", "5353")
        assert "avahi-daemon" in holders and "aspend-gossip" in holders, holders
        print(f"avahi-browse: {sorted(found)}")


def a_port_that_is_taken_is_only_a_warning():
    with Link(2) as link:
        taker = link.start(
            1, "taker", "python3", "-c",
            "import socket, signal\n"
            "for family in (socket.AF_INET, socket.AF_INET6):\n"
            "    s = socket.socket(family, socket.SOCK_DGRAM)\n"
            "    family == socket.AF_INET6 and s.setsockopt(41, 26, 1)\n"
            "    s.bind(('', 5353)); globals()[str(family)] = s\n"
            "print('bound', flush=True); signal.pause()")
        wait_for("the port taken", lambda: "bound" in link.read("taker"))
        first, second = Node(link, 1), Node(link, 2)
        assert "UDP port 5353 cannot be bound" in first.log(), first.log()
        assert "neither found nor told" in first.log(), first.log()
        assert first.discovered() == {} and second.discovered() == {}
        assert alive(taker.pid)


def discovery_can_be_switched_off():
    with Link(2) as link:
        first = Node(link, 1, "--disable-mdns")
        second = Node(link, 2, env={"ASPEN_DISABLE_MDNS": "true"})
        for node in (first, second):
            assert "warning" not in node.log(), node.log()
            assert node.discovered() == {}
            assert link.inside(node.number, "ss", "-lunH", "sport", "=", "5353") == ""


def nodes_on_loopback_keep_to_themselves():
    """Three for development, on one machine: they find each other, and nobody outside hears of them."""
    with Link(2) as link:
        outside = Node(link, 2)
        own = []
        for number, port in ((1, 7701), (3, 7703)):
            node = Node.__new__(Node)
            node.link, node.number = link, number
            node.data = os.path.join(link.directory, f"data-{number}")
            node.address = f"127.0.0.1:{port}"
            node.process = link.start(
                1, f"node-{number}", f"{bin_dir()}/aspen-node", "--node-id", str(number),
                "--cookie-file", link.cookie, "--data-dir", node.data, "--listen", node.address)
            own.append(node)
        for node in own:
            wait_for(f"node {node.number} up", lambda: "is up; its sockets" in node.log())
        own[0].finds(own[1])
        own[1].finds(own[0])
        assert outside.discovered() == {}, outside.discovered()


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("SKIPPED, discovery in network namespaces: not root")
        sys.exit(0)
    run(nodes_on_one_link_find_each_other, avahi_and_nodes_see_each_other,
        a_port_that_is_taken_is_only_a_warning, discovery_can_be_switched_off,
        nodes_on_loopback_keep_to_themselves)
