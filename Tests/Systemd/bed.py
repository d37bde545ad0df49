# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines of the test bed, and a cluster on them."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
DAEMONS = ("aspend-net", "aspend-raft", "aspend-gossip")
SOCKETS = ("aspend-net.socket", "aspend-net-quic.socket", "aspend-raft.socket",
           "aspend-raft-peer.socket", "aspend-gossip.socket", "aspend-gossip-peer.socket",
           "aspend-gossip-mdns.socket",
           "aspend-gossip-routes.socket", "aspend-egress.socket")
# A process for each request, by a template.
EGRESS = "aspend-egress@"
# Where the program of each unit lies.
PROGRAMS = {daemon: f"/usr/libexec/aspen/{daemon}" for daemon in DAEMONS}
PROGRAMS[EGRESS] = "/usr/libexec/aspen/aspend-egress"
PROGRAMS["aspen-config-check"] = "/usr/bin/aspen-cli"


def packages():
    """The directory of the .deb files: ASPEN_PACKAGES, or where packaging/build-deb.sh puts them."""
    return os.environ.get("ASPEN_PACKAGES") or os.path.join(ROOT, "packaging", "out")


def package(name):
    """The path of the one package of that name."""
    found = [f for f in os.listdir(packages())
             if re.fullmatch(rf"{name}_[^_]+_[^_]+\.deb", f)]
    assert len(found) == 1, f"{name} in {packages()}: {found or 'missing'}"
    return os.path.join(packages(), found[0])


def version():
    return os.path.basename(package("aspen")).split("_")[1]


def bench():
    """aspen-bench out of the packages, and the environment in which it finds its libraries."""
    root = os.path.join(os.environ.get("TMPDIR", "/tmp"), "aspen-testbed-tools")
    for name in ("aspen-tools", "aspen-runtime"):
        mark = os.path.join(root, f"{name}.from")
        made = f"{package(name)} {os.path.getmtime(package(name))}"
        if not os.path.exists(mark) or open(mark).read() != made:
            os.makedirs(root, exist_ok=True)
            subprocess.run(["dpkg-deb", "-x", package(name), root], check=True)
            with open(mark, "w") as f:
                f.write(made)
    return (os.path.join(root, "usr/bin/aspen-bench"),
            {**os.environ, "LD_LIBRARY_PATH": os.path.join(root, "usr/lib/aspen")})


