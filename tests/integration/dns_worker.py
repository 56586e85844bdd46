"""Forks four workers after the modules are imported and the Resolver is made; each asks, the parent prints nothing.

    python dns_worker.py ADDRESS:PORT

What the workers draw is seen by the server that they ask: worker N asks wN-0.example, wN-1.example ...
The random block of the parent is filled before the fork, so that a child that went on with it would be caught.
"""

from __future__ import annotations

import asyncio
import os
import sys

from fastsmtp.resolver import A, Question, Resolver

WORKERS, QUESTIONS = 4, 40


async def work(resolver: Resolver, number: int) -> None:
    for start in range(0, QUESTIONS, 4):
        batch = [Question(b"w%d-%d.abcdefghijklmnop.example" % (number, start + i), A) for i in range(4)]
        if any(answer.is_failed for answer in await resolver.ask(batch)):
            raise SystemExit(1)
    resolver.close()


def main() -> int:
    resolver = Resolver([sys.argv[1]], timeout_s=30.0)
    resolver.engine.draw(256)
    children = []
    for number in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            asyncio.run(work(resolver, number))
            os._exit(0)
        children.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


if __name__ == "__main__":
    sys.exit(main())
