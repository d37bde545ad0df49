# SPDX-License-Identifier: GPL-2.0-or-later
"""Capability tokens, made and judged by what the page Tokens.md says of their bytes, and by nothing else of
this project: what a third party would write. Ed25519 is RFC 8032's own reference code, in short."""

import base64
import hashlib
import os
import struct

# Ed25519 (RFC 8032, section 6): slow, and plain to see.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)


def _add(p, q):
    a = (p[1] - p[0]) * (q[1] - q[0]) % P
    b = (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(s, p):
    q = (0, 1, 1, 0)
    while s:
        if s & 1:
            q = _add(q, p)
        p = _add(p, p)
        s >>= 1
    return q


def _same(p, q):
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def _x(y, sign):
    if y >= P:
        return None
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P)
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * ROOT_OF_MINUS_1 % P
    if (x * x - xx) % P or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


def _point(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    x = _x(y, sign)
    return None if x is None else (x, y, 1, x * y % P)


def _bytes(p):
    inverse = pow(p[2], P - 2, P)
    x, y = p[0] * inverse % P, p[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


_Y = 4 * pow(5, P - 2, P) % P
BASE = (_x(_Y, 0), _Y, 1, _x(_Y, 0) * _Y % P)


def _hash(*parts):
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % L


class Key:
    """A root, or a holder of tokens."""

    def __init__(self, seed):
        h = hashlib.sha512(seed).digest()
        self._scalar = int.from_bytes(h[:32], "little") & (1 << 254) - 8 | 1 << 254
        self._prefix, self.seed = h[32:], seed
        self.public = _bytes(_times(self._scalar, BASE))

    def sign(self, message):
        r = _hash(self._prefix, message)
        point = _bytes(_times(r, BASE))
        s = (r + _hash(point, self.public, message) * self._scalar) % L
        return point + s.to_bytes(32, "little")


def signature_holds(public, message, signature):
    a, r = _point(public), _point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    # "S beyond the group's order and keys of small order are refused"
    if a is None or r is None or s >= L or _same(_times(8, a), (0, 1, 1, 0)):
        return False
    return _same(_times(s, BASE), _add(r, _times(_hash(signature[:32], public, message), a)))


# The page's section "Bytes".
DOMAIN = b"aspen capability token v1\0"


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def base32(data):
    return base64.b32encode(data).decode().lower().rstrip("=")


def from_base32(text):
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        raise Refused("damaged") from None
    if base32(data) != text:
        raise Refused("damaged")
    return data


def blob(data):
    return struct.pack("<I", len(data)) + data


def capability(text):
    """`cluster:read`, `kv:read:PREFIX*`, …: to its bytes. (No escapes: the tests need none.)"""
    if text.startswith("cluster:"):
        return bytes([{"cluster:read": 1, "cluster:admin": 2}[text]])
    kind, pattern = (3, text[8:]) if text.startswith("kv:read:") else (4, text[9:])
    is_prefix = pattern.endswith("*")
    return bytes([kind, is_prefix]) + blob(pattern.rstrip("*").encode())


def body(holder, not_before, expires, capabilities, name=None):
    ordered = sorted(capability(c) for c in capabilities)
    return ((name or os.urandom(16)) + holder + struct.pack("<QQI", not_before, expires, len(ordered))
            + b"".join(ordered))


def begin(root):
    """A chain without a link yet."""
    return b"AsTk\x01" + root


def link(chain, signer, of):
    """`chain` and one more link, whose body is `of`: "every byte of the chain up to and with that link's
    body" is signed."""
    text = chain + blob(of)
    return text + signer.sign(DOMAIN + text)


def to_text(chain):
    return "aspentoken" + base32(chain + struct.pack("<I", crc32c(chain)))


class Refused(Exception):
    pass


class _Reader:
    def __init__(self, data):
        self.data, self.place = data, 0

    def take(self, count):
        if len(self.data) - self.place < count:
            raise Refused("damaged")
        self.place += count
        return self.data[self.place - count:self.place]

    def number(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]

    def blob(self):
        return self.take(self.number("I"))


def _capability(reader):
    kind = reader.number("B")
    if kind in (1, 2):
        return kind, False, b""
    if kind not in (3, 4):
        raise Refused("unknown capability")
    is_prefix, key = reader.number("B"), reader.blob()
    if is_prefix > 1 or len(key) > 1024 or not (is_prefix or key):
        raise Refused("damaged")
    return kind, bool(is_prefix), key


def _allows(given, wanted):
    """One capability includes another. (Several may cover a longer prefix together: not among the tests.)"""
    if given[0] in (1, 2):
        return wanted[0] == given[0] or (given[0], wanted[0]) == (2, 1)
    if given[0] != wanted[0]:
        return False
    return wanted[2].startswith(given[2]) if given[1] else given == wanted


def judge(text, roots, client, now, revoked=()):
    """The page's section "When a chain holds"; what the last link grants, or `Refused`."""
    if not text.startswith("aspentoken"):
        raise Refused("no token")
    data = from_base32(text[len("aspentoken"):])
    chain, checksum = data[:-4], struct.unpack("<I", data[-4:])[0]
    if crc32c(chain) != checksum or len(chain) > 65536:
        raise Refused("damaged")
    reader = _Reader(chain)
    if reader.take(5) != b"AsTk\x01":
        raise Refused("version")
    root, links = reader.take(32), []
    while not links or reader.place < len(chain):
        of = _Reader(reader.blob())
        signed = DOMAIN + chain[:reader.place]
        name, holder = of.take(16), of.take(32)
        start, end, count = of.number("Q"), of.number("Q"), of.number("I")
        if not 1 <= count <= 64 or start >= end:
            raise Refused("damaged")
        places, capabilities = [], []
        for _ in range(count):
            before = of.place
            capabilities.append(_capability(of))
            places.append(of.data[before:of.place])
        if of.place != len(of.data) or any(a >= b for a, b in zip(places, places[1:])):
            raise Refused("damaged")
        links.append((name, holder, start, end, capabilities, signed, reader.take(64)))
    if len(links) > 8:
        raise Refused("damaged")
    if root not in roots:
        raise Refused("untrusted root")
    if any(name in revoked for name, *_ in links):
        raise Refused("revoked")
    if links[-1][1] != client:
        raise Refused("audience")
    if now >= links[-1][3]:
        raise Refused("expired")
    if now + 30 < links[-1][2]:
        raise Refused("not yet valid")
    signer, parent = root, None
    for here in links:
        if parent:
            if here[2] < parent[2] or here[3] > parent[3]:
                raise Refused("outlives")
            if not all(any(_allows(g, w) for g in parent[4]) for w in here[4]):
                raise Refused("widened")
        if not signature_holds(signer, here[5], here[6]):
            raise Refused("signature")
        signer, parent = here[1], here
    return sorted(places)