def wait_for(what, condition, seconds=30.0, every=0.01):
    """Polls until `condition` gives something true; fails loudly when it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain for: {what}")


class Result:
    def __init__(self, done):
        self.code = done.returncode
        self.out = done.stdout.decode(errors="replace")
        self.err = done.stderr.decode(errors="replace")

    def json(self):
        return json.loads(self.out)


def testbed(*arguments, check=True, **more):
    done = subprocess.run([os.path.join(HERE, "testbed"), *arguments], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"testbed {' '.join(arguments)}: {done.stderr.decode()[-800:]}")
    return Result(done)


SUITE = ("aspen-runtime", "aspen-cli", "aspen")


def walkthrough():
    """(machine, command) of each line of each block of the page ThreeMachines."""
    with open(os.path.join(ROOT, "Sources/Documentation/Aspen.docc/ThreeMachines.md")) as f:
        blocks = re.findall(r"^```sh (\w+)\n(.*?)^```$", f.read(), re.M | re.S)
    return [(name, line) for name, block in blocks for line in block.splitlines()]


class Machine:
    def __init__(self, number):
        self.number = number
        self.address = f"10.77.0.{number}"
        root = os.environ.get("TB_ROOT", "/var/tmp/aspen-testbed/machines")
        self.disk = os.path.join(root, f"n{number}", "root")

    # -- Running things

    @property
    def pid(self):
        """Its PID 1, as seen from here."""
        return int(testbed("pid", str(self.number)).out)

    def run(self, *arguments, check=0, stdin=b"", timeout=60):
        """A command as root of the machine."""
        command = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--",
                   *arguments]
        done = Result(subprocess.run(command, input=stdin, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, timeout=timeout))
        if check is not None and done.code != check:
            raise AssertionError(f"n{self.number}: {' '.join(arguments)}: exit {done.code}, not "
                                 f"{check}\n{done.out[-2000:]}\n{done.err[-2000:]}")
        return done

    def sh(self, script, check=0, timeout=60):
        return self.run("sh", "-c", script, check=check, timeout=timeout)

    def cli(self, *arguments, check=0, timeout_ms=10_000):
        return self.run("aspen-cli", "--timeout", str(timeout_ms), *arguments, check=check)

    def systemctl(self, *arguments, check=0, timeout=60):
        return self.run("systemctl", *arguments, check=check, timeout=timeout)

    # -- What is seen

    def show(self, unit, *properties):
        text = self.systemctl("show", unit, *(f"-p{p}" for p in properties)).out
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def status_text(self, unit):
        return self.show(unit, "StatusText").get("StatusText", "")

    def daemon_pid(self, unit):
        return int(self.show(unit, "MainPID").get("MainPID", "0"))

    def is_active(self, unit):
        return self.systemctl("is-active", unit, check=None).out.strip() == "active"

    def failed_units(self):
        lines = self.systemctl("list-units", "--failed", "--plain", "--no-legend").out.splitlines()
        return [line.split()[0] for line in lines if line.strip()]

    def journal(self, *arguments):
        """Records as dictionaries, oldest first."""
        text = self.run("journalctl", "--no-pager", "-o", "json", *arguments).out
        return [json.loads(line) for line in text.splitlines() if line]

    def cursor(self):
        text = self.run("journalctl", "-n", "1", "--show-cursor", "--no-pager").out
        return re.search(r"-- cursor: (\S+)", text).group(1)

    def host_path(self, path):
        """Of a file of the running machine, mounts and all, for programs out here."""
        return f"/proc/{self.pid}/root{path}"

    @property
    def raft_socket(self):
        return self.host_path("/run/aspen/raft.sock")

    def status(self):
        return self.cli("cluster", "status", "-o", "json").json()

    def leader(self):
        """(number, term), or None."""
        answer = self.cli("cluster", "leader", "-o", "json", check=None, timeout_ms=1000)
        if answer.code != 0:
            return None
        answer = answer.json()
        return (answer["leader_id"], answer["term"]) if answer.get("leader_id") else None

    def processor_seconds(self):
        """What all of the machine has used so far."""
        group = f"{os.environ.get('TB_NET', 'aspentb')}-n{self.number}"
        for path, unit in ((f"/sys/fs/cgroup/cpuacct/{group}/cpuacct.usage", 1e9),
                           (f"/sys/fs/cgroup/{group}/cpu.stat", 1e6)):
            if os.path.exists(path):
                with open(path) as f:
                    return int(re.search(r"\d+", f.read()).group()) / unit
        return 0.0

    # -- Configuration

    def copy_packages(self, files, directory="/root"):
        for file in files:
            shutil.copy(file, self.disk + directory)

    def write(self, path, text, mode=0o644):
        full = self.disk + path
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if os.path.exists(full):
            os.remove(full)
        with open(full, "w", opener=lambda p, f: os.open(p, f, mode)) as f:
            f.write(text)
        os.chmod(full, mode)

    def drop_in(self, unit, name, lines):
        self.write(f"/etc/systemd/system/{unit}.d/{name}.conf", "\n".join(lines) + "\n")

    def remove_drop_in(self, unit, name):
        os.remove(f"{self.disk}/etc/systemd/system/{unit}.d/{name}.conf")
        self.systemctl("daemon-reload")

    # -- Harm

    def kill_daemon(self, unit, signal="KILL"):
        self.systemctl("kill", "-s", signal, unit)

    def wait_serving(self, seconds=30):
        wait_for(f"n{self.number} to know a leader", self.leader, seconds, 0.05)


class Cluster:
    """`with Cluster(3) as c:` gives machines that are one cluster, and leaves nothing behind."""

    def __init__(self, count=3, form=True, unified=False):
        self.machines = [Machine(number) for number in range(1, count + 1)]
        self.form_it = form
        self.environment = {**os.environ, "TB_UNIFIED": "1"} if unified else None
        self.audits = 0
        self.cookie = ""
        # What the commands of the walk-through print: ONE, TWO, TICKET, CLIENT, TOKEN …
        self.words = {}

    def __enter__(self):
        testbed("down", check=False)
        try:
            testbed("up", str(len(self.machines)), env=self.environment)
            for machine in self.machines:
                machine.copy_packages(package(n) for n in SUITE)
            if self.form_it:
                self.form()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def form(self):
        """By the very commands of the walk-through, in its order, on its three machines."""
        names = {"one": self.machines[:1], "two": self.machines[1:2], "three": self.machines[2:],
                 "each": self.machines}
        endpoints = self.words
        for name, line in walkthrough():
            line = line.replace("192.0.2.", "10.77.0.").replace("_1.0.0_", f"_{version()}_")
            known = " ".join(f"{name}={word}" for name, word in endpoints.items())
            command = f"cd /root; {known}; {line}" if known else f"cd /root; {line}"
            # What is done on each machine is done on all at once.
            with concurrent.futures.ThreadPoolExecutor() as pool:
                all_done = list(pool.map(lambda m: m.sh(command, timeout=120), names[name]))
            for machine, done in zip(names[name], all_done):
                if line.endswith("credentials/cookie"):
                    self.cookie = done.out.strip()
                    for other in self.machines[1:]:
                        other.write("/root/cookie", done.out, mode=0o600)
                if line.endswith("cluster endpoint"):
                    endpoints[name.upper()] = done.out.strip()
                if line.endswith("client-key"):
                    endpoints["CLIENT"] = done.out.strip()
                if line.startswith("sudo aspen-token delegate"):
                    endpoints["TOKEN"] = done.out.strip()
                if line.endswith("cluster ticket"):
                    endpoints["TICKET"] = done.out.strip()
                if line.endswith("kv get greeting"):
                    assert done.out == "hello world\n", done.out
        for machine in self.machines:
            machine.wait_serving()

    def __exit__(self, kind, value, trace):
        if kind is not None and os.environ.get("TB_KEEP"):
            print("the machines are left running: Tests/Systemd/testbed exec 1 …, down",
                  file=sys.stderr)
            return
        testbed("down", check=False)

    def __getitem__(self, number):
        return self.machines[number - 1]

    def leader(self):
        """(machine, term) once there is a leader."""
        def ask():
            for machine in self.machines:
                answer = machine.leader()
                if answer:
                    return self[answer[0]], answer[1]
            return None
        return wait_for("a leader", ask, 30)

    def load(self, clients=8, machines=None, kind="audit"):
        """aspen-bench against the local sockets of the machines until .finish(), which gives its
        report."""
        program, environment = bench()
        arguments = [program, kind, "--clients", str(clients),
                     "--duration", "600s" if kind != "audit" else "600"]
        for machine in machines or self.machines:
            arguments += ["--socket", machine.raft_socket]
        if kind == "audit":
            self.audits += 1
            arguments += ["--prefix", f"audit/{self.audits}/"]
        return Load(arguments, environment)


class Load:
    def __init__(self, arguments, environment):
        self.process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)

    def finish(self):
        assert self.process.poll() is None, "the load has ended before it was told to"
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=180)
        assert self.process.returncode == 0, (
            f"the load found something wrong: exit {self.process.returncode}\n{out}\n{err}")
        return json.loads(out.splitlines()[0])

    def finish_quietly(self):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=180)


def compile_probe():
    """The stand-in that tries what a sandbox forbids."""
    target = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"aspen-probe-{os.getpid()}")
    subprocess.run([shutil.which("cc") or "clang", "-O1", "-static", "-o", target,
                    os.path.join(HERE, "probe.c"),
                    os.path.join(ROOT, "Sources/System/CAspenSystem/confine.c"),
                    f"-I{ROOT}/Sources/System/CAspenSystem/include", "-lrt"], check=True)
    return target


def instance(unit):
    """The unit that is started: of a template, one by that name."""
    return f"{unit}probe" if unit.endswith("@") else unit


def probe_lines(machine, unit, probe, more=()):
    """What the probe says that is started as that unit's program."""
    program = machine.disk + PROGRAMS[unit]
    machine.systemctl("stop", "aspen.target")
    shutil.move(program, program + ".real")
    shutil.copy(probe, program)
    os.chmod(program, 0o755)
    machine.drop_in(f"{unit}.service", "99-probe",
                    ["[Service]", "Type=oneshot", "Restart=no",
                     *(["Environment=PROBE_EGRESS=1", "RuntimeMaxSec=infinity"]
                       if unit == EGRESS else []), *more])
    machine.systemctl("daemon-reload")
    cursor = machine.cursor()
    try:
        machine.systemctl("start", instance(unit), check=None)
        return wait_for("the probe's end", lambda: (
            lambda found: "PROBE end" in found and found)(
                [r["MESSAGE"] for r in machine.journal("-u", instance(unit), "--after-cursor", cursor)
                 if str(r["MESSAGE"]).startswith("PROBE")]), 60, 0.2)
    finally:
        machine.systemctl("stop", "aspen.target")
        shutil.move(program + ".real", program)
        machine.remove_drop_in(f"{unit}.service", "99-probe")
