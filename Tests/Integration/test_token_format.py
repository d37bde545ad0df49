#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The normative page is enough to make and to judge tokens: `token_format.py` was written from it, and agrees
with aspen-token about what holds, and about what does not and why."""

import os
import re
import subprocess
import tempfile
import time

import token_format as page
from aspen_cluster import ROOT, bin_dir, run

PAGE = os.path.join(ROOT, "Sources/Documentation/Aspen.docc/Tokens.md")


class Home:
    def __init__(self):
        self.holder = tempfile.TemporaryDirectory(prefix="aspen-test-", dir="/tmp")
        self.path = self.holder.name

    def run(self, *arguments, code=0):
        done = subprocess.run([f"{bin_dir()}/aspen-token", *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60, text=True,
                              env={"PATH": os.environ["PATH"], "HOME": self.path})
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stderr}"
        return done.stdout.strip() if code == 0 else done.stderr


def the_reference_code_signs_as_the_standard_does():
    # RFC 8032, section 7.1, TEST 3.
    key = page.Key(bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"))
    signature = key.sign(bytes.fromhex("af82"))
    assert signature.hex() == (
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a")
    assert page.signature_holds(key.public, bytes.fromhex("af82"), signature)
    assert not page.signature_holds(key.public, b"another", signature)
    assert page.crc32c(b"123456789") == 0xE3069283


def the_pages_example_is_what_the_page_says():
    with open(PAGE) as f:
        text = f.read()
    shown = re.search(r"^    (aspentoken[\sa-z2-7]+?)\n\n", text, re.M).group(1)
    example = re.sub(r"\s", "", shown)
    root, first, client = (page.Key(bytes([n]) * 32) for n in (1, 2, 3))
    chain = page.link(page.begin(root.public), root, page.body(
        first.public, 1000, 5000, ["kv:read:app/*", "kv:write:app/*"], b"\x11\x11" + bytes(14)))
    chain = page.link(chain, first, page.body(
        client.public, 1500, 4000, ["kv:read:app/*", "kv:write:app/jobs/*", "kv:write:app/x"],
        b"\x22\x22" + bytes(14)))
    assert page.to_text(chain) == example
    page.judge(example, {root.public}, client.public, 2000)


def each_judges_the_others_tokens_alike():
    home, now = Home(), int(time.time())
    root, holder, client, other = (page.Key(bytes([n]) * 32) for n in (11, 12, 13, 14))
    name = page.base32

    def one(signer=root, to=client, start=now - 5, end=now + 600, what=("kv:read:app/*",), of=None,
            top=root):
        return page.link(page.begin(top.public) if of is None else of, signer,
                         page.body(to.public, start, end, list(what)))

    parent = one(to=holder, what=("kv:read:app/*", "kv:write:app/x", "cluster:admin"))
    good = [
        one(), one(what=("cluster:admin", "cluster:read", "kv:write:*", "kv:read:a")),
        one(holder, of=parent), one(holder, what=("kv:read:app/x", "kv:write:app/x"), of=parent),
        one(holder, what=("cluster:read",), of=parent), one(start=now + 10),
    ]
    bad = {
        "not trusted": ("untrusted root", one(signer=other, top=other)),
        "not signed": ("signature", one(signer=other)),
        "expired": ("expired", one(start=now - 60, end=now - 1)),
        "not valid before": ("not yet valid", one(start=now + 600, end=now + 700)),
        "another client key": ("audience", one(to=other)),
        "grants more": ("widened", one(holder, what=("kv:read:*",), of=parent)),
        "outside the time": ("outlives", one(holder, end=now + 601, of=parent)),
    }
    verify = ("verify", "--root", name(root.public), "--client", name(client.public))
    for chain in good:
        text = page.to_text(chain)
        page.judge(text, {root.public}, client.public, now)
        assert "holds until" in home.run(*verify, text)
    for words, (why, chain) in bad.items():
        text = page.to_text(chain)
        try:
            page.judge(text, {root.public}, client.public, now)
            raise AssertionError(f"'{why}' was not seen by the page's rules")
        except page.Refused as refusal:
            assert str(refusal) == why, (why, refusal)
        said = home.run(*verify, text, code=4)
        assert words in said and text not in said, said
    # What is no chain at all: a digit changed, the end cut off, bytes behind it, capabilities out of order.
    text = page.to_text(good[0])
    swapped = page.link(page.begin(root.public), root, page.body(
        client.public, now, now + 9, ["kv:read:a"])[:-7] + b"".join(
            page.capability(c) for c in ("kv:write:b", "kv:read:a")))
    for broken in (text[:30] + ("a" if text[30] != "a" else "b") + text[31:], text[:-1],
                   page.to_text(good[0] + b"\0"), page.to_text(swapped)):
        try:
            page.judge(broken, {root.public}, client.public, now)
            raise AssertionError("no token was taken for one")
        except page.Refused:
            pass
        assert "damaged" in home.run(*verify, broken, code=2)


def the_page_judges_what_aspen_token_makes():
    home, now = Home(), int(time.time())
    root = page.from_base32(home.run("generate-root"))
    own = page.from_base32(home.run("client-key"))
    friend = page.Key(bytes([21]) * 32)
    # As short as it gets: for oneself, by the root that was made just now.
    mine = home.run("delegate", "--capability", "kv:read:app/*", "--capability", "kv:write:app/x",
                    "--lifetime", "1h")
    assert page.judge(mine, {root}, own, now + 1) == [
        page.capability("kv:read:app/*"), page.capability("kv:write:app/x")]
    passed = home.run("delegate", "--from", mine, "--audience", page.base32(friend.public),
                      "--capability", "kv:read:app/x", "--lifetime", "2h")
    assert page.judge(passed, {root}, friend.public, now + 1) == [page.capability("kv:read:app/x")]
    for why, arguments in {
            "audience": (mine, {root}, friend.public, now), "expired": (mine, {root}, own, now + 3700),
            "untrusted root": (mine, {own}, own, now)}.items():
        try:
            page.judge(*arguments)
            raise AssertionError(why)
        except page.Refused as refusal:
            assert str(refusal) == why, refusal
    # Times of its own.
    later = home.run("delegate", "--capability", "kv:read:a", "--lifetime", "1h", "--not-before", "2h")
    try:
        page.judge(later, {root}, own, now + 3600)
        raise AssertionError("it holds before its time")
    except page.Refused as refusal:
        assert str(refusal) == "not yet valid", refusal
    page.judge(later, {root}, own, now + 7210)
    assert "not valid before" in home.run("verify", "--root", page.base32(root), later, code=4)
    dated = home.run("delegate", "--capability", "cluster:read", "--lifetime", "8h",
                     "--not-before", "2090-12-24T08:00:00Z")
    shown = home.run("inspect", dated)
    assert "from      2090-12-24 08:00:00 UTC" in shown and "until     2090-12-24 16:00:00 UTC" in shown
    for arguments, words in [
            (("--not-before", "2020-01-01T00:00:00Z"), "ended before it begins, or by now"),
            (("--not-before", "yesterday"), "--not-before"),
            (("--from", mine), "--audience"),
            (("--from", mine, "--audience", page.base32(friend.public), "--not-before", "3h"),
             "ended before it begins"),
            (("--audience", "nobody"), "client-key"), (("--capability", "kv:read"), "kv:read")]:
        said = home.run("delegate", "--capability", "kv:read:app/x", "--lifetime", "1h", *arguments,
                        code=2)
        assert words in said and mine not in said, said
    said = home.run("delegate", "--from", mine, "--audience", page.base32(friend.public),
                    "--capability", "kv:read:*", "--lifetime", "1h", code=4)
    assert "grants more" in said and "kv:read:*" in said, said


if __name__ == "__main__":
    run(the_reference_code_signs_as_the_standard_does, the_pages_example_is_what_the_page_says,
        each_judges_the_others_tokens_alike, the_page_judges_what_aspen_token_makes)
