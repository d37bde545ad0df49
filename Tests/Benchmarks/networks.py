# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks of the benchmarks' own: a namespace for each node on one bridge, whose ports can be closed so
that packets vanish without a word to anybody."""

import ctypes
import os

from test_discovery import Link, sh

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


class Networks(Link):
    """`place(n)` of n in 1...count; clients are where the bridge is, at 10.99.0.100, and so is the
    thread that entered, with whatever it starts. Needs root."""

    needed = ("ip", "bridge")

    def __enter__(self):
        super().__enter__()
        try:
            bridge = self.name("bridge")
            sh("ip", "-n", bridge, "addr", "add", "10.99.0.100/24", "dev", "br0")
            sh("ip", "-n", bridge, "link", "set", "lo", "up")
            self.fix_neighbours()
            self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            enter(f"/run/netns/{bridge}")
        except BaseException as error:
            super().__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind, value, trace):
        if LIBC.setns(self.home, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(self.home)
        super().__exit__(kind, value, trace)

    def fix_neighbours(self):
        """Nobody asks who has an address: the silence of the answer would be a sign."""
        places = {number: (self.name(number), "eth0", f"10.99.0.{number}")
                  for number in range(1, self.count + 1)}
        places[0] = (self.name("bridge"), "br0", "10.99.0.100")
        hardware = {}
        for number, (name, device, _) in places.items():
            words = sh("ip", "-n", name, "-o", "link", "show", "dev", device).split()
            hardware[number] = words[words.index("link/ether") + 1]
        for number, (name, device, _) in places.items():
            for other, (_, _, address) in places.items():
                if other != number:
                    sh("ip", "-n", name, "neigh", "replace", address, "lladdr", hardware[other],
                       "dev", device, "nud", "permanent")

    def place(self, number):
        """(address, command prefix)"""
        return f"10.99.0.{number}", ["ip", "netns", "exec", self.name(number)]

    def cut(self, number):
        """What the node sends, and what is sent to it, vanishes on the bridge; its own link stays up."""
        sh("bridge", "link", "set", "dev", f"p{number}", "state", "0")

    def mend(self, number):
        sh("bridge", "link", "set", "dev", f"p{number}", "state", "3")


def enter(path):
    with open(path) as f:
        if LIBC.setns(f.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {path}")
