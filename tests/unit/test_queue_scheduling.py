"""Who waits for whom on a busy machine: the kernel is asked for it, and nothing depends on the answer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STANDS_BACK = """
import os
from fastsmtp.supervisor.queue import stand_back
stand_back()
print(os.sched_getscheduler(0), os.nice(0))
"""
ANSWERS_SOON = """
import os
from fastsmtp._journal import answer_soon
os.nice(5)
answer_soon()
print(os.sched_getscheduler(0), os.nice(0))
"""


def said(program: str) -> list[int]:
    return [int(word) for word in subprocess.check_output([sys.executable, "-c", program], text=True).split()]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has it")
def test_the_queue_s_processes_stand_back() -> None:
    assert said(STANDS_BACK) == [os.SCHED_BATCH, os.nice(0)]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has it")
def test_short_slices_change_neither_policy_nor_priority() -> None:
    assert said(ANSWERS_SOON) == [os.SCHED_OTHER, os.nice(0) + 5]
