"""A real `fastsmtp serve` for tests with real clients: one process tree a configuration, its Maildirs and its log.

    with Daemon(LISTENERS) as daemon:
        ... daemon.ports["mx"] ...
        [letter] = daemon.mail("joe@example.org")

The configuration that a test gives comes behind a few common lines: mail for example.org and for every
recipient of its own goes into a Maildir of that recipient, so tests that share a server don't meet.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastsmtp.delivery.maildir import escape, split_address
from tests.integration.servers import Process, until

PATIENCE_S = 60.0
# No name server is here, and that is known at once.
NOBODY = "127.0.0.1:1"

ACCEPT = """
[[accept]]
domain = ["example.org", ".example.org"]
deliver = "maildir:{folder}/mail/{domain}/{local}"
"""


class Letter:
    """A file of a Maildir: `trace` is what we put before the message, `text` the message with LF."""

    def __init__(self, content: bytes) -> None:
        found = re.match(rb"Return-Path: <(.*)>\nDelivered-To: (.*)\nReceived: .*\n(?:\t.*\n)+", content)
        assert found, content[:500]
        self.content = content
        self.sender = found[1]
        self.recipient = found[2]
        self.trace = found[0]
        self.text = content[found.end() :]


class Daemon:
    """`python -m fastsmtp serve` with a configuration file, from `with` to its end by SIGTERM.

    config   TOML; {folder} is the directory that everything is in.  Without a [[listen]] there is one
             named "mx"; a [[listen]] needs no address
    program  what is started with serve and its flags; {folder} too
    ports    by listener's name
    """

    def __init__(
        self,
        config: str = "",
        *,
        accept: str = ACCEPT,
        workers: int = 2,
        flags: tuple[str, ...] = (),
        program: tuple[str, ...] = (sys.executable, "-m", "fastsmtp"),
    ) -> None:
        # Not pytest's directory: workers of a server started as root may not enter that.
        self.folder = Path(tempfile.mkdtemp(prefix="fastsmtp-test-"))
        self.folder.chmod(0o755)
        self.mailboxes = self.folder / "mail"
        self.mailboxes.mkdir()
        self.mailboxes.chmod(0o777)
        self.file = self.folder / "fastsmtp.toml"
        self._accept = accept
        self._workers = workers
        self._flags = flags
        self._program = tuple(word.replace("{folder}", str(self.folder)) for word in program)
        self.ports: dict[str, int] = {}
        self.write(config)

    def write(self, config: str) -> None:
        """Write the configuration file; SIGHUP is the caller's."""
        if "[[listen]]" not in config:
            config += '\n[[listen]]\nname = "mx"\n'
        config = (config + self._accept).replace("[[listen]]", '[[listen]]\naddress = ["127.0.0.1:0"]')
        text = (
            f'hostname = "mx.example.org"\nstate = "{self.folder}/state"\nuser = "nobody"\n'
            f"workers = {self._workers}\n" + config.replace("{folder}", str(self.folder))
        )
        if "[deliver]" not in text:
            text += "\n[deliver]\nqueue = false\n"
        given = tomllib.loads(text)
        if "dns" not in given and "--dns" not in self._flags:
            # The machine's may be slow, or silent: a test has its own name server or none, and none of these rules.
            text += f'\n[dns]\nservers = ["{NOBODY}"]\n'
            for rule in sorted({"mfcheck", "helo", "reverse_dns"} - set(given.get("policy", {}))):
                text += f'\n[policy.{rule}]\nmode = "off"\n'
        if "[log]" not in text:
            text += f'\n[log]\nto = "{self.folder}/log"\nformat = "json"\n'
        self.file.write_text(text)

    def start(self) -> None:
        """Start it and wait for its ready line."""
        self.process = Process([*self._program, "serve", "--config", str(self.file), *self._flags])
        where = self.process.wait_for(r"^fastsmtp \S+ ready: (.*) \(\d+ workers?\)")[1]
        shown = [int(port) for port in re.findall(r":(\d+)(?:,|$)", where)]
        names = [listen["name"] for listen in tomllib.loads(self.file.read_text())["listen"]]
        self.ports = dict(zip(names, shown, strict=True))

    @property
    def port(self) -> int:
        """Of the first listener."""
        return next(iter(self.ports.values()))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.popen.poll() is None:
                self.process.signal(signal.SIGTERM)
                assert self.process.end() == 0, self.process.lines
        finally:
            self.remove()

    def remove(self) -> None:
        """Kill it if it still runs, and remove its files; `with` does that."""
        if hasattr(self, "process"):
            self.process.close()
        shutil.rmtree(self.folder)

    def mail(self, recipient: str) -> list[Letter]:
        """What has arrived for a recipient, in no order."""
        local, domain = map(escape, split_address(recipient.encode()))
        new = self.mailboxes / domain.decode() / local.decode() / "new"
        return [Letter(path.read_bytes()) for path in new.iterdir()] if new.is_dir() else []

    def one(self, recipient: str) -> Letter:
        """The only message of a recipient."""
        (letter,) = self.mail(recipient)
        return letter

    def log(self, event: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The lines of the log with this event and these values."""
        path = self.folder / "log"
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [
            line
            for line in lines
            if event in ("", line["event"]) and all(line.get(name) == value for name, value in fields.items())
        ]

    def wait_for_log(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first such line; lines leave in batches, a moment after what they tell of."""
        return self.wait_for_logs(event, 1, **fields)[0]

    def wait_for_logs(self, event: str, count: int, **fields: Any) -> list[dict[str, Any]]:
        """All such lines, when there are so many."""
        until(lambda: len(self.log(event, **fields)) >= count, f"{count} lines of {event} {fields}")
        return self.log(event, **fields)


def ran(*command: str, input: bytes = b"", status: int | None = 0) -> str:
    """Run a client to its end; what it said on both outputs.  AssertionError for another exit status."""
    done = subprocess.run(
        command,
        input=input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_S,
        check=False,
    )
    said = done.stdout.decode("utf-8", "replace")
    assert status is None or done.returncode == status, (done.returncode, said)
    return said
