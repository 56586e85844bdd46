"""fastsmtp popup: name and password of a POP3 client, in qmail-popup's place; what they open is another program."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsmtp.pop3.connection import Wire
    from fastsmtp.pop3.login import Credentials

USAGE = "usage: fastsmtp popup [--delay SECONDS] HOST CHECKPASSWORD COMMAND [ARGUMENT...]"

# One try a connection, and so long for its answer: guessing is slow, and who mistyped hardly notices.
DELAY_S = 3.0
DELAY_S_MAX = 60.0

# From the greeting to the password.  RFC 1939 section 3 allows no shorter time of silence.
LOGIN_S = 600.0


def run(arguments: Sequence[str]) -> int:
    """0 when a session was served; 1 when there was none; 2 when the command line is wrong."""
    if list(arguments) == ["--help"]:
        print(_help())
        return 0
    given = _parse(list(arguments))
    if given is None:
        print(USAGE, file=sys.stderr)
        return 2
    delay_s, host, command = given

    from fastsmtp.pop3.connection import Hung, Wire

    try:
        return serve(Wire(0, 1, LOGIN_S), host, command, delay_s, time.sleep)
    except Hung:
        return 1


def serve(wire: Wire, host: str, command: list[str], delay_s: float, sleep: Callable[[float], None]) -> int:
    """One client.  sleep is for a wrong password.  Raises Hung."""
    from fastsmtp.pop3.checkpassword import Verdict, check

    timestamp = f"<{os.getpid()}.{int(time.time())}@{host}>".encode()
    with wire.not_blocking():
        credentials = _log_in(wire, timestamp)
    if credentials is None:
        return 1
    try:
        verdict = check(command, credentials, timestamp)
    except OSError as error:
        print(f"fastsmtp popup: {command[0]} can't be run: {error.strerror}", file=sys.stderr)
        wire.write(b"-ERR [SYS/PERM] nobody can look at passwords here\r\n")
        return 1
    if verdict is Verdict.DONE:
        return 0
    user = credentials.user.decode("ascii", "backslashreplace")
    client = os.environ.get("TCPREMOTEIP", "unknown")
    if verdict is Verdict.FAILED:
        print(f"fastsmtp popup: {command[0]} failed: client={client} user={user!r}", file=sys.stderr)
        wire.write(b"-ERR [SYS/TEMP] the password could not be looked at, or the session broke\r\n")
        return 1
    print(f"fastsmtp popup: refused: client={client} user={user!r}", file=sys.stderr, flush=True)
    sleep(delay_s)
    wire.write(b"-ERR [AUTH] authorization failed\r\n")
    return 1


def _log_in(wire: Wire, timestamp: bytes) -> Credentials | None:
    """What the client gives, or None when it goes away."""
    from fastsmtp.pop3.login import Login

    login = Login(timestamp)
    wire.write(login.greeting())
    deadline = time.monotonic() + LOGIN_S
    while not login.is_over and time.monotonic() < deadline:
        # An octet at a time: what is pipelined behind the password is the next program's.
        for answer in login.feed(wire.read(1)):
            wire.write(answer)
        if login.credentials is not None:
            return login.credentials
    return None


def _parse(arguments: list[str]) -> tuple[float, str, list[str]] | None:
    """(delay in seconds, host, checkpassword with its arguments), or None."""
    delay_s = DELAY_S
    if arguments[:1] == ["--delay"]:
        try:
            delay_s = float(arguments[1])
        except (IndexError, ValueError):
            return None
        arguments = arguments[2:]
    if not 0 <= delay_s <= DELAY_S_MAX or len(arguments) < 3 or arguments[0].startswith("-"):
        return None
    return delay_s, arguments[0], arguments[1:]


def _help() -> str:
    return "\n".join([
        USAGE,
        "",
        "Ask a POP3 client on standard input and output for name and password, and hand them to CHECKPASSWORD,",
        "which runs COMMAND (fastsmtp pop3d Maildir) as that user when they are right.",
        "",
        f"  --delay SECONDS  before a wrong password is answered, at most {DELAY_S_MAX:.0f}; {DELAY_S:.0f} by default",
    ])  # fmt: skip
