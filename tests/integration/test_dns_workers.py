"""Workers of one master draw ids, letters and ports of their own, although all were forked from one process."""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys

from tests.fakes.dns_server import dns_server

WORKER = pathlib.Path(__file__).with_name("dns_worker.py")
ROOT = WORKER.parent.parent.parent


def test_four_workers_draw_differently() -> None:
    async def main() -> None:
        async with dns_server({}) as server:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(WORKER), server.where, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
            assert await process.wait() == 0
            ids: list[list[bytes]] = [[] for _ in range(4)]
            letters: list[list[str]] = [[] for _ in range(4)]
            ports: list[set[int]] = [set() for _ in range(4)]
            for (_, asked, _, port), packet in zip(server.queries, server.packets, strict=True):
                worker = int(asked[1])
                ids[worker].append(packet[:2])
                letters[worker].append(asked.split(".")[1])
                ports[worker].add(port)
            assert min(len(drawn) for drawn in ids) >= 40
            for one in range(4):
                for other in range(one):
                    assert ids[one] != ids[other]
                    # Two of 40 in the same place are alike once in some 1,600 runs; ten are no accident.
                    assert sum(a == b for a, b in zip(ids[one], ids[other], strict=False)) < 10
                    assert sum(a == b for a, b in zip(letters[one], letters[other], strict=False)) < 10
                    # A port may serve twice when one worker has ended before the other begins.
                    assert len(ports[one] & ports[other]) < 3

    asyncio.run(main())
