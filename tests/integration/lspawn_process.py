"""An lspawn without a server, with times of a test's.

python -m ... SOCKET ANSWER_S KILL_S KEEP_S CHILDREN USER DEST [USER DEST ...]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from fastsmtp._metrics import Board
from fastsmtp.delivery.carrier import environment_of
from fastsmtp.delivery.errand import key_of
from fastsmtp.log import LogWriter
from fastsmtp.log_destination import open_destination
from fastsmtp.log_format import Logfmt
from fastsmtp.queue.line import listen
from fastsmtp.supervisor.lspawn import CAPABILITIES, Lspawn, Pair
from fastsmtp.supervisor.privilege import keep_capabilities, person_for, withhold_shared_memory


async def main(path: str, answer_s: str, kill_s: str, keep_s: str, children: str, *words: str) -> None:
    people = {user: person_for(user) for user in words[::2]}
    pairs = {
        key_of(user, dest): Pair(people[user], dest, environment_of(user, people[user].home))
        for user, dest in zip(words[::2], words[1::2], strict=True)
    }
    sock = listen(path)
    board = Board(1)
    keep_capabilities(CAPABILITIES, runs_programs=True)
    withhold_shared_memory()
    lspawn = Lspawn(
        sock, pairs, caller=os.getuid(), hostname="mx.example.org", version="1",
        log=LogWriter(open_destination("stderr"), Logfmt()), metrics=board.sheet(0),
        answer_s=float(answer_s), kill_s=float(kill_s), keep_s=float(keep_s), idle_s=3_600.0,
        children=int(children),
    )  # fmt: skip
    lspawn.begin()
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    print("ready", flush=True)
    await done.wait()
    await lspawn.drain(30.0)
    await lspawn.close()
    for key, number in sorted(board.read().items()):
        print(key.decode().replace("\0", " "), number, flush=True)
    # All that it has forked is gone, and reaped.
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("alone", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
