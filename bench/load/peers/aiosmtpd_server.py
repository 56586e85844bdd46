"""aiosmtpd on uvloop, accepting everything and throwing it away.  aiosmtpd_server.py PORT"""

from __future__ import annotations

import asyncio
import logging
import sys

import uvloop
from aiosmtpd.smtp import SMTP


class Discard:
    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:
        return "250 OK"


async def main(port: int) -> None:
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    loop = asyncio.get_running_loop()
    handler = Discard()
    server = await loop.create_server(
        lambda: SMTP(handler, hostname="bench.example.org", data_size_limit=52_428_800),
        "127.0.0.1",
        port,
        backlog=4096,
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
