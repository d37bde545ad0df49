#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Small versions of the proofs that `make prove` runs whole: what they check, without the times."""

import proofs
from aspen_cluster import run


def learners_join_under_load_and_are_equal():
    proofs.SCALE = 0.01
    proofs.learner()


def a_snapshot_goes_on_after_kills():
    proofs.SCALE = 0.01
    proofs.interrupted()


def a_backup_under_load_is_the_state_at_its_revision():
    proofs.SCALE = 0.01
    proofs.backup()


def a_watch_sees_each_event_once():
    proofs.SCALE = 0.1
    proofs.one_watch_and_kills()


if __name__ == "__main__":
    run(learners_join_under_load_and_are_equal, a_snapshot_goes_on_after_kills,
        a_backup_under_load_is_the_state_at_its_revision, a_watch_sees_each_event_once)
