"""A master that makes one ServerTls and forks two workers, each with a port of its own: for test_tls_openssl.py.

A program of its own, since a test process has threads and must not fork.  Prints the two ports; each
worker speaks just enough SMTP for STARTTLS and ends with its master, whose stdin is its life line.

    python tls_workers.py CERTIFICATE KEY [NAME CERTIFICATE KEY]
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import cast

import uvloop

from fastsmtp.smtp.start_tls import Failed, Outcome, Upgrade
from fastsmtp.tls import ServerTls, ignore_bad_server_names, read_credentials


class Worker(asyncio.BufferedProtocol):
    """EHLO, STARTTLS, QUIT; says what the handshake agreed on in its answer to EHLO."""

    def __init__(self, tls: ServerTls, alive: set[Worker]) -> None:
        self.tls = tls
        self.alive = alive
        self.upgrade: Upgrade | None = None
        self.agreed = "clear"
        self.buffer = bytearray(4096)
        self.line = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = self.transport = cast(asyncio.Transport, transport)
        self.alive.add(self)
        self.raw.write(b"220 mx.example.org ESMTP\r\n")

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)

    def buffer_updated(self, size: int) -> None:
        self.line += self.buffer[:size]
        while b"\n" in self.line:
            line, _, self.line = self.line.partition(b"\n")
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.transport.write(f"250-{self.agreed}\r\n250 STARTTLS\r\n".encode())
            elif verb == b"STAR":
                self.line = b""
                self.raw.pause_reading()
                self.raw.write(b"220 go ahead\r\n")
                loop = asyncio.get_running_loop()
                self.upgrade = Upgrade(
                    loop, self.raw, self, self.tls.context, timeout_s=30.0, done=self.tls_done
                )
                return
            elif verb == b"QUIT":
                self.transport.write(b"221 bye\r\n")
                self.transport.close()

    def holds_back(self) -> bool:
        return False

    def tls_done(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self.alive.discard(self)
            return
        self.upgrade = None
        self.transport = outcome.transport
        agreed = self.tls.handshake(outcome.ssl_object)
        self.agreed = (
            f"{agreed.protocol} {agreed.cipher} name={agreed.server_name} resumed={agreed.is_resumed}"
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive.discard(self)


async def serve(sock: socket.socket, tls: ServerTls) -> None:
    loop = asyncio.get_running_loop()
    alive: set[Worker] = set()
    over = loop.create_future()
    # The master's end of stdin is everybody's.
    loop.add_reader(0, lambda: None if over.done() else over.set_result(None))
    server = await loop.create_server(lambda: Worker(tls, alive), sock=sock)
    await over
    server.close()


def main() -> None:
    arguments = sys.argv[1:]
    default = read_credentials(*arguments[:2])
    names = {arguments[2]: read_credentials(*arguments[3:5])} if len(arguments) > 2 else {}
    tls = ServerTls(default, names)
    ignore_bad_server_names()
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    print(*(sock.getsockname()[1] for sock in socks), flush=True)
    children = []
    for sock in socks:
        child = os.fork()
        if child == 0:
            uvloop.run(serve(sock, tls))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
