"""An lspawn without a server, with times of a test's: python -m ... SOCKET USER DEST ..."""

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
from fastsmtp.supervisor.lspawn import Lspawn, Pair
from fastsmtp.supervisor.privilege import person_for

ANSWER_S = 1.0
KILL_S = 2.0


async def main(path: str, user: str, *dests: str) -> None:
    person = person_for(user)
    pairs = {key_of(user, dest): Pair(person, dest, environment_of(user, person.home)) for dest in dests}
    board = Board(1)
    lspawn = Lspawn(
        listen(path), pairs, caller=os.getuid(), hostname="mx.example.org", version="1",
        log=LogWriter(open_destination("stderr"), Logfmt()), metrics=board.sheet(0),
        answer_s=ANSWER_S, kill_s=KILL_S, children=2,
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
