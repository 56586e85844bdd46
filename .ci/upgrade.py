"""An installed server on the queues of earlier formats: python upgrade.py /path/to/fastsmtp format-1.tar.xz ...

Runs outside the source tree, with nothing of it but tests/integration/archives.py and tests/ports.py.  Each archive is
a queue with mail in it, as a crash of the release that brought its format left it (tests/integration/queue_archive.py).
The server is started on it, its operator flushes it and releases what is held, and every message must come to its next
hop.
"""

from __future__ import annotations

import pathlib
import re
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress

from tests.integration.archives import unpack
from tests.ports import free_port

PATIENCE_S = 60.0
WANTED = ["ann", "cyd", "dan", "eve", "fay"]


class NextHop(socketserver.StreamRequestHandler):
    """As little SMTP as takes mail."""

    def handle(self) -> None:
        # The server ends its idle connections with a reset.
        with suppress(ConnectionError):
            self.talk()

    def talk(self) -> None:
        self.say("220 hop")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"RCPT":
                self.recipient = line[9 : line.index(b"@")].decode()
            if verb == b"DATA":
                self.say("354 go on")
                while self.rfile.readline() not in {b".\r\n", b""}:
                    pass
                self.server.taken.append(self.recipient)  # type: ignore[attr-defined]
            self.say("250 ok" if verb != b"QUIT" else "221 bye")

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class Server(socketserver.ThreadingTCPServer):
    """The next hop."""

    daemon_threads = True

    def __init__(self) -> None:
        # Of five digits, as the archives need it.
        super().__init__(("127.0.0.1", free_port()), NextHop)
        self.dest = f"smtp://127.0.0.1:{self.server_address[1]}"
        self.taken: list[str] = []


def wait_for(hop: Server, wanted: list[str]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while sorted(hop.taken) != wanted:
        if time.monotonic() > ends:
            raise SystemExit(f"{sorted(hop.taken)} came to the next hop, not {wanted}")
        time.sleep(0.05)


def check(program: str, archive: str, hop: Server) -> None:
    hop.taken.clear()
    with tempfile.TemporaryDirectory() as name:
        state = pathlib.Path(name, "state")
        state.mkdir()
        unpack(pathlib.Path(archive), state, hop.server_address[1])
        command = [
            program, "serve", "--listen", "127.0.0.1:0", "--workers", "1", "--hostname", "ci.example.org",
            "--accept", "there.example", "--deliver", hop.dest, "--state", str(state),
        ]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert server.stdout is not None
            if not any(re.search(r"\bready\b", line) for line in server.stdout):
                raise SystemExit(f"{archive}: the server ended with {server.wait()} before it was ready")
            for arguments in (["flush", "--all"], ["release", "--recipient", "eve@there.example"]):
                subprocess.run([program, "queue", *arguments, "--state", str(state)], check=True)
            wait_for(hop, WANTED)
            server.terminate()
            rest, _ = server.communicate(timeout=PATIENCE_S)
            assert server.returncode == 0, (server.returncode, rest)
            left = subprocess.run(
                [program, "queue", "list", "--json", "--state", str(state)],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert left.stdout == "", left.stdout
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    print(f"{pathlib.Path(archive).name}: {', '.join(WANTED)} have their mail")


def main(program: str, *archives: str) -> None:
    with Server() as hop:
        threading.Thread(target=hop.serve_forever, daemon=True).start()
        for archive in archives:
            check(program, archive, hop)


if __name__ == "__main__":
    main(*sys.argv[1:])
