#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A client written from Protocols.md and aspen_client.proto alone: python_client.py SOCKET."""
import socket
import struct
import sys


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(*fields):
    """Fields are (number, value): int, bytes, str, or a nested tuple of fields."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = message(*value) if isinstance(value, tuple) else value
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def parse(data):
    """Every field's values by number; what is nested stays bytes."""
    found, at = {}, 0

    def read():
        nonlocal at
        n = shift = 0
        while True:
            byte, at = data[at], at + 1
            n, shift = n | (byte & 127) << shift, shift + 7
            if byte < 128:
                return n
    while at < len(data):
        key = read()
        if key & 7 == 0:
            value = read()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or read()
            value, at = data[at:at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file, self.id = self.socket.makefile("rb"), 0

    def send(self, request, *fields):
        self.id += 1
        body = struct.pack("<Q", self.id) + message((request, fields))
        self.socket.sendall(struct.pack("<I", len(body)) + body)
        return self.id

    def receive(self):
        length, = struct.unpack("<I", self.file.read(4))
        frame = self.file.read(length)
        answer = parse(frame[8:])
        if 1 in answer:
            error = parse(answer[1][0])
            raise RuntimeError(error[1][0], error[2][0].decode())
        return struct.unpack("<Q", frame[:8])[0], parse(*next(iter(answer.values())))

    def ask(self, request, *fields):
        self.send(request, *fields)
        return self.receive()[1]


if __name__ == "__main__":
    client = Client(sys.argv[1])
    if "--init" in sys.argv:
        client.ask(15)                                              # InitCluster
    status = client.ask(11)                                         # GetClusterStatus
    written = client.ask(18, (1, "py/a"), (2, "one"))               # WriteKey
    entry = parse(client.ask(19, (1, "py/a"))[1][0])                # ReadKey
    assert entry[2] == [b"one"] and entry[4] == written[1], entry
    swap = client.ask(25, (1, ((1, "py/a"), (3, "one"))),           # Transaction: if py/a is one
                      (2, ((1, ((1, "py/b"), (2, "two"))),)))       # then put py/b
    assert swap[1] == [1], swap
    scan = client.ask(21, (1, "py/"))                               # ScanKeys
    assert [parse(e)[1][0] for e in scan[1]] == [b"py/a", b"py/b"], scan
    watch = client.send(32, (1, "py/"), (2, "py0"), (3, written[1][0]))     # Watch
    events = []
    while len(events) < 2:
        number, update = client.receive()
        assert number == watch
        events += [parse(parse(e)[2][0])[1][0] for e in update.get(2, [])]
    assert events == [b"py/a", b"py/b"], events
    client.ask(33, (1, watch))                                      # CancelWatch
    print("ok", status[1][0].decode())
